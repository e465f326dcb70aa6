"""Safetensors in and out: named tensors in one file, or in shards of a folder.

Nothing is read before it is asked for, and then no more than the slice that
was asked for; nothing is written before its shard is full.
"""

from collections.abc import Mapping
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from r1jax.errors import UserError

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
_FP8 = {'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2}


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
          f'weights: cannot read {file} ({error}); it is no safetensors file, or a broken one') from error
    self._files[file] = opened

  def __contains__(self, name: str) -> bool:
    return name in self.shapes

  def dtype(self, name: str) -> np.dtype:
    code = self._slice(name).get_dtype()
    if code in _FP8:
      return np.dtype(_FP8[code])
    return self._slice(name)[_nothing(self.shapes[name])].dtype

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
    return np.memmap(file, dtype, 'r', 8 + length + entry['data_offsets'][0],
                     tuple(entry['shape']))


def _nothing(shape: tuple[int, ...]) -> tuple:
  return (slice(0, 0),) * len(shape) if shape else ()


def _shards(path: Path) -> list[Path]:
  if not path.is_dir():
    return [path]
  index = path / INDEX
  if index.exists():
    try:
      names = json.loads(index.read_text())['weight_map'].values()
    except (ValueError, KeyError, AttributeError) as error:
      raise UserError(
          f'weights: {index} is not an index of safetensors') from error
    return [path / name for name in sorted(set(names))]
  if (path / SINGLE).exists():
    return [path / SINGLE]
  raise UserError(f'weights: {path} has neither {SINGLE} nor {INDEX}')


class Writer:
  """Tensors into shards of at most `shard_bytes`, and an index at the end.

  One shard is in memory at a time. A single shard is one file, SINGLE,
  without an index. The index, or the single file, appears last: before it,
  the folder holds no checkpoint.
  """

  def __init__(self, folder: Path, shard_bytes: int,
               metadata: Mapping[str, str]):
    self._folder, self._limit = Path(folder), shard_bytes
    self._metadata = dict(metadata)
    self._pending: dict[str, np.ndarray] = {}
    self._shards: list[list[str]] = []
    self._bytes = self._total = 0
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f'cannot write to {self._folder}: {error}') from error

  def add(self, name: str, tensor: np.ndarray):
    if self._pending and self._bytes + tensor.nbytes > self._limit:
      self._flush()
    self._pending[name] = np.ascontiguousarray(tensor)
    self._bytes += tensor.nbytes
    self._total += tensor.nbytes

  def close(self):
    self._flush()
    count = len(self._shards)
    if count == 1:
      os.replace(self._folder / _part(1), self._folder / SINGLE)
      return
    weight_map = {}
    for i, names in enumerate(self._shards, 1):
      file = f'model-{i:05d}-of-{count:05d}.safetensors'
      os.replace(self._folder / _part(i), self._folder / file)
      weight_map |= {name: file for name in names}
    write_text(self._folder / INDEX, json.dumps(
        {'metadata': {'total_size': self._total},
         'weight_map': weight_map}, indent=1))

  def _flush(self):
    self._shards.append(list(self._pending))
    part = self._folder / _part(len(self._shards))
    try:
      save_file(self._pending, part, metadata=self._metadata)
      part.chmod(0o644)
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(f'cannot write {part}: {error}') from error
    self._pending, self._bytes = {}, 0


def _part(number: int) -> str:
  return f'shard-{number:05d}.partial'


def write_text(path: Path, text: str):
  """Atomic: a reader never meets half a file."""
  partial = path.with_suffix('.partial')
  partial.write_text(text)
  partial.replace(path)
