"""Group-relative advantages (GRPO)."""

import jax
import jax.numpy as jnp

from r1jax import registry


@registry.adv_estimator('grpo')
def group(
  reward_B,
  group_B,
  num_groups: int,
  eps: float = 1e-4,
  scale_rewards: bool = True,
  scorable_B=None,
):
  """Returns (r − mean) / (std + ε) within each group (DeepSeekMath 4.1.2).

  The standard deviation is that of a sample (n − 1). All advantages of a group
  with equal rewards are exactly 0.

  Example with one group: the rewards [1, 0, 0, 1] have the mean 0.5 and the
  standard deviation 0.577, so the advantages are [0.866, −0.866, −0.866,
  0.866].

  Args:
    reward_B: float32 rewards.
    group_B: int32 group of each row, in [0, num_groups); in any order.
    num_groups: Number of groups.
    eps: ε, added to the standard deviation.
    scale_rewards: False leaves r − mean, without the division (Dr. GRPO).
    scorable_B: bool, False for rows without a reward; None if all have one.
      Rows without a reward are left out of mean and standard deviation, and
      their advantage is 0.

  Returns:
    adv_B, float32, and varied_P, bool: whether the rewards of a group differ.
  """
  if scorable_B is None:
    scorable_B = jnp.ones_like(reward_B, bool)

  def group_sum(x_B):
    return jax.ops.segment_sum(
      jnp.where(scorable_B, x_B, 0.0), group_B, num_groups
    )

  def group_max(x_B):
    return jax.ops.segment_max(
      jnp.where(scorable_B, x_B, -jnp.inf), group_B, num_groups
    )

  count_P = jnp.maximum(group_sum(jnp.ones_like(reward_B)), 1)
  mean_P = group_sum(reward_B) / count_P
  varied_P = group_max(reward_B) > -group_max(-reward_B)
  # The mean of equal floats may differ from them in the last bit: mask it.
  centred_B = jnp.where(
    varied_P[group_B] & scorable_B, reward_B - mean_P[group_B], 0.0
  )
  if scale_rewards:
    std_P = jnp.sqrt(group_sum(centred_B**2) / jnp.maximum(count_P - 1, 1))
    centred_B /= std_P[group_B] + eps
  return centred_B, varied_P
