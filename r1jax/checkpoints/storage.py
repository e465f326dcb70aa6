"""Reads and writes safetensors lazily: one file, or a folder of shards.

A read touches the disk only for the requested slice. A write streams tensors
piece by piece, so that one piece at a time is in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from r1jax import buckets
from r1jax.checkpoints import tensor_digests
from r1jax.errors import UserError

SINGLE_FILE, INDEX_FILE = 'model.safetensors', 'model.safetensors.index.json'
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
_DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_log = logging.getLogger(__name__)
_METADATA_KEY = 'r1jax'  # Its value in the header is JSON.
_WRITE_BYTES = 8 << 20  # Bytes that one write call copies.


def encode_metadata(metadata: Mapping) -> dict[str, str]:
  """Returns safetensors metadata from which SafetensorsReader reads this."""
  return {_METADATA_KEY: json.dumps(metadata)}


class SafetensorsReader:
  """Reads tensors by name, whole or by slices.

  Attributes:
    path: The file, or the folder of shards.
    shapes: Shape of every tensor, by name.
    header: The safetensors metadata of all shards together.
    metadata: The part that r1jax wrote, such as the config; may be empty.
  """

  def __init__(self, path: Path):
    """Opens every shard and reads its header.

    Raises:
      UserError: A file is missing or broken; the message names it.
    """
    self.path = buckets.given(path)
    self._files: dict[Path, Any] = {}
    self._file_of: dict[str, Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.header: dict[str, str] = {}
    for file in _shards(self.path):
      self._open(file)

  def _open(self, file: Path):
    try:
      opened = safetensors.safe_open(file, 'numpy')
      self.header |= opened.metadata() or {}
      for name in opened.keys():
        self._file_of[name] = file
        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
    except FileNotFoundError as error:
      raise UserError(f'weights: no file {file}') from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
      raise UserError(
        f'weights: cannot read {file} ({error}); it is not a safetensors '
        'file, or it is broken'
      ) from error
    self._files[file] = opened

  @property
  def files(self) -> list[Path]:
    """The files that were opened."""
    return list(self._files)

  @property
  def metadata(self) -> dict:
    return json.loads(self.header.get(_METADATA_KEY, '{}'))

  def __contains__(self, name: str) -> bool:
    return name in self.shapes

  def dtype(self, name: str) -> np.dtype:
    """Returns the dtype of a tensor.

    Raises:
      UserError: r1jax does not support it.
    """
    code = self._slice(name).get_dtype()
    if code not in _DTYPES:
      raise UserError(
        f'weights: {name} of {self._file_of[name]} has dtype {code}; '
        f'supported are {", ".join(_DTYPES)}'
      )
    return _DTYPES[code]

  def read(self, name: str, index: tuple = ()) -> np.ndarray:
    """Returns a tensor, or the part of it that a tuple of slices selects."""
    code = self._slice(name).get_dtype()
    if code in _FP8:  # The NumPy reader does not know FP8: map the bytes.
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
  index, single = path / INDEX_FILE, path / SINGLE_FILE
  if single.exists():
    if index.exists():
      _log.warning(
        'weights: %s holds %s and %s; the first is read, as transformers does; '
        'delete the one that is stale',
        path,
        SINGLE_FILE,
        INDEX_FILE,
      )
    return [single]
  if index.exists():
    try:
      names = json.loads(index.read_text())['weight_map'].values()
    except (ValueError, KeyError, AttributeError) as error:
      raise UserError(f'weights: {index} is not a safetensors index') from error
    return [path / name for name in sorted(set(names))]
  raise UserError(f'weights: {path} has neither {SINGLE_FILE} nor {INDEX_FILE}')


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor to write, whose numbers are read when they are written.

  Attributes:
    name: Name in the file.
    dtype: Dtype in the file; pieces are converted to it.
    shape: Shape in the file.
    pieces: Functions that return one array each. The arrays, concatenated in C
      order, are the tensor; only one is in memory at a time.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  pieces: tuple[Callable[[], np.ndarray], ...]

  @property
  def nbytes(self) -> int:
    """Size in the file."""
    return math.prod(self.shape) * self.dtype.itemsize


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
  """Returns the dtype of all, or one that holds the numbers of each."""
  kinds = set(dtypes)
  if len(kinds) == 1:
    return kinds.pop()
  return max(kinds | {np.dtype(np.float32)}, key=lambda kind: kind.itemsize)


def write(
  folder: Path,
  tensors: Sequence[LazyTensor],
  shard_bytes: int,
  metadata: Mapping[str, str],
  extra_files: Mapping[str, bytes] | None = None,
  digests: bool = False,
):
  """Writes tensors into shards of at most `shard_bytes`, then their index.

  A single shard becomes one file, SINGLE_FILE, without an index. The index, or
  the single file, appears last: until then the folder holds no checkpoint.

  Args:
    folder: Created if it does not exist.
    tensors: The tensors, in the order in which they fill the shards.
    shard_bytes: Maximum size of a shard; a larger tensor has its own.
    metadata: Safetensors metadata of every shard; see encode_metadata.
    extra_files: Contents of other files in the folder, by relative path.
    digests: Whether the files have digests; see tensor_digests.py.

  Raises:
    UserError: The folder or a file cannot be written.
  """
  folder = Path(folder)
  shards = _split(tensors, shard_bytes)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for i, shard in enumerate(shards, 1):
      write_file(folder / _partial_name(i), shard, metadata, digests)
    for name, content in (extra_files or {}).items():
      (folder / name).parent.mkdir(exist_ok=True)
      write_bytes(folder / name, content)
    if len(shards) == 1:
      os.replace(folder / _partial_name(1), folder / SINGLE_FILE)
      return
    file_of: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
      file = f'model-{i:05d}-of-{len(shards):05d}.safetensors'
      os.replace(folder / _partial_name(i), folder / file)
      file_of |= {tensor.name: file for tensor in shard}
    write_text(
      folder / INDEX_FILE,
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


def _split(tensors: Sequence[LazyTensor], limit: int) -> list[list[LazyTensor]]:
  shards: list[list[LazyTensor]] = [[]]
  room = limit
  for tensor in tensors:
    if shards[-1] and tensor.nbytes > room:
      shards.append([])
      room = limit
    shards[-1].append(tensor)
    room -= tensor.nbytes
  return shards


def write_file(
  path: Path,
  tensors: Sequence[LazyTensor],
  metadata: Mapping[str, str],
  digests: bool = False,
):
  """Writes one safetensors file: header length (8 bytes), header, numbers.

  Args:
    path: The file.
    tensors: The tensors.
    metadata: Safetensors metadata.
    digests: Whether the header has the digest of each tensor.
  """
  header: dict = {'__metadata__': dict(metadata)}
  end = 0
  # The widest dtype comes first, so that every offset is a multiple of the
  # item size: PyTorch does not map tensors that are not aligned.
  for tensor in sorted(tensors, key=lambda t: -t.dtype.itemsize):
    start, end = end, end + tensor.nbytes
    header[tensor.name] = {
      'dtype': _DTYPE_CODES[tensor.dtype],
      'shape': list(tensor.shape),
      'data_offsets': [start, end],
    }
  found = tensor_digests.placeholder([t.name for t in tensors])
  text = tensor_digests.encode(header, found if digests else None)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors:
      start, end = (
        8 + len(text) + x for x in header[tensor.name]['data_offsets']
      )
      file.seek(start)
      hasher = hashlib.sha256() if digests else None
      for read in tensor.pieces:
        _write_array(file, read(), tensor.dtype, hasher)
      if hasher:
        found[tensor.name] = hasher.hexdigest()
      assert file.tell() == end, (
        f'{tensor.name} has pieces that do not fill its shape'
      )
    if digests:  # They are as long as the zeros in their place.
      file.seek(8)
      file.write(tensor_digests.sealed(header, found))


def _write_array(file, array: np.ndarray, dtype: np.dtype, hasher=None):
  for chunk in _chunks(array):
    # The array may be transposed.
    contiguous = np.ascontiguousarray(chunk, dtype)
    content = contiguous.reshape(-1).view(np.uint8).data
    file.write(content)
    if hasher:
      hasher.update(content)


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
  """Splits an array along its first axis into chunks of about _WRITE_BYTES."""
  array = np.atleast_1d(array)
  rows = max(1, len(array) * _WRITE_BYTES // max(1, array.nbytes))
  for start in range(0, len(array), rows):
    yield array[start : start + rows]


def _partial_name(number: int) -> str:
  return f'shard-{number:05d}.partial'


def write_text(path: Path, text: str):
  """Writes a text file atomically; see write_bytes."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes):
  """Writes a file atomically: nobody ever reads half of it."""
  partial = path.with_suffix(f'.partial{os.getpid()}')
  partial.write_bytes(content)
  partial.replace(path)
