"""Hugging Face checkpoints as tables: their names and axes against ours.

A row says where a parameter of ours lies in a checkpoint of theirs:

  Row('attention/q_up', 'QNJ', 'self_attn.q_b_proj.weight', '(NJ)Q')

reads: theirs is a matrix with N·J rows, head-major, and Q columns; ours has
the axes Q, N, J. Torch keeps a linear layer as [out, in], we as [in, out].
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import re

import numpy as np

from r1jax.errors import UserError
from r1jax.model.config import ModelConfig
from r1jax.model.quant import BLOCK
from r1jax.model.rope import RopeConfig
from r1jax.storage import Reader, Writer, write_text


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter of ours within a tensor of theirs.

  Attributes:
    ours: Path below the model, or below a layer.
    letters: Our axes; a leading E is one tensor of theirs for each expert.
    theirs: Name below `model.layers.3.`, or, with a leading dot, below
      nothing. '{e}' stands for the expert.
    axes: Their axes; letters in brackets are one axis.
    part: '' for the whole of Y, else 'first' or 'last': the row holds the
      first H or the last U of the Y = H + U numbers.
  """

  ours: str
  letters: str
  theirs: str
  axes: str
  part: str = ''


_TOP = (
    Row('embedding', 'VD', '.model.embed_tokens.weight', 'VD'),
    Row('norm/scale', 'D', '.model.norm.weight', 'D'),
    Row('head', 'DV', '.lm_head.weight', 'VD'),
)
_BLOCK = (
    Row('attention_norm/scale', 'D', 'input_layernorm.weight', 'D'),
    Row('ffn_norm/scale', 'D', 'post_attention_layernorm.weight', 'D'),
)
_GQA = (
    Row('attention/q', 'DNH', 'self_attn.q_proj.weight', '(NH)D'),
    Row('attention/k', 'DKH', 'self_attn.k_proj.weight', '(KH)D'),
    Row('attention/v', 'DKH', 'self_attn.v_proj.weight', '(KH)D'),
    Row('attention/q_bias', 'NH', 'self_attn.q_proj.bias', '(NH)'),
    Row('attention/k_bias', 'KH', 'self_attn.k_proj.bias', '(KH)'),
    Row('attention/v_bias', 'KH', 'self_attn.v_proj.bias', '(KH)'),
    Row('attention/q_norm/scale', 'H', 'self_attn.q_norm.weight', 'H'),
    Row('attention/k_norm/scale', 'H', 'self_attn.k_norm.weight', 'H'),
    Row('attention/out', 'NHD', 'self_attn.o_proj.weight', 'D(NH)'),
)
_MLA = (
    Row('attention/q', 'DNJ', 'self_attn.q_proj.weight', '(NJ)D'),
    Row('attention/q_down', 'DQ', 'self_attn.q_a_proj.weight', 'QD'),
    Row('attention/q_norm/scale', 'Q', 'self_attn.q_a_layernorm.weight', 'Q'),
    Row('attention/q_up', 'QNJ', 'self_attn.q_b_proj.weight', '(NJ)Q'),
    Row('attention/kv_down', 'DX', 'self_attn.kv_a_proj_with_mqa.weight',
        'XD'),
    Row('attention/kv_norm/scale', 'C', 'self_attn.kv_a_layernorm.weight',
        'C'),
    Row('attention/k_up', 'CNH', 'self_attn.kv_b_proj.weight', '(NY)C',
        'first'),
    Row('attention/v_up', 'CNU', 'self_attn.kv_b_proj.weight', '(NY)C',
        'last'),
    Row('attention/out', 'NUD', 'self_attn.o_proj.weight', 'D(NU)'),
)
_DENSE_FFN = (
    Row('ffn/gate', 'DF', 'mlp.gate_proj.weight', 'FD'),
    Row('ffn/up', 'DF', 'mlp.up_proj.weight', 'FD'),
    Row('ffn/down', 'FD', 'mlp.down_proj.weight', 'DF'),
)
_MOE_FFN = (
    Row('ffn/router', 'DE', 'mlp.gate.weight', 'ED'),
    Row('ffn/bias', 'E', 'mlp.gate.e_score_correction_bias', 'E'),
    Row('ffn/gate', 'EDI', 'mlp.experts.{e}.gate_proj.weight', 'ID'),
    Row('ffn/up', 'EDI', 'mlp.experts.{e}.up_proj.weight', 'ID'),
    Row('ffn/down', 'EID', 'mlp.experts.{e}.down_proj.weight', 'DI'),
    Row('ffn/shared/gate', 'DZ', 'mlp.shared_experts.gate_proj.weight', 'ZD'),
    Row('ffn/shared/up', 'DZ', 'mlp.shared_experts.up_proj.weight', 'ZD'),
    Row('ffn/shared/down', 'ZD', 'mlp.shared_experts.down_proj.weight', 'DZ'),
)
_MTP = (  # Of a layer beyond the last; `merge` takes G = 2 D numbers.
    Row('merge', 'GD', 'eh_proj.weight', 'DG'),
    Row('ahead_norm/scale', 'D', 'enorm.weight', 'D'),
    Row('hidden_norm/scale', 'D', 'hnorm.weight', 'D'),
    Row('norm/scale', 'D', 'shared_head.norm.weight', 'D'),
)
# What each such layer repeats of the model itself.
_MTP_SHARED = {'embed_tokens.weight': 'embedding',
               'shared_head.head.weight': 'head'}
# The tables of each family: attention, dense layers' FFN, MoE layers' FFN.
FAMILIES = {
    'deepseek_v3': (_MLA, _DENSE_FFN, _MOE_FFN),
    'llama': (_GQA, _DENSE_FFN, ()),
    'qwen2': (_GQA, _DENSE_FFN, ()),
    'qwen3': (_GQA, _DENSE_FFN, ()),
}


def family(config: ModelConfig) -> str:
  """The model_type under which a config of ours is exported.

  Raises:
    UserError: no family of theirs has this architecture.
  """
  if config.scalar_head:
    raise UserError('export-hf: no family has a scalar head')
  if config.mtp_depth and config.attention != 'mla':
    raise UserError('export-hf: no family has look-ahead modules (mtp_depth) '
                    'with grouped-query attention')
  pairs = 'adjacent' if config.attention == 'mla' else 'halves'
  if config.rope.pairs != pairs:
    raise UserError(f'export-hf: every family with {config.attention} rotates '
                    f'{pairs} pairs; this model does not')
  if config.attention == 'gqa' and config.rope.scaling == 'yarn':
    raise UserError('export-hf: YaRN with grouped-query attention is scaled '
                    'otherwise there')
  if config.attention == 'mla':
    if (config.affinity, config.group_score) != ('sigmoid', 'top2'):
      raise UserError('export-hf: deepseek_v3 routes by sigmoid affinities and '
                      'the top-2 sum of a group; this model does not')
    return 'deepseek_v3'
  if config.num_moe_layers or config.qk_norm and config.qkv_bias:
    raise UserError('export-hf: no family has grouped-query attention with '
                    'these experts, or with both qk_norm and qkv_bias')
  if config.qk_norm:
    return 'qwen3'
  return 'qwen2' if config.qkv_bias else 'llama'


def _sizes(c: ModelConfig) -> dict[str, int]:
  """What each letter of the tables stands for."""
  mla = c.attention == 'mla'
  return dict(
      V=c.vocab_size, D=c.d_model, N=c.num_heads, K=c.num_kv_heads,
      H=c.qk_nope_head_dim if mla else c.head_dim, Q=c.q_lora_rank,
      C=c.kv_lora_rank, J=c.qk_nope_head_dim + c.qk_rope_head_dim,
      U=c.v_head_dim, X=c.cache_width, Y=c.qk_nope_head_dim + c.v_head_dim,
      F=c.ffn_dim, I=c.expert_ffn_dim, E=c.num_experts,
      Z=c.expert_ffn_dim * c.num_shared_experts, G=2 * c.d_model)


def _groups(axes: str) -> list[str]:
  """'(NJ)Q' → ['NJ', 'Q']."""
  return [a or b for a, b in re.findall(r'\((\w+)\)|(\w)', axes)]


def _their_shape(row: Row, sizes: Mapping[str, int]) -> tuple[int, ...]:
  return tuple(int(np.prod([sizes[letter] for letter in group]))
               for group in _groups(row.axes))


def _to_ours(tensor: np.ndarray, row: Row, sizes) -> np.ndarray:
  letters = ''.join(_groups(row.axes))
  split = tensor.reshape([sizes[letter] for letter in letters])
  if row.part:
    axis = letters.index('Y')
    kept = sizes['H'] if row.part == 'first' else sizes['U']
    start = 0 if row.part == 'first' else sizes['H']
    split = np.take(split, range(start, start + kept), axis)
    letters = letters.replace('Y', 'H' if row.part == 'first' else 'U')
  ours = row.letters.removeprefix('E') if '{e}' in row.theirs else row.letters
  return np.transpose(split, [letters.index(letter) for letter in ours])


def _to_theirs(parts: list[tuple[Row, np.ndarray]], sizes) -> np.ndarray:
  """The inverse; a tensor of theirs may be made of two of ours."""
  pieces = []
  for row, array in parts:
    ours = row.letters.removeprefix('E') if '{e}' in row.theirs else row.letters
    letters = ''.join(_groups(row.axes))
    if row.part:
      letters = letters.replace('Y', 'H' if row.part == 'first' else 'U')
    pieces.append(np.transpose(array, [ours.index(x) for x in letters]))
  axis = ''.join(_groups(parts[0][0].axes)).find('Y')
  whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)
  return np.ascontiguousarray(whole).reshape(_their_shape(parts[0][0], sizes))


@dataclasses.dataclass(frozen=True)
class Place:
  """One parameter of one layer of ours, and its tensors of theirs."""

  ours: str  # As storage names it: 'moe_layers/0/ffn/gate'.
  row: Row
  theirs: tuple[str, ...]  # One, or one for each expert.


def places(config: ModelConfig) -> list[Place]:
  """Where everything lies, in the order of the layers."""
  attention, dense, moe = FAMILIES[family(config)]
  absent = _absent(config)

  def layer(number: int, ours: str, rows: tuple[Row, ...]):
    for row in rows:
      if row.ours not in absent:
        name = f'model.layers.{number}.{row.theirs}'
        experts = range(config.num_experts) if '{e}' in name else (0,)
        yield Place(f'{ours}/{row.ours}', row,
                    tuple(name.format(e=e) for e in experts))

  found = [Place(row.ours, row, (row.theirs[1:],)) for row in _TOP[:1]]
  first_moe = config.first_k_dense
  for i in range(first_moe):
    found += layer(i, f'dense_layers/{i}', _BLOCK + attention + dense)
  for i in range(config.num_moe_layers):
    found += layer(first_moe + i, f'moe_layers/{i}', _BLOCK + attention + moe)
  for i in range(config.mtp_depth):
    number = config.num_layers + i
    found += layer(number, f'mtp/{i}', _MTP)
    found += layer(number, f'mtp/{i}/block', _BLOCK + attention + (
        moe if config.num_moe_layers else dense))
  found += [Place(row.ours, row, (row.theirs[1:],)) for row in _TOP[1:]
            if row.ours not in absent]
  return found


def _absent(c: ModelConfig) -> set[str]:
  """Rows that this architecture does not have."""
  absent = set()
  if c.tie_embeddings:
    absent.add('head')
  if c.attention == 'mla':
    absent |= ({'attention/q'} if c.q_lora_rank else
               {'attention/q_down', 'attention/q_norm/scale',
                'attention/q_up'})
  else:
    if not c.qkv_bias:
      absent |= {f'attention/{x}_bias' for x in 'qkv'}
    if not c.qk_norm:
      absent |= {'attention/q_norm/scale', 'attention/k_norm/scale'}
  if not c.num_shared_experts:
    absent |= {f'ffn/shared/{x}' for x in ('gate', 'up', 'down')}
  return absent


def read_tensors(folder: Path,
                 config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
  """Our stored names and arrays, one at a time, in the order of the layers.

  A tensor with a `_scale_inv` beside it is FP8 in 128 × 128 blocks (V3
  section 3.3) and comes back in float32.

  Raises:
    UserError: naming every missing, unknown or misshaped tensor, at once.
  """
  reader, sizes, found = Reader(folder), _sizes(config), places(config)
  _check(reader, found, sizes, config)
  for place in found:
    arrays = [_to_ours(_read(reader, name), place.row, sizes)
              for name in place.theirs]
    yield place.ours, (
        np.stack(arrays) if '{e}' in place.row.theirs else arrays[0])


def write_tensors(folder: Path, config: ModelConfig, source: Reader,
                  dtype: np.dtype | None, shard_bytes: int):
  """Writes a checkpoint of theirs from stored tensors of ours.

  Args:
    folder: Gets config.json and the safetensors.
    config: The model's.
    source: Our tensors, by stored name.
    dtype: Of what is written; None keeps that of the embedding.
    shard_bytes: At most so much in one file.
  """
  sizes, found = _sizes(config), places(config)
  absent = [place.ours for place in found if place.ours not in source]
  if absent:
    raise UserError(f'export-hf: {source.path} lacks {_few(absent)}')
  dtype = dtype or source.dtype('embedding')
  writer = Writer(folder, shard_bytes, {'format': 'pt'})
  waiting: dict[str, list] = {}
  for place in found:
    array = source.read(place.ours)
    by_expert = '{e}' in place.row.theirs
    for e, name in enumerate(place.theirs):
      parts = waiting.setdefault(name, [])
      parts.append((place.row, array[e] if by_expert else array))
      if not place.row.part or place.row.part == 'last':
        tensor = _to_theirs(waiting.pop(name), sizes)
        router_bias = place.row.ours == 'ffn/bias'  # Theirs stays float32.
        writer.add(name, tensor.astype(
            np.float32 if router_bias else dtype))
  for i in range(config.mtp_depth):
    for name, ours in _MTP_SHARED.items():
      if ours in source:
        array = np.ascontiguousarray(
            source.read(ours) if ours == 'embedding' else source.read(ours).T)
        writer.add(f'model.layers.{config.num_layers + i}.{name}',
                   array.astype(dtype))
  write_text(Path(folder) / 'config.json',
             json.dumps(write_config(config, dtype), indent=2) + '\n')
  writer.close()


def _check(reader: Reader, found: list[Place], sizes, config: ModelConfig):
  wrong, known = [], set()
  for place in found:
    want = _their_shape(place.row, sizes)
    for name in place.theirs:
      if name not in reader:
        wrong.append(f'{name} is missing')
      elif name not in known and reader.shapes[name] != want:
        wrong.append(f'{name} has shape {reader.shapes[name]}, config.json '
                     f'says {want}')
      known.add(name)
  ignored = _ignored(config)
  wrong += [
      f'{name} is unknown' for name in reader.shapes
      if name not in known and name.removesuffix('_scale_inv') not in known
      and not ignored.fullmatch(name)]
  if wrong:
    raise UserError(
        f'import-hf: {reader.path} does not hold what its config.json says: '
        + _few(sorted(set(wrong))))


def _few(names: list[str], most: int = 40) -> str:
  more = f'; and {len(names) - most} more' if len(names) > most else ''
  return '; '.join(names[:most]) + more


def _ignored(config: ModelConfig) -> re.Pattern:
  """What says nothing new: old checkpoints' frequencies, and copies."""
  names = [r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq']
  names += [re.escape(f'model.layers.{config.num_layers + i}.{name}')
            for i in range(config.mtp_depth) for name in _MTP_SHARED]
  if config.tie_embeddings:
    names.append(r'lm_head\.weight')
  return re.compile('|'.join(names))


def _read(reader: Reader, name: str) -> np.ndarray:
  tensor = reader.read(name)
  if f'{name}_scale_inv' not in reader:
    return tensor
  scale = reader.read(f'{name}_scale_inv').astype(np.float32)
  rows, columns = tensor.shape
  if scale.shape != (-(-rows // BLOCK), -(-columns // BLOCK)):
    raise UserError(
        f'import-hf: {name}_scale_inv has shape {scale.shape}; {name} of '
        f'{tensor.shape} in blocks of {BLOCK} × {BLOCK} needs another')
  spread = np.repeat(np.repeat(scale, BLOCK, 0), BLOCK, 1)[:rows, :columns]
  return tensor.astype(np.float32) * spread


def read_config(folder: Path) -> dict:
  """The architecture that a checkpoint's config.json describes.

  Returns:
    The fields of ModelConfig, those that a file cannot know at their defaults
    for training: dtype, remat, dispatch.

  Raises:
    UserError: no such file, another family, or a feature that we do not have.
  """
  path = Path(folder).expanduser() / 'config.json'
  try:
    theirs = json.loads(path.read_text())
  except OSError as error:
    raise UserError(f'import-hf: no file {path}; give the folder of a '
                    'checkpoint') from error
  except ValueError as error:
    raise UserError(f'import-hf: {path} is not JSON ({error})') from error
  kind = theirs.get('model_type') if isinstance(theirs, dict) else None
  if kind not in FAMILIES:
    raise UserError(
        f'import-hf: {path} has model_type {kind!r}; there are '
        f'{", ".join(FAMILIES)}')
  _refuse(path, theirs)
  try:
    return _architecture(kind, theirs)
  except KeyError as error:
    raise UserError(f'import-hf: {path} lacks {error.args[0]!r}') from error


_ONLY = {  # Keys whose other values change the model in ways that we lack.
    'hidden_act': ('silu',), 'attention_bias': (False,), 'mlp_bias': (False,),
    'use_sliding_window': (False,), 'scoring_func': ('sigmoid',),
    'topk_method': ('noaux_tc',), 'moe_layer_freq': (1,),
    'rope_interleave': (True,), 'norm_topk_prob': (True, False)}


def _refuse(path: Path, theirs: dict):
  for key, known in _ONLY.items():
    if theirs.get(key, known[0]) not in known:
      raise UserError(f'import-hf: {path} has {key} = {theirs[key]!r}; only '
                      f'{known[0]!r} is supported')


def _architecture(kind: str, h: dict) -> dict:
  mla, layers = kind == 'deepseek_v3', h['num_hidden_layers']
  heads, moe = h['num_attention_heads'], kind == 'deepseek_v3'
  stored = h.get('torch_dtype') or h.get('dtype')
  return dict(
      vocab_size=h['vocab_size'], num_layers=layers,
      first_k_dense=h['first_k_dense_replace'] if moe else layers,
      d_model=h['hidden_size'],
      tie_embeddings=h.get('tie_word_embeddings', False),
      attention='mla' if mla else 'gqa', num_heads=heads,
      q_lora_rank=(h['q_lora_rank'] or 0) if mla else 0,
      kv_lora_rank=h['kv_lora_rank'] if mla else 0,
      qk_nope_head_dim=h['qk_nope_head_dim'] if mla else 0,
      qk_rope_head_dim=h['qk_rope_head_dim'] if mla else 0,
      v_head_dim=h['v_head_dim'] if mla else 0,
      num_kv_heads=0 if mla else h['num_key_value_heads'],
      head_dim=0 if mla else h.get('head_dim') or h['hidden_size'] // heads,
      qkv_bias=kind == 'qwen2', qk_norm=kind == 'qwen3',
      attention_kernel='auto', rope=_rope(h, 'adjacent' if mla else 'halves'),
      ffn_dim=h['intermediate_size'],
      expert_ffn_dim=h['moe_intermediate_size'] if moe else 0,
      num_experts=h['n_routed_experts'] if moe else 0,
      num_shared_experts=(h['n_shared_experts'] or 0) if moe else 0,
      experts_per_token=h['num_experts_per_tok'] if moe else 0,
      affinity='sigmoid',
      num_expert_groups=h['n_group'] if moe else 0,
      topk_groups=h['topk_group'] if moe else 0, group_score='top2',
      normalise_gates=h.get('norm_topk_prob', True),
      routed_scaling=h['routed_scaling_factor'] if moe else 1.0,
      capacity_factor=0.0,
      mtp_depth=h.get('num_nextn_predict_layers') or 0, scalar_head=False,
      norm_eps=h['rms_norm_eps'],
      init_std=h.get('initializer_range', 0.02),
      max_context=h['max_position_embeddings'],
      dtype='float32' if stored == 'float32' else 'bfloat16',
      fp8=False, remat=True, unroll=1, moe_dispatch='auto')


def _rope(h: dict, pairs: str) -> dict:
  """From `rope_theta` and `rope_scaling`, or newer `rope_parameters`."""
  said = h.get('rope_parameters') or h.get('rope_scaling') or {}
  theta = said.get('rope_theta', h.get('rope_theta'))
  if theta is None:
    raise KeyError('rope_theta')
  kind = said.get('rope_type', said.get('type', 'default'))
  if kind not in ('default', 'yarn', 'llama3'):
    raise UserError(f'import-hf: config.json has rope_type {kind!r}; there '
                    'are default, yarn and llama3')
  if kind == 'yarn' and (
      pairs == 'halves' or said.get('attention_factor') is not None):
    raise UserError('import-hf: config.json scales YaRN by attention_factor, '
                    'or without MLA; only mscale with MLA is supported')
  return dict(
      theta=theta, pairs=pairs, scaling='none' if kind == 'default' else kind,
      factor=said.get('factor', 1.0),
      original_context=said.get('original_max_position_embeddings',
                                h['max_position_embeddings']),
      beta_fast=said.get('beta_fast', 32.0),
      beta_slow=said.get('beta_slow', 1.0), mscale=said.get('mscale', 1.0),
      mscale_all_dim=said.get('mscale_all_dim', 0.0),
      low_freq_factor=said.get('low_freq_factor', 1.0),
      high_freq_factor=said.get('high_freq_factor', 4.0))


_ARCHITECTURES = {
    'deepseek_v3': 'DeepseekV3ForCausalLM', 'llama': 'LlamaForCausalLM',
    'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}


def write_config(c: ModelConfig, dtype: np.dtype) -> dict:
  """config.json in the keys of hub checkpoints."""
  kind = family(c)
  made = dict(
      architectures=[_ARCHITECTURES[kind]], model_type=kind,
      vocab_size=c.vocab_size, hidden_size=c.d_model,
      intermediate_size=c.ffn_dim, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, hidden_act='silu',
      max_position_embeddings=c.max_context, rms_norm_eps=c.norm_eps,
      initializer_range=c.init_std, tie_word_embeddings=c.tie_embeddings,
      rope_theta=c.rope.theta, rope_scaling=_their_rope(c.rope),
      torch_dtype=str(np.dtype(dtype)))
  if c.attention == 'gqa':
    return made | dict(
        num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim)
  return made | dict(
      num_key_value_heads=c.num_heads, q_lora_rank=c.q_lora_rank or None,
      kv_lora_rank=c.kv_lora_rank, qk_nope_head_dim=c.qk_nope_head_dim,
      qk_rope_head_dim=c.qk_rope_head_dim, v_head_dim=c.v_head_dim,
      first_k_dense_replace=c.first_k_dense,
      moe_intermediate_size=c.expert_ffn_dim, moe_layer_freq=1,
      n_routed_experts=c.num_experts, n_shared_experts=c.num_shared_experts,
      num_experts_per_tok=c.experts_per_token, n_group=c.num_expert_groups,
      topk_group=c.topk_groups, norm_topk_prob=c.normalise_gates,
      routed_scaling_factor=c.routed_scaling, scoring_func='sigmoid',
      topk_method='noaux_tc', num_nextn_predict_layers=c.mtp_depth)


def _their_rope(r: RopeConfig) -> dict | None:
  if r.scaling == 'none':
    return None
  made = dict(rope_type=r.scaling, type=r.scaling, factor=r.factor,
              original_max_position_embeddings=r.original_context)
  if r.scaling == 'yarn':
    return made | dict(beta_fast=r.beta_fast, beta_slow=r.beta_slow,
                       mscale=r.mscale, mscale_all_dim=r.mscale_all_dim)
  return made | dict(low_freq_factor=r.low_freq_factor,
                     high_freq_factor=r.high_freq_factor)
