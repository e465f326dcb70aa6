"""Safetensors in and out: named tensors in one file, or in shards of a folder.

Nothing is read before it is asked for, and then no more than the slice that
was asked for; what is written goes from memory piece by piece.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from r1jax.errors import UserError

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
_FP8 = {'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2}
_DTYPES = {
  code: np.dtype(kind)
  for code, kind in (
    _FP8
    | {
      'F64': np.float64,
      'F32': np.float32,
      'F16': np.float16,
      'BF16': ml_dtypes.bfloat16,
      'I64': np.int64,
      'I32': np.int32,
      'I16': np.int16,
      'I8': np.int8,
      'U8': np.uint8,
      'BOOL': np.bool_,
    }
  ).items()
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_SLAB_BYTES = 8 << 20  # Copied at once on the way to the disk.


class Reader:
  """Tensors by name, read slice by slice.

  Attributes:
    path: The file, or the folder with its index.
    shapes: Name to shape, of everything that is there.
  """

  def __init__(self, path: Path):
    """Opens every shard and reads its header.

    Raises:
      UserError: naming the file that is missing or broken.
    """
    self.path = Path(path).expanduser()
    self._files, self._file_of, self.shapes = {}, {}, {}
    self.metadata: dict[str, str] = {}
    for file in _shards(self.path):
      self._open(file)

  def _open(self, file: Path):
    try:
      opened = safetensors.safe_open(file, 'numpy')
      self.metadata |= opened.metadata() or {}
      for name in opened.keys():
        self._file_of[name] = file
        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
    except FileNotFoundError as error:
      raise UserError(f'weights: no file {file}') from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
      raise UserError(
        f'weights: cannot read {file} ({error}); it is no safetensors '
        'file, or a broken one'
      ) from error
    self._files[file] = opened

  def __contains__(self, name: str) -> bool:
    return name in self.shapes

  def dtype(self, name: str) -> np.dtype:
    code = self._slice(name).get_dtype()
    if code not in _DTYPES:
      raise UserError(
        f'weights: {name} of {self._file_of[name]} is {code}; there are '
        f'{", ".join(_DTYPES)}'
      )
    return _DTYPES[code]

  def read(self, name: str, index: tuple = ()) -> np.ndarray:
    """The tensor, or the part of it that a tuple of slices names."""
    code = self._slice(name).get_dtype()
    if code in _FP8:  # NumPy's reader has no name for it: map the bytes.
      return np.array(self._mapped(name, _FP8[code])[index])
    return self._slice(name)[index or (slice(None),) * self._rank(name)]

  def _rank(self, name: str) -> int:
    return len(self.shapes[name])

  def _slice(self, name: str):
    return self._files[self._file_of[name]].get_slice(name)

  def _mapped(self, name: str, dtype) -> np.ndarray:
    file = self._file_of[name]
    with open(file, 'rb') as opened:
      length = int.from_bytes(opened.read(8), 'little')
      entry = json.loads(opened.read(length))[name]
    return np.memmap(
      file,
      dtype,
      'r',
      8 + length + entry['data_offsets'][0],
      tuple(entry['shape']),
    )


def _shards(path: Path) -> list[Path]:
  if not path.is_dir():
    return [path]
  index = path / INDEX
  if index.exists():
    try:
      names = json.loads(index.read_text())['weight_map'].values()
    except (ValueError, KeyError, AttributeError) as error:
      raise UserError(
        f'weights: {index} is not an index of safetensors'
      ) from error
    return [path / name for name in sorted(set(names))]
  if (path / SINGLE).exists():
    return [path / SINGLE]
  raise UserError(f'weights: {path} has neither {SINGLE} nor {INDEX}')


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor to be written: all is known of it but its numbers.

  Attributes:
    name: In the file.
    dtype: In the file; pieces are converted to it.
    shape: In the file.
    pieces: Each reads an array. One after the other, in C order, these hold
      the tensor's numbers; only one is in memory at a time.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  pieces: tuple[Callable[[], np.ndarray], ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def write(
  folder: Path,
  tensors: Sequence[Tensor],
  shard_bytes: int,
  metadata: Mapping[str, str],
  beside: Mapping[str, bytes] | None = None,
):
  """Tensors into shards of at most `shard_bytes`, and an index at the end.

  A single shard is one file, SINGLE, without an index. The index, or the
  single file, appears last: before it, the folder holds no checkpoint.

  Args:
    folder: Is made where it is not there.
    tensors: In the order in which they fill the shards.
    shard_bytes: A tensor that is larger has a shard of its own.
    metadata: Of every shard.
    beside: Contents by the names of their files in the folder.

  Raises:
    UserError: the folder or a file cannot be written.
  """
  folder = Path(folder)
  shards = _split(tensors, shard_bytes)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for i, shard in enumerate(shards, 1):
      _write_shard(folder / _part(i), shard, metadata)
    for name, content in (beside or {}).items():
      write_bytes(folder / name, content)
    if len(shards) == 1:
      os.replace(folder / _part(1), folder / SINGLE)
      return
    file_of = {}
    for i, shard in enumerate(shards, 1):
      file = f'model-{i:05d}-of-{len(shards):05d}.safetensors'
      os.replace(folder / _part(i), folder / file)
      file_of |= {tensor.name: file for tensor in shard}
    write_text(
      folder / INDEX,
      json.dumps(
        {
          'metadata': {'total_size': sum(t.nbytes for t in tensors)},
          'weight_map': file_of,
        },
        indent=1,
      ),
    )
  except OSError as error:
    raise UserError(f'cannot write to {folder}: {error}') from error


def _split(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
  shards, room = [[]], limit
  for tensor in tensors:
    if shards[-1] and tensor.nbytes > room:
      shards.append([])
      room = limit
    shards[-1].append(tensor)
    room -= tensor.nbytes
  return shards


def _write_shard(
  path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]
):
  """The header's length in 8 bytes, the header in JSON, then the numbers."""
  header: dict = {'__metadata__': dict(metadata)}
  end = 0
  # The widest first, so that each lies at a multiple of its own width: torch
  # maps no others.
  for tensor in sorted(tensors, key=lambda t: -t.dtype.itemsize):
    start, end = end, end + tensor.nbytes
    header[tensor.name] = {
      'dtype': _CODES[tensor.dtype],
      'shape': list(tensor.shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors:
      start, end = (
        8 + len(text) + x for x in header[tensor.name]['data_offsets']
      )
      file.seek(start)
      for read in tensor.pieces:
        _write_array(file, read(), tensor.dtype)
      assert file.tell() == end, f'{tensor.name} has pieces of another size'


def _write_array(file, array: np.ndarray, dtype: np.dtype):
  for slab in _slabs(array):
    whole = np.ascontiguousarray(slab, dtype)  # The array may be transposed.
    file.write(whole.reshape(-1).view(np.uint8).data)


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
  """Parts of about _SLAB_BYTES along the first axis."""
  array = np.atleast_1d(array)
  rows = max(1, len(array) * _SLAB_BYTES // max(1, array.nbytes))
  for start in range(0, len(array), rows):
    yield array[start : start + rows]


def _part(number: int) -> str:
  return f'shard-{number:05d}.partial'


def write_text(path: Path, text: str):
  """Atomic: a reader never meets half a file."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes):
  partial = path.with_suffix(f'.partial{os.getpid()}')
  partial.write_bytes(content)
  partial.replace(path)
