"""Rotary position embedding (RoPE), with YaRN and Llama 3 context extension."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import UserError
from r1jax.model import quant


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary position embedding (RoFormer, eq. 34) and its context extension.

  The names are those of Hugging Face's `rope_theta` and `rope_scaling`; `pairs`
  has no counterpart there.

  Attributes:
    rope_theta: Base of the frequencies.
    pairs: Numbers of a head that rotate together: 'adjacent', (2i, 2i+1), as in
      RoFormer and DeepSeek; or 'halves', (i, i + R/2), as in Llama and Qwen.
    rope_type: 'default' for no extension, 'yarn' (arXiv 2309.00071) or
      'llama3'.
    factor: Ratio of the extended context to the original one.
    original_max_position_embeddings: Context length in tokens before the
      extension.
    beta_fast: YaRN: pairs that rotate more often than this within the original
      context keep their frequency.
    beta_slow: YaRN: pairs that rotate less often than this have their frequency
      divided by `factor`; between the two bounds it is interpolated.
    mscale: YaRN: the rotated numbers are multiplied by m(mscale) /
      m(mscale_all_dim), with m(s) = 0.1 · s · ln(factor) + 1.
    mscale_all_dim: YaRN: the softmax scale is multiplied by m(mscale_all_dim)².
    low_freq_factor: Llama 3: frequencies whose wavelength exceeds
      original_max_position_embeddings / low_freq_factor are divided by
      `factor`.
    high_freq_factor: Llama 3: frequencies whose wavelength is below
      original_max_position_embeddings / high_freq_factor are kept; between the
      two bounds they are interpolated.
  """

  rope_theta: float
  pairs: str
  rope_type: str
  factor: float
  original_max_position_embeddings: int
  beta_fast: float
  beta_slow: float
  mscale: float
  mscale_all_dim: float
  low_freq_factor: float
  high_freq_factor: float

  def __post_init__(self):
    for field, known in (
      ('pairs', ('adjacent', 'halves')),
      ('rope_type', ('default', 'yarn', 'llama3')),
    ):
      value = getattr(self, field)
      if value not in known:
        raise UserError(
          f'model.rope: {field} must be one of {known}, got {value!r}'
        )
    if self.rope_theta <= 1:
      raise UserError(
        f'model.rope: rope_theta must be above 1, got {self.rope_theta}'
      )
    if self.rope_type != 'default' and (
      self.factor < 1 or self.original_max_position_embeddings < 1
    ):
      raise UserError(
        f'model.rope: rope_type {self.rope_type!r} needs factor and '
        'original_max_position_embeddings of at least 1, got '
        f'{self.factor} and {self.original_max_position_embeddings}'
      )
    if self.rope_type == 'llama3' and (
      not 0 < self.low_freq_factor < self.high_freq_factor
    ):
      raise UserError(
        'model.rope: llama3 needs 0 < low_freq_factor < high_freq_factor, '
        f'got {self.low_freq_factor} and {self.high_freq_factor}'
      )

  def frequencies(self, width: int) -> np.ndarray:
    """Returns the radians per token of each pair, float32 [width / 2]."""
    freq = self.rope_theta ** (
      -np.arange(0, width, 2, dtype=np.float64) / width
    )
    if self.rope_type == 'yarn':
      freq = freq * (1 - (1 - 1 / self.factor) * self._yarn_slowed(width))
    if self.rope_type == 'llama3':
      turns = self.original_max_position_embeddings * freq / (2 * math.pi)
      keep = np.clip(
        (turns - self.low_freq_factor)
        / (self.high_freq_factor - self.low_freq_factor),
        0,
        1,
      )
      freq = freq * (keep + (1 - keep) / self.factor)
    return freq.astype(np.float32)

  def _yarn_slowed(self, width: int) -> np.ndarray:
    """Returns YaRN's ramp over pairs, [width / 2].

    It is 0 for pairs that keep their frequency, 1 for those whose frequency is
    divided by `factor`, and linear in between.
    """

    def pair(turns):  # Index of the pair that rotates so often in the context.
      return (
        width
        * math.log(
          self.original_max_position_embeddings / (turns * 2 * math.pi)
        )
        / (2 * math.log(self.rope_theta))
      )

    first = max(math.floor(pair(self.beta_fast)), 0)
    last = min(math.ceil(pair(self.beta_slow)), width - 1)
    ramp = (np.arange(width // 2) - first) / max(last - first, 1e-3)
    return np.clip(ramp, 0, 1)

  @property
  def magnitude(self) -> float:
    """Factor on the rotated numbers (YaRN's attention scaling), else 1."""
    if self.rope_type != 'yarn':
      return 1.0
    return self._m(self.mscale) / self._m(self.mscale_all_dim)

  @property
  def softmax_factor(self) -> float:
    """Factor on the softmax scale of attention (YaRN), else 1."""
    return (
      self._m(self.mscale_all_dim) ** 2 if self.rope_type == 'yarn' else 1.0
    )

  def _m(self, scale: float) -> float:
    return 0.1 * scale * math.log(self.factor) + 1


def rotate(x: jax.Array, position: jax.Array, config: RopeConfig) -> jax.Array:
  """Rotates every pair of x by position · frequency, in float32 at least.

  Args:
    x: [..., R] queries or keys.
    position: int32 token positions, broadcastable to x.shape[:-1].
    config: Frequencies and the layout of pairs.

  Returns:
    [..., R] in the dtype of x.
  """
  angle = position[..., None].astype(quant.wide(x.dtype)) * config.frequencies(
    x.shape[-1]
  )
  cos, sin = (config.magnitude * f(angle) for f in (jnp.cos, jnp.sin))
  wide = x.astype(quant.wide(x.dtype))
  if config.pairs == 'adjacent':
    a, b = wide[..., 0::2], wide[..., 1::2]
    rotated = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return rotated.reshape(x.shape).astype(x.dtype)
  a, b = jnp.split(wide, 2, -1)
  rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
  return rotated.astype(x.dtype)
