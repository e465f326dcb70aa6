"""Losses of reward models (DeepSeek-R1, second version, section 3.1).

  helpful  −log σ(r_w − r_l − m) + c · (r_w + r_l)²      pairs
  safe     −y log σ(r) − (1 − y) log σ(−r)               single responses

r_w and r_l are the scores of the chosen and of the rejected response; their
difference is the log-odds of the preference (Bradley and Terry). Pairs do not
determine the level of the scores; c > 0 pulls it to 0 (arXiv 2312.09244,
section 2).
"""

import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.config.schema.preferences import PairwiseLossConfig


def pairwise(config: PairwiseLossConfig, chosen_P, rejected_P, weight_P, total):
  """Returns one microbatch's share of the mean over the whole batch.

  Args:
    config: The margin, and the pull of scores to 0.
    chosen_P, rejected_P: float32 scores.
    weight_P: Weight of each pair; 0 for a pair that pads the batch.
    total: Sum of the weights of the whole batch.

  Returns:
    The loss and a dict of metrics. All of them add up over microbatches.
  """
  margin_P = chosen_P - rejected_P
  sum_P = chosen_P + rejected_P
  center_P = config.center_rewards_coefficient * jnp.square(sum_P)
  loss_P = jax.nn.softplus(config.margin - margin_P) + center_P
  mean = _mean(weight_P, total)
  loss = mean(loss_P)
  return loss, {
    'loss': loss,
    'accuracy': mean(common.pairwise_accuracy(margin_P)),
    'rewards/margins': mean(margin_P),
    'rewards/mean': mean(sum_P / 2),
  }


def pointwise(score_B, safe_B, weight_B, total):
  """Returns the binary cross-entropy of single responses, and metrics.

  Args:
    score_B: float32 log-odds that a response is safe.
    safe_B: float32 labels, 1 for safe and 0 for unsafe.
    weight_B: Weight of each response; 0 for one that pads the batch.
    total: Sum of the weights of the whole batch.
  """
  sign_B = 2 * safe_B - 1
  mean = _mean(weight_B, total)
  loss = mean(jax.nn.softplus(-sign_B * score_B))
  return loss, {
    'loss': loss,
    'accuracy': mean(common.pairwise_accuracy(sign_B * score_B)),
    'rewards/mean': mean(score_B),
  }


def _mean(weight, total):
  """Returns a weighted mean that a NaN in a row of weight 0 does not reach."""
  return lambda x: jnp.sum(jnp.where(weight > 0, x * weight, 0)) / total
