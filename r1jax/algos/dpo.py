"""Direct preference optimisation, and its group-robust form.

With the log-ratio of a pair, of a policy π and a fixed reference π_ref,

  h = [log π(y_w|x) − log π_ref(y_w|x)] − [log π(y_l|x) − log π_ref(y_l|x)]

  'sigmoid'  −(1 − ε) log σ(βh) − ε log σ(−βh)      arXiv 2305.18290, eq. 7;
                                                    ε > 0 is cDPO
  'ipo'      (h − 1/(2β))²                          arXiv 2310.12036, eq. 17

Group-robust (arXiv 2405.20304, "Group Robust Preference Optimization", which
shares four letters with another method): groups g = 1 … K of N_g pairs,
N = Σ N_g, prefer differently, and the worst of them is what counts:

  min_π max_{α ∈ Δ_K} Σ_g α_g L_g(π),    L_g the mean loss of group g.

Its algorithm 1 draws a pair, and then its group's weight and the policy move,

  α_g ← α_g · exp(η · N/N_g · ℓ),  α ← α / Σ α         (exponentiated gradient)
  θ   ← θ − lr · N/N_g · α_g · ∇ℓ

N/N_g makes up for how often a group is drawn, so that in the mean over draws
both steps see L_g and not N_g/N · L_g. Here a batch of B pairs is drawn at
once and both are the mean of its B single steps:

  α_g ← α_g · exp(η · 1/B Σ_{i of g} N/N_g ℓ_i),    loss = 1/B Σ_i N/N_g α_g ℓ_i

K = 1 is plain DPO; η = 0 is DPO with every group alike, however large it is.
(The authors' code does the same with its `divide_by_totalcount`, but for 1/B,
which their η and rate take in.)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import common
from r1jax.errors import UserError

_LOSSES = ('sigmoid', 'ipo')


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of a pair.

  Attributes:
    beta: β; the larger, the nearer to the reference.
    loss: 'sigmoid' or 'ipo'.
    label_smoothing: ε, the chance that a label is wrong; of 'sigmoid'.
  """

  beta: float
  loss: str = 'sigmoid'
  label_smoothing: float = 0.0

  def __post_init__(self):
    if self.loss not in _LOSSES:
      raise UserError(f'dpo: loss must be one of {_LOSSES}, got {self.loss!r}')
    if self.beta <= 0:
      raise UserError(f'dpo: beta must be above 0, got {self.beta}')
    if not 0 <= self.label_smoothing < 0.5:
      raise UserError(
        'dpo: label_smoothing must lie within [0, 0.5), got '
        f'{self.label_smoothing}'
      )
    if self.label_smoothing and self.loss != 'sigmoid':
      raise UserError("dpo: label_smoothing is of loss = 'sigmoid'")

  def of_pairs(self, ratio_P):
    """loss_P of the log-ratios h."""
    if self.loss == 'ipo':
      return jnp.square(ratio_P - 1 / (2 * self.beta))
    logit_P, smooth = self.beta * ratio_P, self.label_smoothing
    return (1 - smooth) * jax.nn.softplus(-logit_P) + smooth * jax.nn.softplus(
      logit_P
    )


def ratio(logp_P2, ref_logp_P2):
  """h_P; column 0 is of the chosen responses, column 1 of the rejected."""
  gain_P2 = logp_P2 - ref_logp_P2
  return gain_P2[:, 0] - gain_P2[:, 1]


def loss(objective: Objective, logp_P2, ref_logp_P2, weight_P, counts_P, total):
  """One microbatch's share of the loss.

  Args:
    objective: Static.
    logp_P2: float32, log π of whole responses, chosen and rejected.
    ref_logp_P2: The same of the reference.
    weight_P: Of each pair's loss: 1, or N/N_g · α_g.
    counts_P: 1, or 0 for a pair that only fills the batch.
    total: Pairs of the WHOLE batch that count.

  Returns:
    The loss and a dict of metrics; all of them sum over microbatches.
  """
  ratio_P = ratio(logp_P2, ref_logp_P2)
  gain_P2 = objective.beta * (logp_P2 - ref_logp_P2)

  def mean(x_P):
    return jnp.sum(jnp.where(counts_P > 0, x_P, 0)) / total

  value = mean(weight_P * objective.of_pairs(ratio_P))
  return value, {
    'loss': value,
    'accuracy': mean(common.won(ratio_P)),
    'reward/gap': mean(objective.beta * ratio_P),
    'reward/chosen': mean(gain_P2[:, 0]),
    'reward/rejected': mean(gain_P2[:, 1]),
    'logp/chosen': mean(logp_P2[:, 0]),
    'logp/rejected': mean(logp_P2[:, 1]),
  }


@dataclasses.dataclass(frozen=True)
class Robust:
  """The weights of groups.

  Attributes:
    step: η.
    counts: N_g of each group, pairs of the training set.
  """

  step: float
  counts: tuple[int, ...]

  def __post_init__(self):
    if self.step < 0:
      raise UserError(f'dpo: group_step must not be below 0, got {self.step}')
    if len(self.counts) < 2:
      raise UserError(
        'dpo: group-robust training needs several groups, and '
        f'there is {len(self.counts)}; set group_robust=False'
      )

  def first(self) -> np.ndarray:
    """α_g before the first step: every group alike."""
    return np.full(len(self.counts), 1 / len(self.counts), np.float32)

  def rarity(self):
    """N/N_g of each group."""
    counts_g = jnp.array(self.counts, jnp.float32)
    return counts_g.sum() / counts_g

  def moved(self, alpha_g, loss_P, group_P, counts_P):
    """α_g after a batch of losses; see the module."""
    each_P = jnp.where(counts_P > 0, loss_P, 0) * self.rarity()[group_P]
    total = jnp.maximum(jnp.sum(counts_P), 1)
    loss_g = (
      jax.ops.segment_sum(each_P, group_P, num_segments=len(self.counts))
      / total
    )
    # A weight that has come to 0 in float32 may rise again.
    log_g = jnp.log(jnp.maximum(alpha_g, jnp.finfo(jnp.float32).tiny))
    return jax.nn.softmax(log_g + self.step * loss_g)

  def weight(self, alpha_g, group_P):
    """N/N_g · α_g of each pair."""
    return (self.rarity() * alpha_g)[group_P]
