"""Rotary position embedding (RoPE), with YaRN and Llama 3 context extension."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.config.schema.model import RopeConfig
from r1jax.model import quant


def frequencies(config: RopeConfig, width: int) -> np.ndarray:
  """Returns the radians per token of each pair, float32 [width / 2]."""
  c = config
  freq = c.rope_theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
  if c.rope_type == 'yarn':
    freq = freq * (1 - (1 - 1 / c.factor) * _yarn_slowed(c, width))
  if c.rope_type == 'llama3':
    turns = c.original_max_position_embeddings * freq / (2 * math.pi)
    keep = np.clip(
      (turns - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor),
      0,
      1,
    )
    freq = freq * (keep + (1 - keep) / c.factor)
  return freq.astype(np.float32)


def _yarn_slowed(config: RopeConfig, width: int) -> np.ndarray:
  """Returns YaRN's ramp over pairs, [width / 2].

  It is 0 for pairs that keep their frequency, 1 for those whose frequency is
  divided by `factor`, and linear in between.
  """
  context = config.original_max_position_embeddings

  def pair(turns):  # Index of the pair that rotates so often in the context.
    return (
      width
      * math.log(context / (turns * 2 * math.pi))
      / (2 * math.log(config.rope_theta))
    )

  first = max(math.floor(pair(config.beta_fast)), 0)
  last = min(math.ceil(pair(config.beta_slow)), width - 1)
  ramp = (np.arange(width // 2) - first) / max(last - first, 1e-3)
  return np.clip(ramp, 0, 1)


def magnitude(config: RopeConfig) -> float:
  """Returns the factor on rotated numbers (YaRN's attention scaling), else 1."""
  if config.rope_type != 'yarn':
    return 1.0
  return _m(config, config.mscale) / _m(config, config.mscale_all_dim)


def softmax_factor(config: RopeConfig) -> float:
  """Returns the factor on the softmax scale of attention (YaRN), else 1."""
  if config.rope_type != 'yarn':
    return 1.0
  return _m(config, config.mscale_all_dim) ** 2


def _m(config: RopeConfig, scale: float) -> float:
  return 0.1 * scale * math.log(config.factor) + 1


def rotate(x: jax.Array, position: jax.Array, config: RopeConfig) -> jax.Array:
  """Rotates every pair of x by position · frequency, in float32 at least.

  Args:
    x: [..., R] queries or keys.
    position: int32 token positions, broadcastable to x.shape[:-1].
    config: Frequencies and the layout of pairs.

  Returns:
    [..., R] in the dtype of x.
  """
  angle = position[..., None].astype(quant.wide(x.dtype)) * frequencies(
    config, x.shape[-1]
  )
  cos, sin = (magnitude(config) * f(angle) for f in (jnp.cos, jnp.sin))
  wide = x.astype(quant.wide(x.dtype))
  if config.pairs == 'adjacent':
    a, b = wide[..., 0::2], wide[..., 1::2]
    rotated = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return rotated.reshape(x.shape).astype(x.dtype)
  a, b = jnp.split(wide, 2, -1)
  rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
  return rotated.astype(x.dtype)
