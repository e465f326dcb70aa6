"""Advantages from rewards."""

import jax
import jax.numpy as jnp


def group(
  reward_B,
  group_B,
  num_groups: int,
  eps: float = 1e-4,
  scale_by_std: bool = True,
  scorable_B=None,
):
  """(r − mean) / (std + ε) within each group (DeepSeekMath section 4.1.2).

  The standard deviation is the sample one (n − 1). A group whose rewards are
  all equal gets exactly 0.

  Example, one group: rewards [1, 0, 0, 1] have mean 0.5 and std 0.577, so the
  advantages are [0.866, −0.866, −0.866, 0.866].

  Args:
    reward_B: float32.
    group_B: int32 in [0, num_groups); rows may come in any order.
    num_groups: How many groups there are.
    eps: Added to the standard deviation.
    scale_by_std: False leaves r − mean (Dr. GRPO).
    scorable_B: bool, or None for all; the others have no reward: they count in
      no mean or deviation, and their advantage is 0.

  Returns:
    adv_B, and varied_P: bool, whether the group's rewards differ at all.
  """
  if scorable_B is None:
    scorable_B = jnp.ones_like(reward_B, bool)

  def total(x_B):
    return jax.ops.segment_sum(
      jnp.where(scorable_B, x_B, 0.0), group_B, num_groups
    )

  def highest(x_B):
    return jax.ops.segment_max(
      jnp.where(scorable_B, x_B, -jnp.inf), group_B, num_groups
    )

  count_P = jnp.maximum(total(jnp.ones_like(reward_B)), 1)
  mean_P = total(reward_B) / count_P
  varied_P = highest(reward_B) > -highest(-reward_B)
  # The mean of equal floats may differ from them in the last bit: mask it.
  centred_B = jnp.where(
    varied_P[group_B] & scorable_B, reward_B - mean_P[group_B], 0.0
  )
  if scale_by_std:
    std_P = jnp.sqrt(total(centred_B**2) / jnp.maximum(count_P - 1, 1))
    centred_B /= std_P[group_B] + eps
  return centred_B, varied_P
