"""Reads rows of JSON lines, Parquet, CSV, and folders saved by `datasets`.

Readers only report whether a row can be read. Its fields are declared in
sources.py and validated by the modules that use them.
"""

import codecs
from collections.abc import Iterator, Sequence
import csv
import glob
import gzip
import json
import os
from pathlib import Path
from typing import NamedTuple

from r1jax import buckets
from r1jax.errors import UserError

SUFFIXES = ('.jsonl', '.jsonl.gz', '.parquet', '.csv')


class Row(NamedTuple):
  """One row of a file.

  Attributes:
    where: 'file:number'; the number counts lines, or rows of Parquet, Arrow and
      CSV files, from 1.
    fields: The row's fields by name; None if it cannot be read.
    problem: Why the row cannot be read; '' if it can.
  """

  where: str
  fields: dict | None
  problem: str = ''


def resolve(path: str, suffixes: Sequence[str] = ('',)) -> Path:
  """Finds a data file or folder: at its path, or under $R1JAX_DATA.

  Args:
    path: Path of the file or folder.
    suffixes: Suffixes to try to append to the path; '' for none.

  Raises:
    UserError: there is no such file or folder.
  """
  root = os.environ.get('R1JAX_DATA', '')
  for candidate in _candidates(path):
    for suffix in suffixes:
      full = buckets.path(candidate.rstrip('/') + suffix)
      if buckets.exists(full):
        return buckets.fetch(full)
  raise UserError(
    f'data: no {path}'
    + (
      f', nor in R1JAX_DATA={root}'
      if root
      else '; set R1JAX_DATA to the folder that holds it'
    )
  )


def _candidates(path: str) -> tuple[str, ...]:
  """Returns what a path may name: itself, and a file under $R1JAX_DATA."""
  root = os.environ.get('R1JAX_DATA', '')
  if not root or '://' in path or os.path.isabs(path):
    return (path,)
  return (path, os.path.join(root, path))


def files(path: str) -> list[Path]:
  """Returns the files that a path names, in order.

  Args:
    path: A file, with or without its suffix (.jsonl, .jsonl.gz, .parquet,
      .csv); a file of one JSON array; a folder that `Dataset.save_to_disk` wrote; a
      folder of shards; or a pattern such as 'gsm8k/data/train-*.parquet'.

  Raises:
    UserError: there are no files, or they seem to hold several splits.
  """
  if glob.has_magic(path) and not Path(path).exists():
    for pattern in _candidates(path):
      if '://' in pattern:
        urls = buckets.matches(buckets.path(pattern))
        matches = list(map(buckets.given, urls))
      else:
        matches = list(map(Path, sorted(glob.glob(pattern))))
      if matches:
        return matches
    raise UserError(f'data: no file matches {path!r}, here or in R1JAX_DATA')
  full = resolve(path, ('', *SUFFIXES))
  return [full] if full.is_file() else _folder_files(full)


def _folder_files(folder: Path) -> list[Path]:
  """Returns the files of a saved dataset, or of a folder of shards."""
  if (folder / 'dataset_dict.json').exists():
    splits = sorted(p.parent.name for p in folder.glob('*/state.json'))
    raise UserError(
      f'data: {folder} holds the splits {splits}; name one, as '
      f'in {folder}/{splits[0] if splits else "train"}'
    )
  if (folder / 'state.json').exists():
    try:
      state = json.loads((folder / 'state.json').read_text())
      return [folder / part['filename'] for part in state['_data_files']]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'data: cannot read {folder}/state.json: {error!r}'
      ) from error
  # The hub keeps shards in data/, or in a folder with the name of a config.
  folders = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != '.']
  for parent in (folder, folder / 'data', *folders[: len(folders) == 1]):
    shards = sorted(p for p in parent.glob('*') if p.name.endswith(SUFFIXES))
    kinds = {s for s in SUFFIXES if any(p.name.endswith(s) for p in shards)}
    mixed = {p.name.split('-')[0].split('.')[0] for p in shards} & _SPLITS
    if len(kinds) > 1 or len(mixed) > 1:
      raise UserError(
        f'data: {parent} mixes {sorted(mixed if len(mixed) > 1 else kinds)};'
        f' name the files, as in {parent}/{min(mixed or "*")}*'
      )
    if shards:
      return shards
  raise UserError(
    f'data: {folder} holds no rows: neither state.json nor '
    f'files of {", ".join(SUFFIXES)}'
  )


_SPLITS = {'train', 'test', 'validation', 'dev', 'eval'}


def rows(paths: Sequence[Path]) -> Iterator[Row]:
  """Yields every row of the files, in order; see `files`."""
  for file in paths:
    name = file.name
    if name.endswith('.parquet'):
      yield from _numbered(file, _parquet(file))
    elif name.endswith('.arrow'):
      yield from _numbered(file, _arrow(file))
    elif name.endswith('.csv'):
      yield from _csv(file)
    elif name.endswith('.gz'):
      with gzip.open(file) as lines:
        yield from _json_lines(file, lines)
    else:
      with open(file, 'rb') as lines:
        yield from _json_lines(file, lines)


def _json_lines(file: Path, lines) -> Iterator[Row]:
  """Yields the rows of JSON lines, or of one array; blank lines are none."""
  try:
    for number, line in enumerate(lines, 1):
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
        if line.lstrip().startswith(b'['):
          yield from _array(file, line + lines.read())
          return
      if line.strip():
        yield _json_line(f'{file}:{number}', line)
  except (OSError, EOFError) as error:  # A broken archive.
    raise UserError(f'data: cannot read {file}: {error}') from error


def _array(file: Path, content: bytes) -> Iterator[Row]:
  """Yields the rows of a JSON array, numbered from 1."""
  try:
    rows = json.loads(content.decode('utf-8'))
  except (ValueError, RecursionError) as error:
    raise UserError(f'data: {file} is no JSON array: {error}') from error
  for number, fields in enumerate(rows, 1):
    where = f'{file}:{number}'
    if isinstance(fields, dict):
      yield Row(where, fields)
    else:
      yield Row(where, None, 'is not a JSON object')


def _json_line(where: str, line: bytes) -> Row:
  try:
    fields = json.loads(line.decode('utf-8'))
  except (
    ValueError,
    RecursionError,
  ) as error:  # Invalid UTF-8, or invalid JSON.
    return Row(where, None, f'is not JSON: {error}')
  if not isinstance(fields, dict):
    return Row(where, None, 'is not a JSON object')
  return Row(where, fields)


def _csv(file: Path) -> Iterator[Row]:
  """Yields the rows of a CSV file, whose first row names the columns.

  All values are texts. The numbers count rows, since a text in quotes may have
  several lines.
  """
  number = 0
  try:
    with open(file, encoding='utf-8-sig', newline='') as lines:
      for number, fields in enumerate(csv.DictReader(lines, strict=True), 1):
        where = f'{file}:{number}'
        if None in fields or None in fields.values():
          yield Row(where, None, 'has not as many values as the first row')
        else:
          yield Row(where, fields)
  except (OSError, ValueError, csv.Error) as error:
    raise UserError(
      f'data: cannot read {file} after row {number}: {error}'
    ) from error


def _numbered(file: Path, batches) -> Iterator[Row]:
  number = 0
  try:
    for batch in batches:
      for fields in batch.to_pylist():
        number += 1
        yield Row(f'{file}:{number}', fields)
  except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors.
    raise UserError(
      f'data: cannot read {file} after row {number}: '
      f'{" ".join(str(error).split())}'
    ) from error


def _parquet(file: Path):
  from pyarrow import parquet  # It takes long, and JSONL needs none.

  with parquet.ParquetFile(file) as opened:
    yield from opened.iter_batches()


def _arrow(file: Path):
  """Yields record batches of Arrow's stream format, which `datasets` writes."""
  import pyarrow

  with pyarrow.memory_map(str(file)) as source:
    yield from pyarrow.ipc.open_stream(source)
