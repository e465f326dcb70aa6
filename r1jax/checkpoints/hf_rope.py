"""Translates the rotary part of config.json to config.model.rope and back."""

import math

from r1jax.checkpoints.json_object import JsonObject
from r1jax.config.schema.model import RopeConfig
from r1jax.errors import UserError
from r1jax.model.rope import magnitude, softmax_factor


def read(h: JsonObject, pairs: str) -> dict:
  """Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters`."""
  scaling = h.section(
    'rope_parameters' if 'rope_parameters' in h else 'rope_scaling'
  )
  kind = scaling.text('rope_type', scaling.text('type', 'default'))
  if kind not in ('default', 'yarn', 'llama3'):
    raise UserError(
      f'import-hf: config.json has rope_type {kind!r}; there '
      'are default, yarn and llama3'
    )
  if kind == 'yarn' and not scaling.flag('truncate', True):
    raise UserError(
      'import-hf: config.json has truncate = false in its YaRN; only true is '
      'supported'
    )
  if scaling.number('partial_rotary_factor', 1.0) != 1:
    raise UserError(
      'import-hf: config.json has a partial_rotary_factor in its rotation; only '
      '1 is supported'
    )
  mscale, mscale_all_dim = _mscales(scaling, kind == 'yarn', pairs)
  original = RopeConfig().original_max_position_embeddings
  if kind != 'default':  # Nothing else reads it.
    original = scaling.count(
      'original_max_position_embeddings',
      default=h.count('max_position_embeddings'),
    )
  return dict(
    rope_theta=(scaling if 'rope_theta' in scaling else h).number('rope_theta'),
    pairs=pairs,
    rope_type=kind,
    factor=scaling.number('factor', 1.0),
    original_max_position_embeddings=original,
    beta_fast=scaling.number('beta_fast', 32.0),
    beta_slow=scaling.number('beta_slow', 1.0),
    mscale=mscale,
    mscale_all_dim=mscale_all_dim,
    low_freq_factor=scaling.number('low_freq_factor', 1.0),
    high_freq_factor=scaling.number('high_freq_factor', 4.0),
  )


def _mscales(
  scaling: JsonObject, yarn: bool, pairs: str
) -> tuple[float, float]:
  """Returns mscale and mscale_all_dim, which say how YaRN scales attention.

  transformers multiplies what is rotated by `attention_factor`, or else by
  m(mscale) / m(mscale_all_dim) if it has both, or else by m(1); with MLA it
  multiplies the softmax scale by m(mscale_all_dim)² too. Here, in RopeConfig,
  the first is always m(mscale) / m(mscale_all_dim), so that mscale is solved
  for.
  """
  mscale = scaling.number('mscale', 0.0)
  all_dim = scaling.number('mscale_all_dim', 0.0)
  if not yarn:
    return mscale or 1.0, all_dim
  log_factor = 0.1 * math.log(max(scaling.number('factor', 1.0), 1.0))
  m = lambda scale: log_factor * scale + 1
  mla = pairs == 'adjacent'
  given = 'attention_factor' in scaling
  if not given and mscale and all_dim and mla:
    return mscale, all_dim
  if not given and not (mla and all_dim) and not (mscale and all_dim):
    return 1.0, 0.0
  if given:
    magnitude = scaling.number('attention_factor')
  else:
    magnitude = m(mscale) / m(all_dim) if mscale and all_dim else m(1.0)
  all_dim = all_dim if mla else 0.0
  if not log_factor:
    if magnitude != 1:
      raise UserError(
        f'import-hf: config.json has attention_factor = {magnitude} with a '
        'factor of 1; no such scaling is supported'
      )
    return 1.0, all_dim
  return (magnitude * m(all_dim) - 1) / log_factor, all_dim


def write(r: RopeConfig, mla: bool) -> dict | None:
  """The value of `rope_scaling`; None without scaling."""
  if r.rope_type == 'default':
    return None
  keys = ['rope_type', 'factor', 'original_max_position_embeddings']
  keys += {
    'yarn': ['beta_fast', 'beta_slow'] + ['mscale', 'mscale_all_dim'] * mla,
    'llama3': ['low_freq_factor', 'high_freq_factor'],
  }[r.rope_type]
  values = {key: getattr(r, key) for key in keys} | {'type': r.rope_type}
  # If both are missing, transformers scales by m(1): another scale has to be said.
  said = (r.mscale and r.mscale_all_dim) or (r.mscale, r.mscale_all_dim) == (
    1,
    0,
  )
  if r.rope_type == 'yarn' and mla and not said:
    values['attention_factor'] = magnitude(r)
  if r.rope_type == 'yarn' and not mla and r.mscale != 1:
    # Whole heads are rotated, so that scaling the softmax by s² is rotating by s.
    factor = magnitude(r) * math.sqrt(softmax_factor(r))
    values['attention_factor'] = factor
  return values
