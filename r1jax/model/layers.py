"""Shared layers: weights with named axes, linear maps, RMSNorm, SwiGLU."""

from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import quant
from r1jax.sharding import Layout


def weight(
  module: nn.Module, name: str, letters: str, shape: tuple[int, ...], std: float
) -> jax.Array:
  """Declares a float32 parameter and returns it in the compute dtype.

  Args:
    module: The module that owns the parameter; it has a `config`.
    name: Name of the parameter.
    letters: Sharding letters of its dimensions; see r1jax/sharding.py.
    shape: Its shape.
    std: Standard deviation of its normal initialization.
  """
  init = nn.with_partitioning(nn.initializers.normal(std), tuple(letters))
  value: Any = module.param(name, init, shape, jnp.float32)
  return value.astype(module.config.compute_dtype)


def linear(x: jax.Array, w: jax.Array, layout: Layout, fp8: bool) -> jax.Array:
  """Multiplies x [..., D] by w [D, ...], optionally in FP8.

  On one device x is flattened to two dimensions: the gradient with respect to w
  then contracts one axis instead of several, which halves its time on CPU. On a
  mesh x keeps its axes, since sharded axes cannot be merged. The FP8 product
  sees the axes of x in both cases, so that its tiles along tokens end with a
  sequence on any number of devices.
  """
  w_DF = w.reshape(w.shape[0], -1)
  multiply = _matmul if layout.mesh.size > 1 else _flat_matmul
  if fp8:
    units = layout if quant.has_unit(layout.device) else None
    y = quant.product(multiply, units, x, w_DF)
  else:
    y = multiply(x, w_DF)
  return y.reshape(*x.shape[:-1], *w.shape[1:])


def _matmul(x, w_DF):
  return jnp.tensordot(x, w_DF, 1)


def _flat_matmul(x, w_DF):
  y_TF = _matmul(x.reshape(-1, x.shape[-1]), w_DF)
  return y_TF.reshape(*x.shape[:-1], -1)


def merge_heads(
  mix: jax.Array, w_NUD: jax.Array, layout: Layout, fp8: bool
) -> jax.Array:
  """Applies the output projection of attention: [..., N, U] → [..., D]."""
  flat = mix.reshape(*mix.shape[:-2], -1)
  return linear(flat, w_NUD.reshape(-1, w_NUD.shape[-1]), layout, fp8)


class RMSNorm(nn.Module):
  """RMSNorm over the last axis, x / sqrt(mean(x²) + ε) · scale.

  It is computed in float32 at least and returned in the dtype of x.
  """

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # The scale is too small to be worth sharding, hence the lower-case letter.
    init = nn.with_partitioning(nn.initializers.ones, ('d',))
    scale: Any = self.param('scale', init, x.shape[-1:], jnp.float32)
    wide = x.astype(quant.wide(x.dtype))
    rms = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    return (wide * rms * scale).astype(x.dtype)


class SwiGLU(nn.Module):
  """SwiGLU feed-forward layer, down(silu(gate(x)) · up(x)) → [..., D]."""

  config: ModelConfig
  layout: Layout
  intermediate_size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    D, F, std = (
      self.config.hidden_size,
      self.intermediate_size,
      self.config.initializer_range,
    )
    gate_DF = weight(self, 'gate', 'DF', (D, F), std)
    up_DF = weight(self, 'up', 'DF', (D, F), std)
    down_FD = weight(self, 'down', 'FD', (F, D), std)
    times = partial(linear, layout=self.layout, fp8=self.config.fp8)
    return times(jax.nn.silu(times(x, gate_DF)) * times(x, up_DF), down_FD)
