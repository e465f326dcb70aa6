"""The completions of a suite on the disk: every one is kept, as Parquet.

  SUITE/parts/0-000000.parquet …   while it is sampled; each is written at once
  SUITE/completions.parquet        when all are there, sorted by problem and sample

A process that is killed loses what it has not yet written to a part. What is
there is not sampled again: a completion depends on the weights, the prompt and
the seed alone, so the rest is what an uninterrupted evaluation would have had.
"""

from collections.abc import Iterable, Sequence
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1jax import files
from r1jax.errors import UserError

WHOLE, PARTS = 'completions.parquet', 'parts'
SCHEMA = pa.schema(
  [
    ('problem', pa.int32()),  # Number of the problem in its suite.
    ('sample', pa.int32()),  # Number of the completion of its problem.
    ('id', pa.string()),
    ('question', pa.string()),
    ('prompt', pa.string()),  # The text that the policy went on from.
    ('gold', pa.string()),
    ('source', pa.string()),  # Name of the grader.
    ('completion', pa.string()),
    ('answer', pa.string()),  # The final answer that the grader compared.
    ('verdict', pa.string()),
    ('accuracy', pa.float32()),  # Null where the grader failed.
    ('format', pa.float32()),
    ('tokens', pa.int32()),
    ('truncated', pa.bool_()),
  ]
)


class Writer:
  """Writes parts of a suite's completions; one process has one."""

  def __init__(self, folder: Path, process: int):
    """Prepares the folder of a suite.

    Args:
      folder: The suite's folder; it is made.
      process: Number of this process, so that no two write one part.
    """
    self._parts = folder / PARTS
    self._parts.mkdir(parents=True, exist_ok=True)
    self._process = process
    self._count = len(list(self._parts.glob(f'{process}-*.parquet')))

  def write(self, records: Sequence[dict]):
    """Writes records as one part, which is whole or not there."""
    name = f'{self._process}-{self._count:06}.parquet'
    files.write_bytes(self._parts / name, _encoded(records))
    self._count += 1


def keys(folder: Path) -> set[tuple[int, int]]:
  """Returns (problem, sample) of each completion in a suite's folder.

  Raises:
    UserError: a file is no whole Parquet file of this form.
  """
  found = set()
  for path in _paths(folder):
    table = _read(path, ['problem', 'sample'])
    found |= set(zip(*(column.to_pylist() for column in table.columns)))
  return found


def load(folder: Path, num_samples: int = 0) -> list[dict]:
  """Returns the records of a suite, sorted by problem and sample.

  Args:
    folder: The suite's folder.
    num_samples: Only the first so many samples of each problem; 0 for all.

  Raises:
    UserError: a file is no whole Parquet file of this form.
  """
  found: dict[tuple[int, int], dict] = {}
  for path in _paths(folder):
    for record in _read(path).to_pylist():
      found[record['problem'], record['sample']] = record
  return [
    found[key]
    for key in sorted(found)
    if not num_samples or key[1] < num_samples
  ]


def join(folder: Path):
  """Replaces the parts of a suite by one file, which is whole at any time."""
  if not (folder / PARTS).exists():
    return
  files.write_bytes(folder / WHOLE, _encoded(load(folder)))
  for path in sorted((folder / PARTS).iterdir()):
    path.unlink()
  (folder / PARTS).rmdir()


def _paths(folder: Path) -> Iterable[Path]:
  parts = sorted((folder / PARTS).glob('*.parquet'))
  return [*([folder / WHOLE] if (folder / WHOLE).exists() else []), *parts]


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
  try:
    return pq.read_table(path, columns=columns or SCHEMA.names)
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f'{path} is no whole file of completions ({_one_line(error)}); remove it, '
      'and the same command samples them again'
    ) from error


def _encoded(records: Sequence[dict]) -> bytes:
  columns: dict[str, list[Any]] = {
    name: [record[name] for record in records] for name in SCHEMA.names
  }
  for name in ('id', 'question', 'prompt', 'gold', 'completion', 'answer'):
    columns[name] = list(map(_encodable, columns[name]))
  buffer = io.BytesIO()
  pq.write_table(pa.table(columns, SCHEMA), buffer, compression='zstd')
  return buffer.getvalue()


def _encodable(text: str) -> str:
  """Returns a text without lone surrogates, which UTF-8 does not have."""
  return text.encode('utf-8', 'replace').decode('utf-8')


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split())[:200]
