"""Symmetric int8 quantization of cache entries, with a scale for each part."""

import jax.numpy as jnp


def scale_of(largest):
  """Returns the float32 scale with which the largest number becomes ±127."""
  return jnp.where(largest == 0, 1.0, largest / 127)  # NaN stays NaN.


def quantize(x, parts: tuple[int, int]):
  """Quantizes each part of x to int8.

  Args:
    x: [..., X], whose last axis consists of two parts.
    parts: Widths of the two parts.

  Returns:
    float32 scales [..., 2], and int8 numbers [..., X] within ±127.
  """
  largest = jnp.stack(
    [
      jnp.abs(part.astype(jnp.float32)).max(-1)
      for part in jnp.split(x, parts[:1], -1)
    ],
    -1,
  )
  scale = scale_of(largest)
  return scale, jnp.round(x / repeat_scales(scale, parts)).astype(jnp.int8)


def repeat_scales(scale, parts: tuple[int, int]):
  """Repeats the scale of each part over its numbers: [..., 2] → [..., X]."""
  return jnp.concatenate(
    [
      jnp.broadcast_to(scale[..., i : i + 1], (*scale.shape[:-1], size))
      for i, size in enumerate(parts)
    ],
    -1,
  )
