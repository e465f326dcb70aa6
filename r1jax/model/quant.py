"""Precision: block-scaled FP8 products (DeepSeek-V3 section 3.3).

Every operand of a product is rounded to E4M3 with a scale of its own for each
small group of numbers: activations and gradients in tiles of 1 × 128 along the
contracted axis, weights in blocks of 128 × 128.

A device's FP8 unit multiplies the E4M3 numbers themselves, a stretch of 128 of
the contracted axis at a time; each stretch's sums are scaled and added in
float32, which is V3's promotion of partial sums. XLA has no product that
promotes within: a matrix of partial sums goes to memory and back for every
stretch, and bounds the speed. Where the device has no FP8 unit the same
numbers are simulated by float32 products at the highest precision: by default
TPUs round their operands to bfloat16, GPUs to TF32.
"""

from collections.abc import Callable
from functools import partial
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.sharding import Layout

BLOCK = 128  # Numbers a tile; weights are scaled in BLOCK × BLOCK.
E4M3_MAX = 448.0


def wide(dtype):
  """What norms, sums and angles are computed in: float32 at least."""
  return jnp.promote_types(dtype, jnp.float32)


def has_unit(device: jax.Device) -> bool:
  """Whether a device multiplies E4M3 numbers as they are.

  NVIDIA's do from compute capability 8.9 on (Ada, Hopper), TPUs from the
  seventh generation on: the fifth and sixth know other FP8 formats alone. A
  device of which this is not known counts as one that does not.
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
  """E4M3 numbers, and the float32 that stands for 1 in each group of them."""

  number: jax.Array
  scale: jax.Array


def _scaled(groups: jax.Array, axes: tuple[int, ...]) -> Scaled:
  """Each group, which spans axes, under the scale that its largest needs."""
  largest = jnp.max(jnp.abs(groups), axes, keepdims=True)
  scale = jnp.where(largest > 0, largest / E4M3_MAX, 1.0)
  return Scaled((groups / scale).astype(jnp.float8_e4m3fn), scale)


def _rounded(groups: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Each group's numbers as E4M3 holds them under the group's scale."""
  found = _scaled(groups, axes)
  return found.number.astype(jnp.float32) * found.scale


def tiles(x: jax.Array, axis: int) -> jax.Array:
  """x with every 128 numbers along an axis rounded together, float32."""
  axis %= x.ndim
  size = x.shape[axis]
  tile = min(BLOCK, size)  # A short row is one tile, and needs no padding.
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, -size % tile)
  wide = jnp.pad(x.astype(jnp.float32), pad)
  shape = (*x.shape[:axis], -1, tile, *x.shape[axis + 1 :])
  found = _rounded(wide.reshape(shape), (axis + 1,)).reshape(wide.shape)
  return jax.lax.slice_in_dim(found, 0, size, axis=axis)


def blocks(w: jax.Array) -> jax.Array:
  """w with every 128 × 128 of its last two axes rounded together, float32."""
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
  found = _rounded(wide.reshape(shape), (len(lead) + 1, len(lead) + 3))
  return found.reshape(wide.shape)[..., :rows, :columns]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(
  multiply: Callable, units: Layout | None, x: jax.Array, w: jax.Array, *rest
):
  """multiply(x, w, *rest) in FP8, and its two backward products too.

  Args:
    multiply: Linear in x and in w; contracts the last axis of x with the
      second last of w. Static.
    units: The mesh of the devices whose FP8 units multiply; None simulates.
      Units know matrix products only: w is then [D, F], and there is no rest.
      On a mesh x is [B, ..., T, D]. Static.
    x: [..., T, D], the activations. Tokens lie along T.
    w: [..., D, F].
    rest: Integer arrays that multiply needs.

  Returns:
    In the dtype of x.
  """
  if units:
    return _tokens_product(units, _tiles(x, -1), _blocks(w)).astype(x.dtype)
  with jax.default_matmul_precision('highest'):
    return multiply(tiles(x, -1), blocks(w), *rest).astype(x.dtype)


def _forward(multiply, units, x, w, *rest):
  return product(multiply, units, x, w, *rest), (x, w, rest)


def _backward(multiply, units, kept, dy):
  x, w, rest = kept
  # As V3 does, what the forward pass rounded is rounded again along tokens.
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


# On a mesh a loop over a split axis would wait for other devices at every
# turn. So each device has whole stretches of what it multiplies, gathered in
# E4M3; and the tiles are the same on any number of devices.


def _tokens_product(units: Layout, a: Scaled, b: Scaled) -> jax.Array:
  """[S, B, ..., T, 128], [S, N, 128] → [B, ..., T, N]; tokens are split."""
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
  """[S, B, ..., M, 128], [S, B, ..., N, 128] → [M, N]; B and N are split."""

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
  """Σ_s scale_s · (a_s b_sᵀ), each stretch s of the contracted axis by itself.

  Args:
    a: number [S, ..., 128] and scale [S, ..., 1].
    b: number [S, N, 128] and scale [S, N, 1].

  Returns:
    float32 [..., N]
  """

  def add(total, stretch):
    a, b = stretch
    part = jax.lax.dot_general(
      a.number,
      b.number,
      (((a.number.ndim - 1,), (1,)), ((), ())),
      precision='highest',  # Else a GPU may round sums within a stretch.
      preferred_element_type=jnp.float32,
    )
    return total + part * a.scale * b.scale[:, 0], None

  zeros = jnp.zeros((*a.number.shape[1:-1], b.number.shape[1]), jnp.float32)
  return jax.lax.scan(add, zeros, (a, b))[0]


def _tiles(x: jax.Array, axis: int) -> Scaled:
  """The tiles along an axis, which goes: [S, ..., 128]."""
  x = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)])
  return _scaled(
    jnp.moveaxis(x.reshape(*x.shape[:-1], -1, BLOCK), -2, 0), (-1,)
  )


def _blocks(w_KN: jax.Array) -> Scaled:
  """The blocks, K cut into stretches: [S, N, 128]; scales repeat along N."""
  K, N = w_KN.shape
  wide = jnp.pad(w_KN.astype(jnp.float32), [(0, -K % BLOCK), (0, -N % BLOCK)])
  wide = wide.reshape(-1, BLOCK, wide.shape[1] // BLOCK, BLOCK)
  number, scale = _scaled(wide.transpose(0, 2, 3, 1), (2, 3))
  return Scaled(
    number.reshape(number.shape[0], -1, BLOCK)[:, :N],
    jnp.repeat(scale[:, :, 0], BLOCK, axis=1)[:, :N],
  )
