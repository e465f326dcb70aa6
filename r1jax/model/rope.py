"""Rotary position embedding, and the two ways of stretching its context."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import UserError
from r1jax.model import quant


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """RoFormer, eq. 34, with an optional change of its frequencies.

  Attributes:
    theta: Base of the frequencies.
    pairs: Which two numbers turn together: 'adjacent', (2i, 2i+1), as in
      RoFormer and DeepSeek; or 'halves', (i, i + R/2), as in Llama and Qwen.
    scaling: 'none', 'yarn' (arXiv 2309.00071) or 'llama3'.
    factor: How many times the context grew beyond original_context.
    original_context: Tokens that the model was first trained on.
    beta_fast: YaRN: pairs that turn more often than this within the original
      context keep their frequency...
    beta_slow: ...those that turn less often are slowed down by `factor`, and
      between them it is blended.
    mscale: YaRN: the rotated part is multiplied by m(mscale) /
      m(mscale_all_dim) with m(s) = 0.1 · s · ln(factor) + 1...
    mscale_all_dim: ...and the softmax scale by m(mscale_all_dim)².
    low_freq_factor: Llama 3: wavelengths above original_context / this are
      slowed down...
    high_freq_factor: ...those below original_context / this are kept.
  """

  theta: float
  pairs: str
  scaling: str
  factor: float
  original_context: int
  beta_fast: float
  beta_slow: float
  mscale: float
  mscale_all_dim: float
  low_freq_factor: float
  high_freq_factor: float

  def __post_init__(self):
    for field, known in (
      ('pairs', ('adjacent', 'halves')),
      ('scaling', ('none', 'yarn', 'llama3')),
    ):
      value = getattr(self, field)
      if value not in known:
        raise UserError(
          f'model.rope: {field} must be one of {known}, got {value!r}'
        )
    if self.theta <= 1:
      raise UserError(f'model.rope: theta must be above 1, got {self.theta}')
    if self.scaling != 'none' and (
      self.factor < 1 or self.original_context < 1
    ):
      raise UserError(
        f'model.rope: scaling {self.scaling!r} needs factor and '
        f'original_context of at least 1, got {self.factor} and '
        f'{self.original_context}'
      )
    if self.scaling == 'llama3' and (
      not 0 < self.low_freq_factor < self.high_freq_factor
    ):
      raise UserError(
        'model.rope: llama3 needs 0 < low_freq_factor < high_freq_factor, '
        f'got {self.low_freq_factor} and {self.high_freq_factor}'
      )

  def frequencies(self, width: int) -> np.ndarray:
    """Radians a token of each of the width / 2 pairs, float32."""
    freq = self.theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if self.scaling == 'yarn':
      freq = freq * (1 - (1 - 1 / self.factor) * self._yarn_slowed(width))
    if self.scaling == 'llama3':
      turns = self.original_context * freq / (2 * math.pi)
      keep = np.clip(
        (turns - self.low_freq_factor)
        / (self.high_freq_factor - self.low_freq_factor),
        0,
        1,
      )
      freq = freq * (keep + (1 - keep) / self.factor)
    return freq.astype(np.float32)

  def _yarn_slowed(self, width: int) -> np.ndarray:
    """0 where a pair keeps its frequency, 1 where it is divided by factor."""

    def pair(turns):  # The pair that turns so often in the original context.
      return (
        width
        * math.log(self.original_context / (turns * 2 * math.pi))
        / (2 * math.log(self.theta))
      )

    first = max(math.floor(pair(self.beta_fast)), 0)
    last = min(math.ceil(pair(self.beta_slow)), width - 1)
    ramp = (np.arange(width // 2) - first) / max(last - first, 1e-3)
    return np.clip(ramp, 0, 1)

  @property
  def magnitude(self) -> float:
    """Factor on the rotated numbers."""
    if self.scaling != 'yarn':
      return 1.0
    return self._m(self.mscale) / self._m(self.mscale_all_dim)

  @property
  def softmax_factor(self) -> float:
    """Factor on the attention's softmax scale."""
    return self._m(self.mscale_all_dim) ** 2 if self.scaling == 'yarn' else 1.0

  def _m(self, scale: float) -> float:
    return 0.1 * scale * math.log(self.factor) + 1


def rotate(x: jax.Array, position: jax.Array, config: RopeConfig) -> jax.Array:
  """Turns every pair of x by position · frequency, in float32 at least.

  Args:
    x: [..., R]
    position: int32, broadcastable to x.shape[:-1].
    config: Frequencies, and what makes a pair.
  """
  angle = position[..., None].astype(quant.wide(x.dtype)) * config.frequencies(
    x.shape[-1]
  )
  cos, sin = (config.magnitude * f(angle) for f in (jnp.cos, jnp.sin))
  wide = x.astype(quant.wide(x.dtype))
  if config.pairs == 'adjacent':
    a, b = wide[..., 0::2], wide[..., 1::2]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
  a, b = jnp.split(wide, 2, -1)
  turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
  return turned.astype(x.dtype)
