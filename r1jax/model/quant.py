"""Matrix products in block-scaled FP8 (DeepSeek-V3 section 3.3).

The operands of a product are quantized to E4M3 with a separate scale for each
small group of numbers: activations and gradients in tiles of 1 × 128 along the
contracted axis, weights in blocks of 128 × 128.

A device's FP8 unit multiplies the E4M3 numbers themselves, in chunks of 128 of
the contracted axis; the sums of each chunk are scaled and added in float32,
which is V3's promotion of partial sums. XLA has no product that promotes
internally, so a matrix of partial sums goes to memory and back for every chunk,
which limits the speed. On a device without an FP8 unit the same numbers are
simulated by float32 products at the highest precision (by default TPUs round
operands to bfloat16, GPUs to TF32).
"""

from collections.abc import Callable
from functools import partial
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.sharding import Layout

BLOCK = 128  # Numbers per tile; blocks of weights are BLOCK × BLOCK.
E4M3_MAX = 448.0


def wide(dtype):
  """Returns the dtype for norms, sums and angles: at least float32."""
  return jnp.promote_types(dtype, jnp.float32)


def has_unit(device: jax.Device) -> bool:
  """Returns whether a device can multiply E4M3 numbers directly.

  NVIDIA GPUs can from compute capability 8.9 on (Ada, Hopper), TPUs from the
  seventh generation on (the fifth and sixth have other FP8 formats only). The
  answer for unknown devices is no.
  """
  if device.platform == 'tpu':  # 'TPU v6 lite', 'TPU7x'
    generation = re.match(r'TPU ?v?(\d+)', device.device_kind)
    return generation is not None and int(generation[1]) >= 7
  # AMD's capability is a name, 'gfx942'; a CPU has none.
  capability = re.fullmatch(
    r'(\d+)\.(\d+)', str(getattr(device, 'compute_capability', ''))
  )
  return capability is not None and (
    int(capability[1]),
    int(capability[2]),
  ) >= (8, 9)


class Scaled(NamedTuple):
  """E4M3 numbers, and the float32 scale of each group of them."""

  number: jax.Array
  scale: jax.Array


def _scaled(groups: jax.Array, axes: tuple[int, ...]) -> Scaled:
  """Quantizes groups that span the given axes, each by its largest number."""
  largest = jnp.max(jnp.abs(groups), axes, keepdims=True)
  scale = jnp.where(largest > 0, largest / E4M3_MAX, 1.0)
  return Scaled((groups / scale).astype(jnp.float8_e4m3fn), scale)


def _rounded(groups: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Quantizes groups and returns them dequantized, float32."""
  scaled = _scaled(groups, axes)
  return scaled.number.astype(jnp.float32) * scaled.scale


def tiles(x: jax.Array, axis: int) -> jax.Array:
  """Rounds x in tiles of 128 numbers along an axis; returns float32."""
  axis %= x.ndim
  size = x.shape[axis]
  tile = min(BLOCK, size)  # A shorter axis is one tile without padding.
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, -size % tile)
  wide = jnp.pad(x.astype(jnp.float32), pad)
  shape = (*x.shape[:axis], -1, tile, *x.shape[axis + 1 :])
  scaled = _rounded(wide.reshape(shape), (axis + 1,)).reshape(wide.shape)
  return jax.lax.slice_in_dim(scaled, 0, size, axis=axis)


def blocks(w: jax.Array) -> jax.Array:
  """Rounds w in blocks of 128 × 128 of its last two axes; returns float32."""
  *lead, rows, columns = w.shape
  wide = jnp.pad(
    w.astype(jnp.float32),
    [(0, 0)] * len(lead) + [(0, -rows % BLOCK), (0, -columns % BLOCK)],
  )
  shape = (
    *lead,
    wide.shape[-2] // BLOCK,
    BLOCK,
    wide.shape[-1] // BLOCK,
    BLOCK,
  )
  scaled = _rounded(wide.reshape(shape), (len(lead) + 1, len(lead) + 3))
  return scaled.reshape(wide.shape)[..., :rows, :columns]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(
  multiply: Callable, units: Layout | None, x: jax.Array, w: jax.Array, *rest
):
  """Computes multiply(x, w, *rest) in FP8, and so its two gradients.

  Args:
    multiply: Function that is linear in x and in w and contracts the last axis
      of x with the second last of w. Static.
    units: Layout of the devices whose FP8 units multiply; None simulates. FP8
      units compute matrix products only: w is then [D, F], without `rest`. On a
      mesh x is [B, ..., T, D]. Static.
    x: [..., T, D] activations.
    w: [..., D, F] weights.
    *rest: Integer arrays that `multiply` takes.

  Returns:
    The product in the dtype of x.
  """
  if units:
    return _tokens_product(units, _tiles(x, -1), _blocks(w)).astype(x.dtype)
  with jax.default_matmul_precision('highest'):
    return multiply(tiles(x, -1), blocks(w), *rest).astype(x.dtype)


def _forward(multiply, units, x, w, *rest):
  return product(multiply, units, x, w, *rest), (x, w, rest)


def _backward(multiply, units, kept, dy):
  x, w, rest = kept
  # The rounded activations are rounded again along tokens, as in V3.
  once = tiles(x, -1)
  if units:
    dx = _tokens_product(units, _tiles(dy, -1), _blocks(w.T))
    dw = _weight_product(units, _tiles(once, -2), _tiles(dy, -2))
  else:
    with jax.default_matmul_precision('highest'):
      dx = jax.vjp(
        lambda x: multiply(x, blocks(w), *rest), x.astype(jnp.float32)
      )[1](tiles(dy, -1))[0]
      dw = jax.vjp(
        lambda w: multiply(tiles(once, -2), w, *rest), w.astype(jnp.float32)
      )[1](tiles(dy, -2))[0]
  return (dx.astype(x.dtype), dw.astype(w.dtype)) + (None,) * len(rest)


product.defvjp(_forward, _backward)


# On a mesh, a loop over a sharded axis would communicate in every iteration. So
# each device gathers the whole chunks that it multiplies, as E4M3 numbers; and
# the tiles are the same on any number of devices.


def _tokens_product(units: Layout, a: Scaled, b: Scaled) -> jax.Array:
  """Multiplies activations by weights, with tokens sharded.

  Args:
    units: Layout of the devices.
    a: [chunks, B, ..., T, 128].
    b: [chunks, F, 128].

  Returns:
    float32 [B, ..., T, F].
  """
  if units.mesh.size == 1:
    return _promoted(a, b)
  shape = a.number.shape[1:-1]
  letters = 'B' + '_' * (len(shape) - 2) + 't'
  tokens = units.fitting_spec(shape, letters[-len(shape) :])
  return jax.shard_map(
    _promoted,
    mesh=units.mesh,
    in_specs=(PartitionSpec(None, *tokens), PartitionSpec()),
    out_specs=tokens,
    check_vma=False,
  )(a, b)


def _weight_product(units: Layout, a: Scaled, b: Scaled) -> jax.Array:
  """Multiplies activations by gradients, with B and F sharded.

  Args:
    units: Layout of the devices.
    a: [chunks, B, ..., D, 128], tiles along tokens.
    b: [chunks, B, ..., F, 128], tiles along tokens.

  Returns:
    float32 [D, F].
  """

  def over(axes, a, b):
    joined = (
      Scaled(*(x.reshape(-1, *x.shape[-2:]) for x in operand))
      for operand in (a, b)
    )
    return jax.lax.psum(_promoted(*joined), axes)

  if units.mesh.size == 1:
    return over((), a, b)
  shape = b.number.shape[1:-1]
  letters = 'B' + '_' * (len(shape) - 2) + 't'
  *rows, columns = units.fitting_spec(shape, letters[-len(shape) :])
  return jax.shard_map(
    partial(over, rows[0] if rows and rows[0] else ()),
    mesh=units.mesh,
    in_specs=(PartitionSpec(None, *rows), PartitionSpec(None, *rows, columns)),
    out_specs=PartitionSpec(None, columns),
    check_vma=False,
  )(a, b)


def _promoted(a: Scaled, b: Scaled) -> jax.Array:
  """Computes Σ_c scale_c · (a_c b_cᵀ) over chunks c of the contracted axis.

  Args:
    a: Numbers [chunks, ..., 128] and scales [chunks, ..., 1].
    b: Numbers [chunks, F, 128] and scales [chunks, F, 1].

  Returns:
    float32 [..., F].
  """

  def add(total, chunk):
    a, b = chunk
    part = jax.lax.dot_general(
      a.number,
      b.number,
      (((a.number.ndim - 1,), (1,)), ((), ())),
      precision='highest',  # Else a GPU may round sums within a chunk.
      preferred_element_type=jnp.float32,
    )
    return total + part * a.scale * b.scale[:, 0], None

  zeros = jnp.zeros((*a.number.shape[1:-1], b.number.shape[1]), jnp.float32)
  return jax.lax.scan(add, zeros, (a, b))[0]


def _tiles(x: jax.Array, axis: int) -> Scaled:
  """Quantizes tiles along an axis and moves it apart: [chunks, ..., 128]."""
  x = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)])
  return _scaled(
    jnp.moveaxis(x.reshape(*x.shape[:-1], -1, BLOCK), -2, 0), (-1,)
  )


def _blocks(w_DF: jax.Array) -> Scaled:
  """Quantizes blocks of a weight: [chunks of D, F, 128].

  The scale of a block is repeated along F.
  """
  D, F = w_DF.shape
  wide = jnp.pad(w_DF.astype(jnp.float32), [(0, -D % BLOCK), (0, -F % BLOCK)])
  wide = wide.reshape(-1, BLOCK, wide.shape[1] // BLOCK, BLOCK)
  number, scale = _scaled(wide.transpose(0, 2, 3, 1), (2, 3))
  return Scaled(
    number.reshape(number.shape[0], -1, BLOCK)[:, :F],
    jnp.repeat(scale[:, :, 0], BLOCK, axis=1)[:, :F],
  )
