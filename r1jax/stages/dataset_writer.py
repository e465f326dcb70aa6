"""Rows that are made chunk by chunk: a kill loses no chunk that was finished.

The partial file holds a chunk's rows and then a marker, {"done": prompts so
far, "counts": of the chunk}; a chunk without its marker is made again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import json
import os
from pathlib import Path
from typing import TextIO

import ml_collections

from r1jax.errors import UserError
from r1jax.records import Prompt
from r1jax.runs import lineage
from r1jax.stages.build import parts as build

PARTIAL = 'partial.jsonl'
_MOST = 1 << 30  # An endless task has more prompts than this.


def count(stage: str, asked: int, prompts: Sequence[Prompt]) -> int:
  """How many prompts a stage samples of: as many as it asks for, or all.

  Raises:
    UserError: there are not so many, or no end of them and none was asked for.
  """
  there = min(len(prompts), _MOST)
  if not 0 <= asked <= there:
    raise UserError(
      f'{stage}: num_prompts = {asked}, but there are {there}; 0 '
      'takes all of a dataset'
    )
  if not asked and len(prompts) > _MOST:
    raise UserError(
      f'{stage}: num_prompts = 0 takes all of a dataset, but these '
      'have no end; say how many'
    )
  return asked or there


def resumed(partial: Path) -> tuple[int, list[dict], Counter]:
  """What whole chunks of an earlier run left; a torn chunk goes."""
  done, rows, counts = 0, [], Counter()
  if not partial.exists():
    return done, rows, counts
  chunk, whole = [], 0
  lines = partial.read_bytes().splitlines(keepends=True)
  for i, line in enumerate(lines):
    try:
      fields = json.loads(line)
    except ValueError:
      break
    if 'done' in fields:
      done, whole = fields['done'], i + 1
      rows += chunk
      counts.update(fields['counts'])
      chunk = []
    else:
      chunk.append(fields)
  partial.write_bytes(b''.join(lines[:whole]))
  return done, rows, counts


def append(
  file: TextIO, rows: Sequence[dict], done: int, counts: Mapping[str, int]
):
  """A chunk and its marker, on the disk when this returns."""
  _write(file, [*rows, {'done': done, 'counts': counts}])
  file.flush()
  os.fsync(file.fileno())


def finish(path: Path, rows: Iterable[dict]):
  """The whole file, at once; the partial one beside it goes."""
  written = path.with_suffix('.partial')
  with open(written, 'w') as file:
    _write(file, rows)
  written.replace(path)
  (path.parent / PARTIAL).unlink()


def _write(file: TextIO, rows: Iterable[dict]):
  for row in rows:
    file.write(json.dumps(row, ensure_ascii=False) + '\n')


def checkpoint(config: ml_collections.ConfigDict) -> str:
  """What names the weights that sampled, wherever they lie."""
  if config.init == 'random':
    return f'random-{config.seed}'
  return lineage.digest(build.init_file(config))
