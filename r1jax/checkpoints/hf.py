"""Hugging Face checkpoints as tables: their names and axes against ours.

A row says where a parameter of ours lies in a checkpoint of theirs:

  Row('attention/q_up', 'QNJ', 'self_attn.q_b_proj.weight', '(NJ)Q')

reads: theirs is a matrix with N·J rows, head-major, and Q columns; ours has
the axes Q, N, J. Torch keeps a linear layer as [out, in], we as [in, out].
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
import math
from pathlib import Path
import re

import numpy as np

from r1jax.checkpoints.hf_config import family, read_config, write_config
from r1jax.checkpoints.storage import Reader, Tensor, write
from r1jax.config.keys import flatten
from r1jax.errors import UserError
from r1jax.model.config import ModelConfig
from r1jax.model.quant import BLOCK


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
  Row('attention/kv_down', 'DX', 'self_attn.kv_a_proj_with_mqa.weight', 'XD'),
  Row('attention/kv_norm/scale', 'C', 'self_attn.kv_a_layernorm.weight', 'C'),
  Row('attention/k_up', 'CNH', 'self_attn.kv_b_proj.weight', '(NY)C', 'first'),
  Row('attention/v_up', 'CNU', 'self_attn.kv_b_proj.weight', '(NY)C', 'last'),
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
    V=c.vocab_size,
    D=c.hidden_size,
    N=c.num_attention_heads,
    K=c.num_key_value_heads,
    H=c.qk_nope_head_dim if mla else c.head_dim,
    Q=c.q_lora_rank,
    C=c.kv_lora_rank,
    J=c.qk_nope_head_dim + c.qk_rope_head_dim,
    U=c.v_head_dim,
    X=c.cache_width,
    Y=c.qk_nope_head_dim + c.v_head_dim,
    F=c.intermediate_size,
    I=c.moe_intermediate_size,
    E=c.n_routed_experts,
    Z=c.moe_intermediate_size * c.n_shared_experts,
    G=2 * c.hidden_size,
  )


def _groups(axes: str) -> list[str]:
  """'(NJ)Q' → ['NJ', 'Q']."""
  return [a or b for a, b in re.findall(r'\((\w+)\)|(\w)', axes)]


def _their_shape(row: Row, sizes: Mapping[str, int]) -> tuple[int, ...]:
  return tuple(
    math.prod(sizes[letter] for letter in group) for group in _groups(row.axes)
  )


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


def _to_theirs(parts: list[tuple[Row, np.ndarray]]) -> np.ndarray:
  """The inverse, but for the axes: those in brackets are still apart.

  A tensor of theirs may be made of two of ours.
  """
  pieces = []
  for row, array in parts:
    ours = row.letters.removeprefix('E') if '{e}' in row.theirs else row.letters
    letters = ''.join(_groups(row.axes))
    if row.part:
      letters = letters.replace('Y', 'H' if row.part == 'first' else 'U')
    pieces.append(np.transpose(array, [ours.index(x) for x in letters]))
  axis = ''.join(_groups(parts[0][0].axes)).find('Y')
  return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)


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
        experts = range(config.n_routed_experts) if '{e}' in name else (0,)
        yield Place(
          f'{ours}/{row.ours}', row, tuple(name.format(e=e) for e in experts)
        )

  found = [Place(row.ours, row, (row.theirs[1:],)) for row in _TOP[:1]]
  first_moe = config.first_k_dense_replace
  for i in range(first_moe):
    found += layer(i, f'dense_layers/{i}', _BLOCK + attention + dense)
  for i in range(config.num_moe_layers):
    found += layer(first_moe + i, f'moe_layers/{i}', _BLOCK + attention + moe)
  for i in range(config.num_nextn_predict_layers):
    number = config.num_hidden_layers + i
    found += layer(number, f'mtp/{i}', _MTP)
    found += layer(
      number,
      f'mtp/{i}/block',
      _BLOCK + attention + (moe if config.num_moe_layers else dense),
    )
  found += [
    Place(row.ours, row, (row.theirs[1:],))
    for row in _TOP[1:]
    if row.ours not in absent
  ]
  return found


def _absent(c: ModelConfig) -> set[str]:
  """Rows that this architecture does not have."""
  absent = set()
  if c.tie_word_embeddings:
    absent.add('head')
  if c.attention == 'mla':
    absent |= (
      {'attention/q'}
      if c.q_lora_rank
      else {'attention/q_down', 'attention/q_norm/scale', 'attention/q_up'}
    )
  else:
    if not c.qkv_bias:
      absent |= {f'attention/{x}_bias' for x in 'qkv'}
    if not c.qk_norm:
      absent |= {'attention/q_norm/scale', 'attention/k_norm/scale'}
  if not c.n_shared_experts:
    absent |= {f'ffn/shared/{x}' for x in ('gate', 'up', 'down')}
  return absent


def read_tensors(folder: Path, config: ModelConfig) -> list[Tensor]:
  """Our tensors, in the order of the layers, out of a checkpoint of theirs.

  All is checked here; numbers are read when they are written, one tensor of
  theirs at a time. A tensor with a `_scale_inv` beside it is FP8 in 128 × 128
  blocks (V3 section 3.3) and comes back in float32; every other keeps its
  dtype, and a stack of experts has their widest.

  Raises:
    UserError: naming every missing, unknown or misshaped tensor, at once; or
      a copy that is none.
  """
  reader, sizes, found = Reader(folder), _sizes(config), places(config)
  _check(reader, found, sizes, config)
  for copy, main in _copies(config).items():
    if copy in reader and not _same(reader, copy, main):
      raise UserError(
        f'import-hf: {copy} of {reader.path} should repeat '
        f'{main}, but differs; models with their own are not '
        'supported'
      )

  def piece(place: Place, name: str):
    return _to_ours(_read(reader, name), place.row, sizes)

  return [
    Tensor(
      place.ours,
      _widest(_dtype(reader, name) for name in place.theirs),
      tuple(sizes[letter] for letter in place.row.letters),
      tuple(functools.partial(piece, place, name) for name in place.theirs),
    )
    for place in found
  ]


class Checkpoint:
  """One of theirs, read under our names as storage.Reader reads ours.

  Of a stack of experts those are read that are wanted; every other tensor is
  read whole, by each device that wants a part of it. import-hf makes of large
  checkpoints what is read by slices.

  Attributes:
    path: Its folder.
    metadata: What ours would say of its architecture.
  """

  def __init__(self, folder: Path):
    self.path = Path(folder).expanduser()
    self._fields = read_config(self.path)
    self.metadata = {'about': about(self._fields, self.path)}

  @functools.cached_property
  def _tensors(self) -> dict[str, Tensor]:
    config = ModelConfig.from_dict(self._fields)
    return {tensor.name: tensor for tensor in read_tensors(self.path, config)}

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of our tensors."""
    return {name: x.shape for name, x in self._tensors.items()}

  def __contains__(self, name: str) -> bool:
    return name in self.shapes

  def read(self, name: str, index: tuple = ()) -> np.ndarray:
    tensor, pieces = self._tensors[name], self._tensors[name].pieces
    index = index or (slice(None),) * len(tensor.shape)
    if len(pieces) > 1:  # One of each expert.
      pieces, index = pieces[index[0]], (slice(None), *index[1:])
    found = np.concatenate([read().reshape(-1) for read in pieces])
    return found.reshape(-1, *tensor.shape[1:]).astype(tensor.dtype)[index]


def about(fields: dict, folder: Path) -> str:
  """What a checkpoint of ours that was made from theirs says of itself."""
  return json.dumps({'config': flatten({'model': fields}), 'from': str(folder)})


def opened(path: Path) -> Reader | Checkpoint:
  """A file or folder of ours, or a folder of theirs."""
  path = Path(path).expanduser()
  reader = Reader(path)
  return Checkpoint(path) if is_theirs(reader) else reader


def is_theirs(reader: Reader) -> bool:
  """Whether it reads a folder of Hugging Face's form."""
  return (
    'about' not in reader.metadata and (reader.path / 'config.json').exists()
  )


def write_tensors(
  folder: Path,
  config: ModelConfig,
  source: Reader,
  dtype: np.dtype | None,
  shard_bytes: int,
):
  """Writes a checkpoint of theirs from stored tensors of ours.

  Args:
    folder: Gets config.json and the safetensors.
    config: The model's.
    source: Our tensors, by stored name.
    dtype: Of what is written, the router's bias apart, which stays float32;
      None keeps that of each tensor.
    shard_bytes: At most so much in one file.

  Raises:
    UserError: naming every missing or misshaped tensor, at once.
  """
  sizes, found = _sizes(config), places(config)
  _check_source(source, found, sizes)
  made: dict[str, Tensor] = {}
  waiting: dict[str, list[tuple[Place, tuple]]] = {}
  for place in found:
    by_expert = '{e}' in place.row.theirs
    for e, name in enumerate(place.theirs):
      index = (slice(e, e + 1),) if by_expert else ()
      waiting.setdefault(name, []).append((place, index))
      if place.row.part != 'first':
        made[name] = _their_tensor(
          name, waiting.pop(name), source, sizes, dtype
        )
  for copy, main in _copies(config).items():
    if copy != _HEAD:
      made[copy] = dataclasses.replace(made[main], name=copy)
  said = write_config(config, dtype or source.dtype('embedding'))
  write(
    folder,
    list(made.values()),
    shard_bytes,
    {'format': 'pt'},
    {'config.json': json.dumps(said, indent=2).encode() + b'\n'},
  )


def _their_tensor(
  name: str,
  parts: list[tuple[Place, tuple]],
  source: Reader,
  sizes,
  dtype: np.dtype | None,
) -> Tensor:
  """A tensor of theirs; parts are places of ours and the slices of them."""
  first = parts[0][0].row
  if dtype is None:
    dtype = _widest(source.dtype(place.ours) for place, _ in parts)
  elif first.ours == 'ffn/bias':
    dtype = np.dtype(np.float32)

  def read(place: Place, index: tuple) -> np.ndarray:
    array = source.read(place.ours, index)
    return array[0] if index else array  # One expert's.

  def piece() -> np.ndarray:
    return _to_theirs(
      [(place.row, read(place, index)) for place, index in parts]
    )

  return Tensor(name, np.dtype(dtype), _their_shape(first, sizes), (piece,))


def _widest(dtypes: Iterable[np.dtype]) -> np.dtype:
  """The one of them, or what holds the numbers of each."""
  kinds = set(dtypes)
  if len(kinds) == 1:
    return kinds.pop()
  return max(kinds | {np.dtype(np.float32)}, key=lambda kind: kind.itemsize)


_EMBEDDING, _HEAD = (row.theirs[1:] for row in (_TOP[0], _TOP[2]))


def _copies(config: ModelConfig) -> dict[str, str]:
  """Tensors of theirs that repeat another, to the name of that one."""
  copies = {_HEAD: _EMBEDDING} if config.tie_word_embeddings else {}
  for i in range(config.num_nextn_predict_layers):
    layer = f'model.layers.{config.num_hidden_layers + i}'
    copies |= {
      f'{layer}.embed_tokens.weight': _EMBEDDING,
      f'{layer}.shared_head.head.weight': copies.get(_HEAD, _HEAD),
    }
  return copies


def _same(reader: Reader, one: str, other: str) -> bool:
  """Compares a few rows at a time: these are the largest tensors."""
  if reader.shapes[one] != reader.shapes[other]:
    return False
  rows, columns = reader.shapes[one]
  step = max(1, (1 << 20) // columns)
  for start in range(0, rows, step):
    part = (slice(start, min(start + step, rows)),)
    a, b = (reader.read(name, part).astype(np.float64) for name in (one, other))
    if not np.array_equal(a, b, equal_nan=True):
      return False
  return True


def _check_source(source: Reader, found: list[Place], sizes):
  wrong = []
  for place in found:
    want = tuple(sizes[letter] for letter in place.row.letters)
    if place.ours not in source:
      wrong.append(place.ours)
    elif source.shapes[place.ours] != want:
      wrong.append(
        f'{place.ours} of shape {want}, it has {source.shapes[place.ours]}'
      )
  if wrong:
    raise UserError(f'export-hf: {source.path} lacks {_few(wrong)}')


def _check(reader: Reader, found: list[Place], sizes, config: ModelConfig):
  wrong, known = [], set()
  for place in found:
    want = _their_shape(place.row, sizes)
    for name in place.theirs:
      if name not in reader:
        wrong.append(f'{name} is missing')
      elif name not in known:
        wrong += _misshapen(reader, name, want)
      known.add(name)
  copies = _copies(config)
  wrong += [
    f'{name} is unknown'
    for name in reader.shapes
    if name not in known
    and name.removesuffix(_SCALE) not in known
    and name not in copies
    and not re.fullmatch(_FREQUENCIES, name)
  ]
  if wrong:
    raise UserError(
      f'import-hf: {reader.path} does not hold what its config.json says: '
      + _few(sorted(set(wrong)))
    )


def _misshapen(reader: Reader, name: str, want: tuple[int, ...]) -> list[str]:
  """What is wrong with the shape of a tensor, or with that of its scale."""
  wrong = []
  if reader.shapes[name] != want:
    wrong.append(
      f'{name} has shape {reader.shapes[name]}, config.json says {want}'
    )
  scale = reader.shapes.get(name + _SCALE)
  blocks = tuple(-(-size // BLOCK) for size in want)
  if scale is not None and (len(want) != 2 or scale != blocks):
    wrong.append(
      f'{name}{_SCALE} has shape {scale}; {name} of {want} in '
      f'blocks of {BLOCK} × {BLOCK} needs another'
    )
  return wrong


def _few(names: list[str], most: int = 40) -> str:
  more = f'; and {len(names) - most} more' if len(names) > most else ''
  return '; '.join(names[:most]) + more


_SCALE = '_scale_inv'
# Of old checkpoints; they follow from config.json.
_FREQUENCIES = r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq'


def _dtype(reader: Reader, name: str) -> np.dtype:
  if name + _SCALE in reader:
    return np.dtype(np.float32)
  return reader.dtype(name)


def _read(reader: Reader, name: str) -> np.ndarray:
  """A tensor of theirs; out of FP8 and its scales, row of blocks by row."""
  tensor = reader.read(name)
  if name + _SCALE not in reader:
    return tensor
  scale = reader.read(name + _SCALE).astype(np.float32)
  wide = np.empty(tensor.shape, np.float32)
  for i, scale_row in enumerate(scale):
    rows = slice(i * BLOCK, (i + 1) * BLOCK)
    spread = np.repeat(scale_row, BLOCK)[: tensor.shape[1]]
    wide[rows] = tensor[rows].astype(np.float32) * spread
  return wide
