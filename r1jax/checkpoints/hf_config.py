"""Translates config.json of Hugging Face checkpoints to config.model and back."""

from collections.abc import Callable
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from r1jax import registry
from r1jax.checkpoints.families import ModelFamily
from r1jax.config.schema.model import RUN_DEFAULTS, ModelConfig, RopeConfig
from r1jax.errors import UserError


def model_type(config: ModelConfig) -> str:
  """Returns the model_type under which a model is exported.

  Raises:
    UserError: No Hugging Face family has this architecture.
  """
  if config.scalar_head:
    raise UserError('export-hf: no family has a scalar head')
  if config.num_nextn_predict_layers and config.attention != 'mla':
    raise UserError(
      'export-hf: no family has MTP modules (num_nextn_predict_layers) '
      'with grouped-query attention'
    )
  pairs = 'adjacent' if config.attention == 'mla' else 'halves'
  if config.rope.pairs != pairs:
    raise UserError(
      f'export-hf: every family with {config.attention} rotates '
      f'{pairs} pairs; this model does not'
    )
  if config.attention == 'gqa' and config.rope.rope_type == 'yarn':
    raise UserError(
      'export-hf: Hugging Face scales YaRN with grouped-query attention '
      'differently from r1jax'
    )
  if config.attention == 'mla':
    if (config.scoring_func, config.group_scoring) != ('sigmoid', 'top2_sum'):
      raise UserError(
        'export-hf: deepseek_v3 routes by sigmoid affinities and '
        'the top-2 sum of a group; this model does not'
      )
  elif config.num_moe_layers:
    raise UserError(
      'export-hf: no family has grouped-query attention with these experts'
    )
  for name, family in registry.model_family.items():
    if all(getattr(config, k) == v for k, v in family.fields.items()):
      return name
  raise UserError(
    'export-hf: no family has this architecture, such as grouped-query '
    'attention with both qk_norm and qkv_bias; there are '
    f'{", ".join(registry.model_family)}'
  )


def read_config(folder: Path) -> dict:
  """Reads the architecture that a checkpoint's config.json describes.

  Args:
    folder: The checkpoint.

  Returns:
    The fields of ModelConfig; those that config.json does not have come from
    RUN_DEFAULTS.

  Raises:
    UserError: The file is missing, its family or a feature is not supported,
      or a key is missing or has a wrong value.
  """
  path = Path(folder).expanduser() / 'config.json'
  try:
    values = json.loads(path.read_text())
  except OSError as error:
    raise UserError(
      f'import-hf: no file {path}; give the folder of a checkpoint'
    ) from error
  except ValueError as error:
    raise UserError(f'import-hf: {path} is not JSON ({error})') from error
  kind = values.get('model_type') if isinstance(values, dict) else None
  if kind not in list(registry.model_family):  # kind may be no dict key.
    raise UserError(
      f'import-hf: {path} has model_type {kind!r}; there are '
      f'{", ".join(registry.model_family)}'
    )
  family = registry.model_family.get(kind)
  for key, supported in {**_SUPPORTED_VALUES, **family.supported}.items():
    if values.get(key, supported) != supported:
      raise UserError(
        f'import-hf: {path} has {key} = {values[key]!r}; only '
        f'{supported!r} is supported'
      )
  values = values | {
    field: values[key] for field, key in family.keys.items() if key in values
  }
  return _architecture(family, _JsonObject(str(path), values))


# Keys of which r1jax supports one value, whatever the family.
_SUPPORTED_VALUES = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'use_sliding_window': False,
}


class _JsonObject:
  """Checked access to the values of a JSON object.

  Every method raises UserError in one line that names the key and what was
  expected. A key that is absent or null has its default, if that is not None.
  """

  def __init__(self, where: str, values: dict):
    self._where, self._values = where, values

  def count(self, key: str, least: int = 1, default: int | None = None) -> int:
    """Returns an integer of at least `least`."""
    return self._get(
      key,
      f'a whole number of at least {least}',
      default,
      lambda value: type(value) is int and value >= least,
    )

  def number(self, key: str, default: float | None = None) -> float:
    """Returns a finite number."""
    return self._get(
      key,
      'a number',
      default,
      lambda value: type(value) in (int, float) and math.isfinite(value),
    )

  def flag(self, key: str, default: bool) -> bool:
    """Returns a boolean."""
    return self._get(
      key, 'true or false', default, lambda value: type(value) is bool
    )

  def text(self, key: str, default: str) -> str:
    """Returns a string."""
    return self._get(key, 'a string', default, lambda value: type(value) is str)

  def section(self, key: str) -> '_JsonObject':
    """Returns the object at a key; an empty one if there is none."""
    values = self._get(key, 'an object', {}, lambda v: type(v) is dict)
    return _JsonObject(f'{self._where}: {key}', values)

  def __contains__(self, key: str) -> bool:
    return self._values.get(key) is not None

  def _get(
    self, key: str, expected: str, default: Any, fits: Callable[[Any], bool]
  ) -> Any:
    value = self._values.get(key)
    if value is None and default is not None:
      return default
    if key not in self._values:
      raise UserError(f'import-hf: {self._where} lacks {key!r}, {expected}')
    if not fits(value):
      shown = json.dumps(value)
      shown = shown if len(shown) <= 60 else shown[:60] + '…'
      raise UserError(
        f'import-hf: {self._where} has {key} = {shown}; it must be {expected}'
      )
    return value


_NO_MLA = dict(
  first_k_dense_replace=0,
  q_lora_rank=0,
  kv_lora_rank=0,
  qk_nope_head_dim=0,
  qk_rope_head_dim=0,
  v_head_dim=0,
)
_NO_GQA = dict(num_key_value_heads=0, head_dim=0)
_NO_EXPERTS = dict(
  moe_intermediate_size=0,
  n_routed_experts=0,
  n_shared_experts=0,
  num_experts_per_tok=0,
  n_group=0,
  topk_group=0,
  norm_topk_prob=True,
  routed_scaling_factor=1.0,
  num_nextn_predict_layers=0,
)


def _architecture(family: ModelFamily, h: _JsonObject) -> dict:
  """Returns all fields of ModelConfig."""
  mla = family.fields['attention'] == 'mla'
  stored = h.text('torch_dtype', h.text('dtype', 'bfloat16'))
  shared = dict(
    vocab_size=h.count('vocab_size'),
    num_hidden_layers=h.count('num_hidden_layers'),
    hidden_size=h.count('hidden_size'),
    num_attention_heads=h.count('num_attention_heads'),
    intermediate_size=h.count('intermediate_size', 0 if mla else 1),
    tie_word_embeddings=h.flag('tie_word_embeddings', False),
    qkv_bias=False,
    qk_norm=False,
    rope=_rope(h, 'adjacent' if mla else 'halves'),
    scoring_func='sigmoid',
    group_scoring='top2_sum',
    scalar_head=False,
    rms_norm_eps=h.number('rms_norm_eps'),
    initializer_range=h.number('initializer_range', 0.02),
    max_position_embeddings=h.count('max_position_embeddings'),
    dtype='float32' if stored == 'float32' else 'bfloat16',
  )
  return (
    RUN_DEFAULTS
    | shared
    | (_deepseek_fields(h) if mla else _dense_fields(h, shared))
    | dict(family.fields)
  )


def _deepseek_fields(h: _JsonObject) -> dict:
  """Fields of MLA and experts; a model may have dense layers alone."""
  return _NO_GQA | dict(
    first_k_dense_replace=h.count('first_k_dense_replace', 0),
    q_lora_rank=h.count('q_lora_rank', 0, default=0),
    kv_lora_rank=h.count('kv_lora_rank'),
    qk_nope_head_dim=h.count('qk_nope_head_dim'),
    qk_rope_head_dim=h.count('qk_rope_head_dim'),
    v_head_dim=h.count('v_head_dim'),
    moe_intermediate_size=h.count('moe_intermediate_size', 0),
    n_routed_experts=h.count('n_routed_experts', 0),
    n_shared_experts=h.count('n_shared_experts', 0, default=0),
    num_experts_per_tok=h.count('num_experts_per_tok', 0),
    n_group=h.count('n_group', 0),
    topk_group=h.count('topk_group', 0),
    norm_topk_prob=h.flag('norm_topk_prob', True),
    routed_scaling_factor=h.number('routed_scaling_factor'),
    num_nextn_predict_layers=h.count('num_nextn_predict_layers', 0, default=0),
  )


def _dense_fields(h: _JsonObject, shared: dict) -> dict:
  """Fields of grouped-query attention; all layers are dense."""
  return (
    _NO_MLA
    | _NO_EXPERTS
    | dict(
      first_k_dense_replace=shared['num_hidden_layers'],
      num_key_value_heads=h.count('num_key_value_heads'),
      head_dim=h.count(
        'head_dim',
        default=shared['hidden_size'] // shared['num_attention_heads'],
      ),
    )
  )


def _rope(h: _JsonObject, pairs: str) -> dict:
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
  if kind == 'yarn' and (pairs == 'halves' or 'attention_factor' in scaling):
    raise UserError(
      'import-hf: config.json scales YaRN by attention_factor, '
      'or without MLA; only mscale with MLA is supported'
    )
  return dict(
    rope_theta=(scaling if 'rope_theta' in scaling else h).number('rope_theta'),
    pairs=pairs,
    rope_type=kind,
    factor=scaling.number('factor', 1.0),
    original_max_position_embeddings=scaling.count(
      'original_max_position_embeddings',
      default=h.count('max_position_embeddings'),
    ),
    beta_fast=scaling.number('beta_fast', 32.0),
    beta_slow=scaling.number('beta_slow', 1.0),
    mscale=scaling.number('mscale', 1.0),
    mscale_all_dim=scaling.number('mscale_all_dim', 0.0),
    low_freq_factor=scaling.number('low_freq_factor', 1.0),
    high_freq_factor=scaling.number('high_freq_factor', 4.0),
  )


# Keys of config.json that are fields of ModelConfig, with the same meaning.
_SHARED_KEYS = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'max_position_embeddings',
  'rms_norm_eps',
  'initializer_range',
  'tie_word_embeddings',
)
_DEEPSEEK_KEYS = (
  'kv_lora_rank',
  'qk_nope_head_dim',
  'qk_rope_head_dim',
  'v_head_dim',
  'first_k_dense_replace',
  'moe_intermediate_size',
  'n_routed_experts',
  'n_shared_experts',
  'num_experts_per_tok',
  'n_group',
  'topk_group',
  'norm_topk_prob',
  'routed_scaling_factor',
  'scoring_func',
  'num_nextn_predict_layers',
)


def write_config(c: ModelConfig, dtype: np.dtype) -> dict:
  """Returns config.json, with the keys of checkpoints on the Hugging Face Hub.

  Args:
    c: The model.
    dtype: Dtype of the stored tensors.

  Raises:
    UserError: No Hugging Face family has this architecture.
  """
  kind = model_type(c)
  family = registry.model_family.get(kind)
  shared = dict(
    architectures=[family.architecture],
    model_type=kind,
    hidden_act='silu',
    rope_theta=c.rope.rope_theta,
    rope_scaling=_rope_scaling(c.rope),
    torch_dtype=str(np.dtype(dtype)),
    **{key: getattr(c, key) for key in _SHARED_KEYS},
  )
  if c.attention == 'gqa':
    values = shared | dict(
      num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim
    )
  else:
    values = shared | dict(
      num_key_value_heads=c.num_attention_heads,
      q_lora_rank=c.q_lora_rank or None,
      moe_layer_freq=1,
      topk_method='noaux_tc',
      **{key: getattr(c, key) for key in _DEEPSEEK_KEYS},
    )
  return {family.keys.get(field, field): v for field, v in values.items()}


def _rope_scaling(r: RopeConfig) -> dict | None:
  """The value of `rope_scaling`; None without scaling."""
  if r.rope_type == 'default':
    return None
  keys = ['rope_type', 'factor', 'original_max_position_embeddings']
  keys += {
    'yarn': ['beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim'],
    'llama3': ['low_freq_factor', 'high_freq_factor'],
  }[r.rope_type]
  return {key: getattr(r, key) for key in keys} | {'type': r.rope_type}
