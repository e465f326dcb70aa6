"""Translates config.json of Hugging Face checkpoints to config.model and back."""

from collections.abc import Mapping
import functools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from r1jax import buckets, registry
from r1jax.checkpoints import hf_rope
from r1jax.checkpoints.families import ModelFamily
from r1jax.checkpoints.json_object import JsonObject
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.schema.model import RUN_DEFAULTS, ModelConfig
from r1jax.errors import UserError

_log = logging.getLogger(__name__)


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
  path = buckets.given(folder) / 'config.json'
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
  if not _has_mtp_layers(path.parent, values):
    _warn_of_mtp(str(path.parent))
    values[_MTP] = 0
  return _architecture(family, JsonObject(str(path), values))


@functools.cache  # Once a checkpoint, which several readers open.
def _warn_of_mtp(folder: str):
  _log.warning(
    'import-hf: %s has no tensors of the MTP modules that its config.json names, '
    'as transformers saves it; the model is read without them',
    folder,
  )


def _has_mtp_layers(folder: Path, values: dict) -> bool:
  """Whether a checkpoint has tensors of the MTP modules that it names.

  transformers leaves these layers out and keeps their number. Where there is
  nothing to compare, they are taken to be there.
  """
  modules, layers = values.get(_MTP), values.get('num_hidden_layers')
  if type(modules) is not int or type(layers) is not int or modules < 1:
    return True
  try:
    names = SafetensorsReader(folder).shapes
  except UserError:  # The tensors' reader says what is wrong.
    return True
  stems = tuple(f'model.layers.{layers + i}.' for i in range(modules))
  return any(name.startswith(stems) for name in names)


_MTP = 'num_nextn_predict_layers'
# Keys of which r1jax supports one value, whatever the family.
_SUPPORTED_VALUES = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'use_sliding_window': False,
}


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


def _architecture(family: ModelFamily, h: JsonObject) -> dict:
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
    rope=hf_rope.read(h, 'adjacent' if mla else 'halves'),
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


def _deepseek_fields(h: JsonObject) -> dict:
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


def _dense_fields(h: JsonObject, shared: dict) -> dict:
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


def write_config(
  c: ModelConfig, dtype: np.dtype, token_ids: Mapping[str, Any] | None = None
) -> dict:
  """Returns config.json, with the keys of checkpoints on the Hugging Face Hub.

  Args:
    c: The model.
    dtype: Dtype of the stored tensors.
    token_ids: Ids of special tokens, such as 'eos_token_id'.

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
    rope_scaling=hf_rope.write(c.rope, c.attention == 'mla'),
    dtype=str(np.dtype(dtype)),
    torch_dtype=str(np.dtype(dtype)),  # Its name before transformers 5.
    **{key: getattr(c, key) for key in _SHARED_KEYS},
    **(token_ids or {}),
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
