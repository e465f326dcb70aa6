"""Advantage estimators: from the rewards of a step to one number a completion.

An estimator is registered under the name that `config.rl.adv_estimator` gives,
and is called as

  adv_B = estimator(reward_B, group_B, num_groups, scorable_B, config)

with
  reward_B: float32 rewards.
  group_B: int32 group of each row, in [0, num_groups); in any order.
  num_groups: Number of groups; the rows of a group answer one prompt.
  scorable_B: bool, False for rows without a reward. They must not count, and
    their advantage must be 0.
  config: RLConfig, the keys of config.rl.

It returns float32 advantages, adv_B.
"""

import jax
import jax.numpy as jnp

from r1jax import registry
from r1jax.config.schema.rl import RLConfig

_EPS = 1e-4  # ε of `grpo`.


@registry.adv_estimator('grpo')
def grpo(reward_B, group_B, num_groups: int, scorable_B, config: RLConfig):
  """Returns (r − mean) / (std + ε) within each group (DeepSeekMath 4.1.2).

  The standard deviation is that of a sample (n − 1). All advantages of a group
  with equal rewards are exactly 0. With config.scale_rewards = False they are
  r − mean, without the division (Dr. GRPO).

  Example with one group: the rewards [1, 0, 0, 1] have the mean 0.5 and the
  standard deviation 0.577, so the advantages are [0.866, −0.866, −0.866,
  0.866].

  Args:
    reward_B, group_B, num_groups, scorable_B, config: See the module.
  """
  varied_P = varied_groups(reward_B, group_B, num_groups, scorable_B)
  count_P = jnp.maximum(
    _group_sum(jnp.ones_like(reward_B), group_B, num_groups, scorable_B), 1
  )
  mean_P = _group_sum(reward_B, group_B, num_groups, scorable_B) / count_P
  # The mean of equal floats may differ from them in the last bit: mask it.
  centred_B = jnp.where(
    varied_P[group_B] & scorable_B, reward_B - mean_P[group_B], 0.0
  )
  if config.scale_rewards:
    squares_P = _group_sum(centred_B**2, group_B, num_groups, scorable_B)
    std_P = jnp.sqrt(squares_P / jnp.maximum(count_P - 1, 1))
    centred_B /= std_P[group_B] + _EPS
  return centred_B


@registry.adv_estimator('rloo')
def rloo(reward_B, group_B, num_groups: int, scorable_B, config: RLConfig):
  """Returns r minus the mean of the group's other rewards (arXiv 2402.14740).

  This is REINFORCE leave-one-out, section 3.2 there:
    A_i = r_i − 1 / (k − 1) Σ_{j ≠ i} r_j = k / (k − 1) (r_i − mean)

  Example with one group: the rewards [1, 0, 0] have the advantages [1, −0.5,
  −0.5].

  Args:
    reward_B, group_B, num_groups, scorable_B, config: See the module.
  """
  del config
  varied_P = varied_groups(reward_B, group_B, num_groups, scorable_B)
  count_P = _group_sum(jnp.ones_like(reward_B), group_B, num_groups, scorable_B)
  sum_P = _group_sum(reward_B, group_B, num_groups, scorable_B)
  others_B = sum_P[group_B] - reward_B
  baseline_B = others_B / jnp.maximum(count_P[group_B] - 1, 1)
  return jnp.where(varied_P[group_B] & scorable_B, reward_B - baseline_B, 0.0)


@registry.adv_estimator('gae')
def zeros(reward_B, group_B, num_groups: int, scorable_B, config: RLConfig):
  """Returns zeros, which the critic replaces by the advantages of each token.

  See algos/gae.py for generalized advantage estimation.

  Args:
    reward_B, group_B, num_groups, scorable_B, config: See the module.
  """
  del group_B, num_groups, scorable_B, config
  return jnp.zeros_like(reward_B)


def varied_groups(reward_B, group_B, num_groups: int, scorable_B):
  """Returns bool [P], whether the rewards of a group differ.

  Args:
    reward_B, group_B, num_groups, scorable_B: See the module.
  """

  def group_max(x_B):
    return jax.ops.segment_max(
      jnp.where(scorable_B, x_B, -jnp.inf), group_B, num_groups
    )

  return group_max(reward_B) > -group_max(-reward_B)


def _group_sum(x_B, group_B, num_groups: int, scorable_B):
  return jax.ops.segment_sum(
    jnp.where(scorable_B, x_B, 0.0), group_B, num_groups
  )
