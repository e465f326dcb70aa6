"""The small parts: weights with named axes, RMSNorm, SwiGLU."""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import quant
from r1jax.model.config import ModelConfig
from r1jax.sharding import Layout


def weight(
  module: nn.Module, name: str, letters: str, shape: tuple[int, ...], std: float
) -> jax.Array:
  """Declares a normal(0, std) weight, its dimensions named by letters.

  Returns it in the compute dtype; the stored master is float32.
  """
  init = nn.with_partitioning(nn.initializers.normal(std), tuple(letters))
  value = module.param(name, init, shape, jnp.float32)
  return value.astype(module.config.compute_dtype)


def linear(x: jax.Array, w: jax.Array, layout: Layout, fp8: bool) -> jax.Array:
  """x [..., D] times w [D, ...] → [..., ...].

  On one device as one two-dimensional product: its gradient with respect to w
  then contracts one axis, not several, which halves its time on CPU. On a mesh
  x keeps its axes, for those that are split cannot be joined. FP8 sees them
  either way: its tiles along tokens end with a row, on any number of devices.
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
  """Attention's output projection: [..., N, U] → [..., D]."""
  flat = mix.reshape(*mix.shape[:-2], -1)
  return linear(flat, w_NUD.reshape(-1, w_NUD.shape[-1]), layout, fp8)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x²) + ε) · scale over the last axis, in float32 at least."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # The axis of a norm's scale is never split: it is too small to pay.
    init = nn.with_partitioning(nn.initializers.ones, ('d',))
    scale = self.param('scale', init, x.shape[-1:], jnp.float32)
    wide = x.astype(quant.wide(x.dtype))
    rms = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
    return (wide * rms * scale).astype(x.dtype)


class SwiGLU(nn.Module):
  """down(silu(gate(x)) · up(x)): [..., D] → [..., D]."""

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
