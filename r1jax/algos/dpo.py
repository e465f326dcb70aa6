"""Direct preference optimization (DPO), IPO, and group-robust DPO.

With the difference of log-ratios of a pair under a policy π and a fixed
reference π_ref,

  h = [log π(y_w|x) − log π_ref(y_w|x)] − [log π(y_l|x) − log π_ref(y_l|x)]

the losses are

  'sigmoid'  −(1 − ε) log σ(βh) − ε log σ(−βh)      arXiv 2305.18290, eq. 7;
                                                    ε > 0 is cDPO
  'ipo'      (h − 1/(2β))²                          arXiv 2310.12036, eq. 17

Group-robust DPO (arXiv 2405.20304, "Group Robust Preference Optimization",
whose abbreviation is also that of another method) has groups g = 1 … K of N_g
pairs, N = Σ N_g, whose preferences differ, and minimizes the loss of the worst:

  min_π max_{α ∈ Δ_K} Σ_g α_g L_g(π),    L_g the mean loss of group g.

Its algorithm 1 samples one pair and updates first the weight of its group, then
the policy:

  α_g ← α_g · exp(η · N/N_g · ℓ),  α ← α / Σ α         (exponentiated gradient)
  θ   ← θ − lr · N/N_g · α_g · ∇ℓ

N/N_g compensates for how often a group is sampled, so that in expectation both
updates see L_g and not N_g/N · L_g. Here a batch of B pairs is sampled at once,
and both updates are the mean of its B single updates:

  α_g ← α_g · exp(η · 1/B Σ_{i of g} N/N_g ℓ_i),    loss = 1/B Σ_i N/N_g α_g ℓ_i

K = 1 is plain DPO; η = 0 is DPO with equal weights for all groups, whatever
their size. (The authors' code does the same with its `divide_by_totalcount`,
except for 1/B, which their η and learning rate absorb.)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import common
from r1jax.config.schema.preferences import DPOLossConfig
from r1jax.errors import UserError


def per_pair(config: DPOLossConfig, log_ratio_P):
  """Returns loss_P of the log-ratios h_P."""
  if config.loss_type == 'ipo':
    return jnp.square(log_ratio_P - 1 / (2 * config.beta))
  logit_P, smooth = config.beta * log_ratio_P, config.label_smoothing
  return (1 - smooth) * jax.nn.softplus(-logit_P) + smooth * jax.nn.softplus(
    logit_P
  )


def log_ratio(logp_P2, ref_logp_P2):
  """Returns h_P; column 0 is the chosen response, column 1 the rejected one."""
  log_ratio_P2 = logp_P2 - ref_logp_P2
  return log_ratio_P2[:, 0] - log_ratio_P2[:, 1]


def loss(
  config: DPOLossConfig, logp_P2, ref_logp_P2, weight_P, counts_P, total
):
  """Returns one microbatch's share of the loss, and metrics.

  Args:
    config: Parameters of the loss; static under jit.
    logp_P2: float32 log π of whole responses, chosen and rejected.
    ref_logp_P2: float32 log π_ref of the same responses.
    weight_P: Weight of each pair's loss: 1, or N/N_g · α_g.
    counts_P: 1, or 0 for a pair that pads the batch.
    total: Number of pairs with counts_P = 1 in the whole batch.

  Returns:
    The loss and a dict of metrics. All of them add up over microbatches.
  """
  log_ratio_P = log_ratio(logp_P2, ref_logp_P2)
  reward_P2 = config.beta * (logp_P2 - ref_logp_P2)

  def mean(x_P):
    return jnp.sum(jnp.where(counts_P > 0, x_P, 0)) / total

  value = mean(weight_P * per_pair(config, log_ratio_P))
  return value, {
    'loss': value,
    'accuracy': mean(common.pairwise_accuracy(log_ratio_P)),
    'rewards/margins': mean(config.beta * log_ratio_P),
    'rewards/chosen': mean(reward_P2[:, 0]),
    'rewards/rejected': mean(reward_P2[:, 1]),
    'logps/chosen': mean(logp_P2[:, 0]),
    'logps/rejected': mean(logp_P2[:, 1]),
  }


@dataclasses.dataclass(frozen=True)
class GroupRobust:
  """The group weights α of group-robust DPO and their update.

  Attributes:
    step_size: η, at least 0.
    counts: N_g, the number of pairs of each group in the training set.
  """

  step_size: float
  counts: tuple[int, ...]

  def __post_init__(self):
    if self.step_size < 0:
      raise UserError(
        f'dpo: group_dro_step_size must not be below 0, got {self.step_size}'
      )
    if len(self.counts) < 2:
      raise UserError(
        'dpo: group-robust training needs several groups, and '
        f'there is {len(self.counts)}; set group_robust=False'
      )

  def initial(self) -> np.ndarray:
    """Returns α before the first step: equal weights."""
    return np.full(len(self.counts), 1 / len(self.counts), np.float32)

  def inverse_frequency(self):
    """Returns N/N_g of each group."""
    counts_g = jnp.array(self.counts, jnp.float32)
    return counts_g.sum() / counts_g

  def update(self, alpha_g, loss_P, group_P, counts_P):
    """Returns α after a batch of losses, by exponentiated gradient ascent."""
    pair_loss_P = jnp.where(counts_P > 0, loss_P, 0)
    pair_loss_P *= self.inverse_frequency()[group_P]
    total = jnp.maximum(jnp.sum(counts_P), 1)
    loss_g = (
      jax.ops.segment_sum(pair_loss_P, group_P, num_segments=len(self.counts))
      / total
    )
    # A weight that has underflowed to 0 in float32 can grow again.
    log_g = jnp.log(jnp.maximum(alpha_g, jnp.finfo(jnp.float32).tiny))
    return jax.nn.softmax(log_g + self.step_size * loss_g)

  def pair_weights(self, alpha_g, group_P):
    """Returns N/N_g · α_g of each pair."""
    return (self.inverse_frequency() * alpha_g)[group_P]
