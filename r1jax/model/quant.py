"""Precision: block-scaled FP8 products (DeepSeek-V3 section 3.3).

Every operand of a product is rounded to E4M3 with a scale of its own for each
small group of numbers: activations and gradients in tiles of 1 × 128 along the
contracted axis, weights in blocks of 128 × 128. The rounded numbers are
multiplied and summed in float32, which is what promotion of the partial sums
amounts to. Devices without an FP8 unit compute the same numbers this way.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 128  # Numbers a tile; weights are scaled in BLOCK × BLOCK.
E4M3_MAX = 448.0


def wide(dtype):
  """What norms, sums and angles are computed in: float32 at least."""
  return jnp.promote_types(dtype, jnp.float32)


def _rounded(groups: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Each group's numbers as E4M3 holds them under the group's scale."""
  largest = jnp.max(jnp.abs(groups), axes, keepdims=True)
  scale = jnp.where(largest > 0, largest / E4M3_MAX, 1.0)
  return (groups / scale).astype(jnp.float8_e4m3fn).astype(
      jnp.float32) * scale


def tiles(x: jax.Array, axis: int) -> jax.Array:
  """x with every 128 numbers along an axis rounded together, float32."""
  axis %= x.ndim
  size = x.shape[axis]
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, -size % BLOCK)
  wide = jnp.pad(x.astype(jnp.float32), pad)
  shape = (*x.shape[:axis], -1, BLOCK, *x.shape[axis + 1:])
  found = _rounded(wide.reshape(shape), (axis + 1,)).reshape(wide.shape)
  return jax.lax.slice_in_dim(found, 0, size, axis=axis)


def blocks(w: jax.Array) -> jax.Array:
  """w with every 128 × 128 of its last two axes rounded together, float32."""
  *lead, rows, columns = w.shape
  wide = jnp.pad(w.astype(jnp.float32), [(0, 0)] * len(lead) + [
      (0, -rows % BLOCK), (0, -columns % BLOCK)])
  shape = (*lead, wide.shape[-2] // BLOCK, BLOCK, wide.shape[-1] // BLOCK,
           BLOCK)
  found = _rounded(wide.reshape(shape), (len(lead) + 1, len(lead) + 3))
  return found.reshape(wide.shape)[..., :rows, :columns]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(multiply: Callable, x: jax.Array, w: jax.Array, *rest):
  """multiply(x, w, *rest) in FP8, and its two backward products too.

  Args:
    multiply: Linear in x and in w; contracts the last axis of x with the
      second last of w. Static.
    x: [..., T, D], the activations. Tokens lie along T.
    w: [..., D, F].
    rest: Integer arrays that multiply needs.

  Returns:
    In the dtype of x.
  """
  return multiply(tiles(x, -1), blocks(w), *rest).astype(x.dtype)


def _forward(multiply, x, w, *rest):
  return product(multiply, x, w, *rest), (x, w, rest)


def _backward(multiply, kept, dy):
  x, w, rest = kept
  dx = jax.vjp(lambda x: multiply(x, blocks(w), *rest),
               x.astype(jnp.float32))[1](tiles(dy, -1))[0]
  # As V3 does, what the forward pass rounded is rounded again along tokens.
  again = tiles(tiles(x, -1), -2)
  dw = jax.vjp(lambda w: multiply(again, w, *rest),
               w.astype(jnp.float32))[1](tiles(dy, -2))[0]
  return (dx.astype(x.dtype), dw.astype(w.dtype)) + (None,) * len(rest)


product.defvjp(_forward, _backward)
