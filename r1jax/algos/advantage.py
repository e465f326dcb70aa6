"""Advantages from rewards."""

import jax
import jax.numpy as jnp


def group(reward_B, group_B, num_groups: int, eps: float = 1e-4,
          scale_by_std: bool = True):
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

  Returns:
    adv_B, and varied_G: bool, whether the group's rewards differ at all.
  """
  def total(x_B):
    return jax.ops.segment_sum(x_B, group_B, num_groups)

  count_G = jnp.maximum(total(jnp.ones_like(reward_B)), 1)
  mean_G = total(reward_B) / count_G
  highest_G = jax.ops.segment_max(reward_B, group_B, num_groups)
  lowest_G = jax.ops.segment_min(reward_B, group_B, num_groups)
  varied_G = highest_G > lowest_G
  # The mean of equal floats may differ from them in the last bit: mask it.
  centred_B = jnp.where(varied_G[group_B], reward_B - mean_G[group_B], 0.0)
  if scale_by_std:
    std_G = jnp.sqrt(
        total(centred_B ** 2) / jnp.maximum(count_G - 1, 1))
    centred_B /= std_G[group_B] + eps
  return centred_B, varied_G
