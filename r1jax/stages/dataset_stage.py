"""The one writer of sampled datasets: chunks, resume and provenance.

  prompts → chunks of completions → rows, saved after each chunk → dataset

A kill loses no chunk that was finished. The partial file holds a chunk's rows
and then a marker, {"done": prompts so far, "counts": of the chunk}; a chunk
without its marker is made again.
"""

import abc
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import json
import os
from pathlib import Path
from typing import Any, TextIO

from r1jax import buckets, files
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.records import Prompt
from r1jax.stages import ending, initial
from r1jax.stages.stage import Stage
from r1jax.train.metrics import Progress

PARTIAL, REPORT = 'partial.jsonl', 'report.json'
_ENDLESS = 1 << 30  # A synthetic task has more prompts than this.


class DatasetStage(Stage):
  """A stage that samples completions of its prompts and writes rows.

  Attributes:
    seed: Seed of the run.
    prompts: The training prompts.
    num_prompts: How many of them are used, from the first.
    prompts_per_chunk: Prompts between two saves.
  """

  seed: int
  prompts: Sequence[Prompt]
  num_prompts: int
  prompts_per_chunk: int
  _done: int = 0  # Prompts whose rows are on the disk.

  @abc.abstractmethod
  def sample_chunk(
    self, params: Any, prompts: Sequence[Prompt], rows: Sequence[dict]
  ) -> tuple[list[dict], dict[str, int]]:
    """Returns the rows of some prompts, and counts to be summed.

    Args:
      params: The policy's.
      prompts: The chunk.
      rows: All rows before it.
    """

  @abc.abstractmethod
  def finish(
    self, rows: list[dict], counts: Counter
  ) -> tuple[list[dict], dict, str]:
    """Returns the rows to write, the report, and a line for people.

    If there are no rows, the line says why and is raised as an error.
    """

  def progress_numbers(
    self, rows: Sequence[dict], counts: Counter
  ) -> dict[str, str]:
    """Returns what the live line shows."""
    del counts
    return {'rows': f'{len(rows)}'}

  def check_counts(self, counts: Counter):
    """Raises UserError if the chunks so far show that no row can be made."""
    del counts

  def provenance(self) -> dict:
    """Returns what every row says of where it came from."""
    return {}

  def run(self, directory: Path, params: Any, metadata: dict) -> Path:
    """Samples chunk by chunk, or goes on after a kill; see Stage.run.

    Raises:
      Interrupted, DiskFull: saying how many prompts are done.
      UserError: no row is left.
    """
    del metadata
    directory.mkdir(parents=True, exist_ok=True)
    with ending.explained(self.name, directory, self._kept):
      return self._sample_all(directory, params)

  def _kept(self) -> str:
    if not self._done:
      return 'no rows are kept yet, and the same command begins again'
    return (
      f'the rows of {self._done} of {self.num_prompts} prompts are kept, and '
      'the same command goes on after them'
    )

  def _sample_all(self, directory: Path, params: Any) -> Path:
    partial = directory / PARTIAL
    done, rows, counts = resumed(partial)
    self._done = done
    pushes = buckets.Pushes(directory)
    total, provenance = self.num_prompts, self.provenance()
    with (
      dispatch.shutdown_on_exit(),
      open(partial, 'a') as file,
      Progress(self.name, done, total, print_steps=1) as progress,
    ):
      if done:
        progress.log(f'goes on after prompt {done}')
      for start in range(done, total, self.prompts_per_chunk):
        end = min(start + self.prompts_per_chunk, total)
        chunk = [self.prompts[i] for i in range(start, end)]
        found, counted = self.sample_chunk(params, chunk, rows)
        found = [
          row | {'provenance': provenance | row['provenance']} for row in found
        ]
        rows += found
        counts.update(counted)
        self.check_counts(counts)
        append(file, found, end, counted)
        pushes.due()
        self._done = end
        progress.update(
          end, self.progress_numbers(rows, counts), keep=end == total
        )
    rows, report, line = self.finish(rows, counts)
    files.write_text(directory / REPORT, json.dumps(report, indent=1) + '\n')
    if not rows:
      raise UserError(line)
    path = directory / self.output
    write_rows(path, rows)
    partial.unlink()
    print(line)
    return path


def num_prompts(stage: str, wanted: int, prompts: Sequence[Prompt]) -> int:
  """Returns how many prompts a stage samples from.

  Args:
    stage: Its name, for errors.
    wanted: So many, or 0 for all of a dataset.
    prompts: The prompts that there are.

  Raises:
    UserError: there are not so many, or no end of them and none was asked for.
  """
  available = min(len(prompts), _ENDLESS)
  if not 0 <= wanted <= available:
    raise UserError(
      f'{stage}: num_prompts = {wanted}, but there are {available}; 0 takes '
      'all of a dataset'
    )
  if not wanted and len(prompts) > _ENDLESS:
    raise UserError(
      f'{stage}: num_prompts = 0 takes all of a dataset, but these have no '
      'end; say how many'
    )
  return wanted or available


def resumed(partial: Path) -> tuple[int, list[dict], Counter]:
  """Reads the whole chunks of an earlier run and cuts a torn one off.

  Returns:
    The number of prompts that are done, their rows, and their counts.
  """
  done = 0
  rows: list[dict] = []
  counts: Counter[str] = Counter()
  if not partial.exists():
    return done, rows, counts
  chunk: list[dict] = []
  whole = 0
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
  """Writes a chunk and its marker; they are on the disk when it returns."""
  _write(file, [*rows, {'done': done, 'counts': counts}])
  file.flush()
  os.fsync(file.fileno())


def write_rows(path: Path, rows: Iterable[dict]):
  """Writes a JSONL file at once: a reader never meets half of it."""
  written = path.with_suffix('.partial')
  with open(written, 'w') as file:
    _write(file, rows)
  written.replace(path)


def _write(file: TextIO, rows: Iterable[dict]):
  for row in rows:
    file.write(json.dumps(row, ensure_ascii=False) + '\n')


def checkpoint_name(config: RunConfig) -> str:
  """Returns what names the weights that sampled, wherever they lie."""
  if config.init == 'random':
    return f'random-{config.seed}'
  return files.digest(initial.init_file(config))
