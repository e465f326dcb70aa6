"""Rows of files: JSON lines, Parquet, and what `datasets` saved to a folder.

A reader judges nothing but whether a row can be read at all; what a row must
hold is said in sources.py and checked in rows.py.
"""

from collections.abc import Iterator, Sequence
import glob
import gzip
import json
import os
from pathlib import Path
from typing import NamedTuple

from r1jax.errors import UserError

SUFFIXES = ('.jsonl', '.jsonl.gz', '.parquet')


class Row(NamedTuple):
  """One row as it was read.

  Attributes:
    where: 'file:number', counted from 1: lines, or rows of a Parquet file.
    fields: None where the row cannot be read.
    problem: Why it cannot.
  """

  where: str
  fields: dict | None
  problem: str = ''


def resolve(path: str, suffixes: Sequence[str] = ('',)) -> Path:
  """Finds a data file or folder: as given, or under $R1JAX_DATA.

  Args:
    path: Of the file or folder.
    suffixes: What the path may lack.
  """
  root = os.environ.get('R1JAX_DATA', '')
  for place in (Path(path).expanduser(), Path(root) / path):
    for suffix in suffixes:
      full = place.with_name(place.name + suffix) if suffix else place
      if full.exists():
        return full
  raise UserError(
    f'data: no {path}'
    + (
      f', nor in R1JAX_DATA={root}'
      if root
      else '; set R1JAX_DATA to the folder that holds it'
    )
  )


def files(path: str) -> list[Path]:
  """The files that a path names, in order.

  Args:
    path: A file, with or without its suffix (.jsonl, .jsonl.gz, .parquet); a
      folder that `Dataset.save_to_disk` wrote; a folder of shards; or a
      pattern such as 'gsm8k/data/train-*.parquet'.

  Raises:
    UserError: there is nothing, or it is not clear which rows are meant.
  """
  if glob.has_magic(path) and not Path(path).exists():
    for root in ('', os.environ.get('R1JAX_DATA', '')):
      if found := sorted(glob.glob(os.path.join(root, path))):
        return list(map(Path, found))
    raise UserError(f'data: no file matches {path!r}, here or in R1JAX_DATA')
  place = resolve(path, ('', *SUFFIXES))
  return [place] if place.is_file() else _of_folder(place)


def _of_folder(folder: Path) -> list[Path]:
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
  for place in (folder, folder / 'data'):  # The hub keeps shards in data/.
    found = sorted(p for p in place.glob('*') if p.name.endswith(SUFFIXES))
    kinds = {s for s in SUFFIXES if any(p.name.endswith(s) for p in found)}
    splits = {p.name.split('-')[0].split('.')[0] for p in found} & _SPLITS
    if len(kinds) > 1 or len(splits) > 1:
      raise UserError(
        f'data: {place} mixes {sorted(splits if len(splits) > 1 else kinds)};'
        f' name the files, as in {place}/{min(splits or "*")}*'
      )
    if found:
      return found
  raise UserError(
    f'data: {folder} holds no rows: neither state.json nor '
    f'files of {", ".join(SUFFIXES)}'
  )


_SPLITS = {'train', 'test', 'validation', 'dev', 'eval'}


def rows(found: Sequence[Path]) -> Iterator[Row]:
  """Every row of every file, in order; see `files`."""
  for file in found:
    name = file.name
    if name.endswith('.parquet'):
      yield from _numbered(file, _parquet(file))
    elif name.endswith('.arrow'):
      yield from _numbered(file, _arrow(file))
    elif name.endswith('.gz'):
      with gzip.open(file) as lines:
        yield from _json_lines(file, lines)
    else:
      with open(file, 'rb') as lines:
        yield from _json_lines(file, lines)


def _json_lines(file: Path, lines) -> Iterator[Row]:
  try:
    for number, line in enumerate(lines, 1):
      yield _json_line(f'{file}:{number}', line)
  except (OSError, EOFError) as error:  # A broken archive.
    raise UserError(f'data: cannot read {file}: {error}') from error


def _json_line(where: str, line: bytes) -> Row:
  try:
    fields = json.loads(line.decode('utf-8'))
  except (ValueError, RecursionError) as error:  # Of the encoding, or of JSON.
    return Row(where, None, f'is not JSON: {error}')
  if not isinstance(fields, dict):
    return Row(where, None, 'is not a JSON object')
  return Row(where, fields)


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
  _pyarrow(file)
  from pyarrow import parquet

  with parquet.ParquetFile(file) as opened:
    yield from opened.iter_batches()


def _arrow(file: Path):
  """Record batches in Arrow's streaming form, as `datasets` writes them."""
  pyarrow = _pyarrow(file)
  with pyarrow.memory_map(str(file)) as source:
    yield from pyarrow.ipc.open_stream(source)


def _pyarrow(file: Path):
  try:
    import pyarrow
  except ImportError as error:
    raise UserError(
      f"data: {file} needs pyarrow; install the extra 'data': "
      "pip install 'r1jax[data]'"
    ) from error
  return pyarrow
