"""What reward models learn from (DeepSeek-R1, second version, section 3.1).

  helpful  −log σ(r_w − r_l − m) + c · (r_w + r_l)²      pairs
  safe     −y log σ(r) − (1 − y) log σ(−r)               single responses

r_w and r_l are the scores of the chosen and of the rejected response, whose
difference is the log-odds of the choice (Bradley and Terry). The data says
nothing of their level; c > 0 draws it to 0 (arXiv 2312.09244, section 2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pairwise:
  """The loss of pairs.

  Attributes:
    margin: m, by how much a chosen response should be ahead.
    centring: c.
  """

  margin: float = 0.0
  centring: float = 0.0

  def __post_init__(self):
    for field in ('margin', 'centring'):
      if getattr(self, field) < 0:
        raise UserError(
          f'reward_model: {field} must not be below 0, got '
          f'{getattr(self, field)}'
        )

  def loss(self, chosen_P, rejected_P, weight_P, total):
    """One microbatch's share of the mean over the whole batch.

    Args:
      chosen_P, rejected_P: float32 scores.
      weight_P: Of each pair; 0 for one that only fills the batch.
      total: Sum of the weights of the WHOLE batch.

    Returns:
      The loss and a dict of metrics; all of them sum over microbatches.
    """
    gap_P = chosen_P - rejected_P
    level_P = chosen_P + rejected_P
    loss_P = jax.nn.softplus(self.margin - gap_P) + self.centring * jnp.square(
      level_P
    )
    mean = _mean(weight_P, total)
    loss = mean(loss_P)
    return loss, {
      'loss': loss,
      'accuracy': mean(common.won(gap_P)),
      'gap': mean(gap_P),
      'score': mean(level_P / 2),
    }


def pointwise(score_B, safe_B, weight_B, total):
  """Binary cross-entropy of single responses; see Pairwise.loss.

  Args:
    score_B: float32, the log-odds of safe.
    safe_B: float32, 1 for safe, 0 for unsafe.
    weight_B, total: As there.
  """
  sign_B = 2 * safe_B - 1
  mean = _mean(weight_B, total)
  loss = mean(jax.nn.softplus(-sign_B * score_B))
  return loss, {
    'loss': loss,
    'accuracy': mean(common.won(sign_B * score_B)),
    'score': mean(score_B),
  }


def _mean(weight, total):
  """Over rows that count; a NaN of the others does not come through."""
  return lambda x: jnp.sum(jnp.where(weight > 0, x * weight, 0)) / total
