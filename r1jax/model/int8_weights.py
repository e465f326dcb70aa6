"""Weights in 8 bits, to sample with: half of the memory of bfloat16.

A weight matrix is rounded to int8 with a float32 scale for each block of up to
128 numbers along its last axis but one, as V3's FP8 weights have one for each
block of 128 × 128 (section 3.3.2). Products are computed in the compute dtype:
a weight is restored where it is used.
"""

import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import int8
from r1jax.sharding import Layout

_BLOCK = 128
_FLOAT32 = ('router', 'bias', 'scale')  # Small, and what they decide is not.
_UNTOUCHED = ('embedding', 'head', 'scalar')  # They are not read by `weight`.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
  """A weight in 8 bits.

  Attributes:
    rounded: int8 numbers in the shape of the weight.
    scale: float32 scales; the last axis but one counts blocks.
  """

  rounded: Any
  scale: Any

  def astype(self, dtype) -> jax.Array:
    """Returns the weight in this dtype."""
    block = self.rounded.shape[-2] // self.scale.shape[-2]
    scale = jnp.repeat(self.scale, block, axis=-2)
    return (self.rounded.astype(jnp.float32) * scale).astype(dtype)


def is_rounded(path: tuple[str, ...], names: tuple) -> bool:
  """Returns whether a parameter is kept in 8 bits.

  Args:
    path: Its path in the parameters.
    names: The letters of its dimensions, L of a stack among them.
  """
  if path[-1] in _FLOAT32 + _UNTOUCHED or path[-1].endswith('bias'):
    return False
  return len([name for name in names if name != 'L']) >= 2


def block_size(shape: tuple[int, ...], names: tuple, layout: Layout) -> int:
  """Returns the numbers of a block, which lies on one device."""
  of_device = shape[-2] // layout.weight_parts(names[-2])
  return math.gcd(_BLOCK, of_device)


def quantize(weight: jax.Array, block: int) -> Int8Weight:
  """Rounds a weight to 8 bits, so that the largest of a block is ±127."""
  *first, rows, last = weight.shape
  blocks = weight.astype(jnp.float32).reshape(
    *first, rows // block, block, last
  )
  scale = int8.scale_of(jnp.abs(blocks).max(-2))
  rounded = jnp.round(blocks / scale[..., None, :])
  return Int8Weight(
    rounded=rounded.reshape(weight.shape).astype(jnp.int8), scale=scale
  )


def quantized(params: Any, boxes: Any, layout: Layout) -> Any:
  """Returns parameters whose matrices are in 8 bits.

  Args:
    params: Parameters with stacked layers.
    boxes: Their nn.Partitioned; see parameters.parameter_shapes.
    layout: The layout to sample with.
  """

  def of(path, box: nn.Partitioned, weight):
    if not is_rounded(_names(path), box.names):
      return weight
    return quantize(weight, block_size(weight.shape, box.names, layout))

  return jax.tree_util.tree_map_with_path(
    of, boxes, params, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def shardings(plain: Any, boxes: Any) -> Any:
  """Returns the shardings of quantized parameters, given those of plain ones."""

  def of(path, box: nn.Partitioned, sharding):
    if not is_rounded(_names(path), box.names):
      return sharding
    return Int8Weight(rounded=sharding, scale=sharding)

  return jax.tree_util.tree_map_with_path(
    of, boxes, plain, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def bytes_of(
  path: tuple[str, ...], box: nn.Partitioned, layout: Layout, plain: int
) -> float:
  """Returns the bytes that each number of a parameter takes.

  Args:
    path: Its path in the parameters.
    box: Its shape and letters.
    layout: The layout to sample with.
    plain: Bytes of a number that is not rounded.
  """
  if not is_rounded(path, box.names):
    return plain
  return 1 + 4 / block_size(box.value.shape, box.names, layout)


def _names(path) -> tuple[str, ...]:
  return tuple(str(getattr(key, 'key', key)) for key in path)
