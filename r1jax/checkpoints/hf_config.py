"""config.json of Hugging Face checkpoints: their keys against our fields."""

from collections.abc import Callable
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.errors import UserError
from r1jax.model.config import RUN_DEFAULTS, ModelConfig
from r1jax.model.rope import RopeConfig

_ARCHITECTURES = {
  'deepseek_v3': 'DeepseekV3ForCausalLM',
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}


def family(config: ModelConfig) -> str:
  """The model_type under which a config of ours is exported.

  Raises:
    UserError: no family of theirs has this architecture.
  """
  if config.scalar_head:
    raise UserError('export-hf: no family has a scalar head')
  if config.mtp_depth and config.attention != 'mla':
    raise UserError(
      'export-hf: no family has look-ahead modules (mtp_depth) '
      'with grouped-query attention'
    )
  pairs = 'adjacent' if config.attention == 'mla' else 'halves'
  if config.rope.pairs != pairs:
    raise UserError(
      f'export-hf: every family with {config.attention} rotates '
      f'{pairs} pairs; this model does not'
    )
  if config.attention == 'gqa' and config.rope.scaling == 'yarn':
    raise UserError(
      'export-hf: YaRN with grouped-query attention is scaled otherwise there'
    )
  if config.attention == 'mla':
    if (config.affinity, config.group_score) != ('sigmoid', 'top2'):
      raise UserError(
        'export-hf: deepseek_v3 routes by sigmoid affinities and '
        'the top-2 sum of a group; this model does not'
      )
    return 'deepseek_v3'
  if config.num_moe_layers or (config.qk_norm and config.qkv_bias):
    raise UserError(
      'export-hf: no family has grouped-query attention with '
      'these experts, or with both qk_norm and qkv_bias'
    )
  if config.qk_norm:
    return 'qwen3'
  return 'qwen2' if config.qkv_bias else 'llama'


def read_config(folder: Path) -> dict:
  """The architecture that a checkpoint's config.json describes.

  Returns:
    The fields of ModelConfig; those that a file cannot know as RUN_DEFAULTS
    has them.

  Raises:
    UserError: no such file, another family, a feature that we do not have, or
      a key that is missing or not what it should be.
  """
  path = Path(folder).expanduser() / 'config.json'
  try:
    theirs = json.loads(path.read_text())
  except OSError as error:
    raise UserError(
      f'import-hf: no file {path}; give the folder of a checkpoint'
    ) from error
  except ValueError as error:
    raise UserError(f'import-hf: {path} is not JSON ({error})') from error
  kind = theirs.get('model_type') if isinstance(theirs, dict) else None
  if kind not in list(_ARCHITECTURES):  # A list: kind may be no dict key.
    raise UserError(
      f'import-hf: {path} has model_type {kind!r}; there are '
      f'{", ".join(_ARCHITECTURES)}'
    )
  for key, known in _ONLY.items():
    if theirs.get(key, known) != known:
      raise UserError(
        f'import-hf: {path} has {key} = {theirs[key]!r}; only '
        f'{known!r} is supported'
      )
  return _architecture(kind, _Keys(str(path), theirs))


# Keys whose other values change the model in ways that we lack.
_ONLY = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'use_sliding_window': False,
  'scoring_func': 'sigmoid',
  'topk_method': 'noaux_tc',
  'moe_layer_freq': 1,
  'rope_interleave': True,
}


class _Keys:
  """Values of a JSON object, by key and kind.

  Every method raises UserError in one line that names the key and what was
  expected. A key that is absent or null has its default, if that is not None.
  """

  def __init__(self, where: str, values: dict):
    self._where, self._values = where, values

  def count(self, key: str, least: int = 1, default: int | None = None) -> int:
    return self._get(
      key,
      f'a whole number of at least {least}',
      default,
      lambda value: type(value) is int and value >= least,
    )

  def number(self, key: str, default: float | None = None) -> float:
    return self._get(
      key,
      'a number',
      default,
      lambda value: type(value) in (int, float) and math.isfinite(value),
    )

  def flag(self, key: str, default: bool) -> bool:
    return self._get(
      key, 'true or false', default, lambda value: type(value) is bool
    )

  def text(self, key: str, default: str) -> str:
    return self._get(key, 'a string', default, lambda value: type(value) is str)

  def section(self, key: str) -> '_Keys':
    values = self._get(key, 'an object', {}, lambda v: type(v) is dict)
    return _Keys(f'{self._where}: {key}', values)

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
  first_k_dense=0,
  q_lora_rank=0,
  kv_lora_rank=0,
  qk_nope_head_dim=0,
  qk_rope_head_dim=0,
  v_head_dim=0,
)
_NO_GQA = dict(num_kv_heads=0, head_dim=0)
_NO_EXPERTS = dict(
  expert_ffn_dim=0,
  num_experts=0,
  num_shared_experts=0,
  experts_per_token=0,
  num_expert_groups=0,
  topk_groups=0,
  normalise_gates=True,
  routed_scaling=1.0,
  mtp_depth=0,
)


def _architecture(kind: str, h: _Keys) -> dict:
  mla = kind == 'deepseek_v3'
  stored = h.text('torch_dtype', h.text('dtype', 'bfloat16'))
  shared = dict(
    vocab_size=h.count('vocab_size'),
    num_layers=h.count('num_hidden_layers'),
    d_model=h.count('hidden_size'),
    num_heads=h.count('num_attention_heads'),
    ffn_dim=h.count('intermediate_size', 0 if mla else 1),
    tie_embeddings=h.flag('tie_word_embeddings', False),
    attention='mla' if mla else 'gqa',
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    rope=_rope(h, 'adjacent' if mla else 'halves'),
    affinity='sigmoid',
    group_score='top2',
    scalar_head=False,
    norm_eps=h.number('rms_norm_eps'),
    init_std=h.number('initializer_range', 0.02),
    max_context=h.count('max_position_embeddings'),
    dtype='float32' if stored == 'float32' else 'bfloat16',
  )
  return RUN_DEFAULTS | shared | (_mixture(h) if mla else _dense(h, shared))


def _mixture(h: _Keys) -> dict:
  """MLA and experts; a model may have dense layers alone."""
  return _NO_GQA | dict(
    first_k_dense=h.count('first_k_dense_replace', 0),
    q_lora_rank=h.count('q_lora_rank', 0, default=0),
    kv_lora_rank=h.count('kv_lora_rank'),
    qk_nope_head_dim=h.count('qk_nope_head_dim'),
    qk_rope_head_dim=h.count('qk_rope_head_dim'),
    v_head_dim=h.count('v_head_dim'),
    expert_ffn_dim=h.count('moe_intermediate_size', 0),
    num_experts=h.count('n_routed_experts', 0),
    num_shared_experts=h.count('n_shared_experts', 0, default=0),
    experts_per_token=h.count('num_experts_per_tok', 0),
    num_expert_groups=h.count('n_group', 0),
    topk_groups=h.count('topk_group', 0),
    normalise_gates=h.flag('norm_topk_prob', True),
    routed_scaling=h.number('routed_scaling_factor'),
    mtp_depth=h.count('num_nextn_predict_layers', 0, default=0),
  )


def _dense(h: _Keys, shared: dict) -> dict:
  return (
    _NO_MLA
    | _NO_EXPERTS
    | dict(
      first_k_dense=shared['num_layers'],
      num_kv_heads=h.count('num_key_value_heads'),
      head_dim=h.count(
        'head_dim', default=shared['d_model'] // shared['num_heads']
      ),
    )
  )


def _rope(h: _Keys, pairs: str) -> dict:
  """From `rope_theta` and `rope_scaling`, or newer `rope_parameters`."""
  said = h.section(
    'rope_parameters' if 'rope_parameters' in h else 'rope_scaling'
  )
  kind = said.text('rope_type', said.text('type', 'default'))
  if kind not in ('default', 'yarn', 'llama3'):
    raise UserError(
      f'import-hf: config.json has rope_type {kind!r}; there '
      'are default, yarn and llama3'
    )
  if kind == 'yarn' and (pairs == 'halves' or 'attention_factor' in said):
    raise UserError(
      'import-hf: config.json scales YaRN by attention_factor, '
      'or without MLA; only mscale with MLA is supported'
    )
  return dict(
    theta=(said if 'rope_theta' in said else h).number('rope_theta'),
    pairs=pairs,
    scaling='none' if kind == 'default' else kind,
    factor=said.number('factor', 1.0),
    original_context=said.count(
      'original_max_position_embeddings',
      default=h.count('max_position_embeddings'),
    ),
    beta_fast=said.number('beta_fast', 32.0),
    beta_slow=said.number('beta_slow', 1.0),
    mscale=said.number('mscale', 1.0),
    mscale_all_dim=said.number('mscale_all_dim', 0.0),
    low_freq_factor=said.number('low_freq_factor', 1.0),
    high_freq_factor=said.number('high_freq_factor', 4.0),
  )


def write_config(c: ModelConfig, dtype: np.dtype) -> dict:
  """config.json in the keys of hub checkpoints."""
  kind = family(c)
  made = dict(
    architectures=[_ARCHITECTURES[kind]],
    model_type=kind,
    vocab_size=c.vocab_size,
    hidden_size=c.d_model,
    intermediate_size=c.ffn_dim,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    hidden_act='silu',
    max_position_embeddings=c.max_context,
    rms_norm_eps=c.norm_eps,
    initializer_range=c.init_std,
    tie_word_embeddings=c.tie_embeddings,
    rope_theta=c.rope.theta,
    rope_scaling=_their_rope(c.rope),
    torch_dtype=str(np.dtype(dtype)),
  )
  if c.attention == 'gqa':
    return made | dict(num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim)
  return made | dict(
    num_key_value_heads=c.num_heads,
    q_lora_rank=c.q_lora_rank or None,
    kv_lora_rank=c.kv_lora_rank,
    qk_nope_head_dim=c.qk_nope_head_dim,
    qk_rope_head_dim=c.qk_rope_head_dim,
    v_head_dim=c.v_head_dim,
    first_k_dense_replace=c.first_k_dense,
    moe_intermediate_size=c.expert_ffn_dim,
    moe_layer_freq=1,
    n_routed_experts=c.num_experts,
    n_shared_experts=c.num_shared_experts,
    num_experts_per_tok=c.experts_per_token,
    n_group=c.num_expert_groups,
    topk_group=c.topk_groups,
    norm_topk_prob=c.normalise_gates,
    routed_scaling_factor=c.routed_scaling,
    scoring_func='sigmoid',
    topk_method='noaux_tc',
    num_nextn_predict_layers=c.mtp_depth,
  )


def _their_rope(r: RopeConfig) -> dict | None:
  if r.scaling == 'none':
    return None
  made = dict(
    rope_type=r.scaling,
    type=r.scaling,
    factor=r.factor,
    original_max_position_embeddings=r.original_context,
  )
  if r.scaling == 'yarn':
    return made | dict(
      beta_fast=r.beta_fast,
      beta_slow=r.beta_slow,
      mscale=r.mscale,
      mscale_all_dim=r.mscale_all_dim,
    )
  return made | dict(
    low_freq_factor=r.low_freq_factor, high_freq_factor=r.high_freq_factor
  )
