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
from r1jax.hf_config import family, write_config
from r1jax.model.config import ModelConfig
from r1jax.model.quant import BLOCK
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
