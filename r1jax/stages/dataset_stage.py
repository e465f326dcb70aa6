"""The one writer of sampled datasets: chunks, resume and provenance.

  prompts → chunks of completions → rows, saved after each chunk → dataset

A kill loses no chunk that was finished. The partial file holds a chunk's rows
and then a marker, {"done": prompts so far, "counts": of the chunk}; a chunk
without its marker is made again.

Several processes share a chunk. The prompts are dealt out to the replicas of the
policy (rollout/replicas.py), which sample their completions, and those of a
replica to its processes, which grade the completions and make the rows:

  prompts                    0  1  2  3
  one replica of two         both sample all; they grade 0 2 | 1 3
  two replicas of one each   they sample and grade 0 2 | 1 3

The first process has the rows of all, in the order of the prompts, and writes.
"""

import abc
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TextIO

from r1jax import buckets, files, interrupts, processes
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.graders import dispatch
from r1jax.records import Prompt
from r1jax.rollout import hosts
from r1jax.rollout.engine import Engine
from r1jax.rollout.replicas import Replicas
from r1jax.rollout.session import Session
from r1jax.stages import ending, initial
from r1jax.stages.stage import Stage
from r1jax.train.metrics import Progress

PARTIAL, REPORT = 'partial.jsonl', 'report.json'
_ENDLESS = 1 << 30  # A synthetic task has more prompts than this.
_PROMPTS_AT_ONCE = 16  # Prompts whose rows are in one message to the others.


@dataclasses.dataclass(frozen=True)
class PromptRows:
  """The result of a prompt's completions; all of it is JSON.

  Attributes:
    rows: Rows in the order that their completions were sampled in.
    counts: Numbers to be summed for the report.
    rejected: Responses that may be the rejected ones of pairs.
  """

  rows: list[dict]
  counts: dict[str, int]
  rejected: list[str] = dataclasses.field(default_factory=list)


class DatasetStage(Stage):
  """A stage that samples completions of its prompts and writes rows.

  Attributes:
    seed: Seed of the run.
    prompts: The training prompts.
    num_prompts: How many of them are used, from the first.
    prompts_per_chunk: Prompts between two saves.
    engine: Samples the completions.
  """

  seed: int
  prompts: Sequence[Prompt]
  num_prompts: int
  prompts_per_chunk: int
  engine: Engine
  _done: int = 0  # Prompts whose rows are on the disk.

  @abc.abstractmethod
  def sample(
    self, session: Session, prompts: Sequence[Prompt], indices: Sequence[int]
  ) -> Any:
    """Samples completions of some prompts of a chunk.

    Args:
      session: An empty session with the policy.
      prompts: The chunk.
      indices: The prompts to sample for; prompts of one id are not separated.

    Returns:
      The value for `make_rows`.
    """

  @abc.abstractmethod
  def make_rows(
    self, prompts: Sequence[Prompt], sampled: Any, indices: Sequence[int]
  ) -> list[PromptRows]:
    """Grades what was sampled for some prompts, and makes their rows.

    Args:
      prompts: The chunk.
      sampled: Completions of these prompts and maybe others; see `sample`.
      indices: The prompts.

    Returns:
      The rows of each of these prompts, in their order.
    """

  def join_rows(
    self, found: Sequence[PromptRows], rows: Sequence[dict]
  ) -> tuple[list[dict], dict[str, int]]:
    """Returns the rows of a chunk, and counts to be summed.

    Args:
      found: The rows of each of its prompts.
      rows: All rows before it.
    """
    del rows
    counts: Counter[str] = Counter()
    for each in found:
      counts.update(each.counts)
    return [row for each in found for row in each.rows], dict(counts)

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
    writer = _Writer(self, directory)
    with (
      ending.explained(self.name, directory, self._kept),
      contextlib.closing(writer),
      dispatch.shutdown_on_exit(),
      _deferred() as deferral,
    ):
      self._done = processes.from_first(writer.open)
      self._sample_all(writer, params, deferral)
      processes.from_first(writer.finish)
    return directory / self.output

  def _kept(self) -> str:
    if not self._done:
      return 'no rows are kept yet, and the same command begins again'
    return (
      f'the rows of {self._done} of {self.num_prompts} prompts are kept, and '
      'the same command goes on after them'
    )

  def _sample_all(
    self, writer: '_Writer', params: Any, deferral: interrupts.Deferral | None
  ):
    """Samples the chunks that are left; each is saved before the next."""
    total = self.num_prompts
    params = self.engine.prepare_params(params)
    with Progress(self.name, self._done, total, print_steps=1) as progress:
      if self._done:
        progress.log(f'goes on after prompt {self._done}')
      while self._done < total:
        end = min(self._done + self.prompts_per_chunk, total)
        chunk = [self.prompts[i] for i in range(self._done, end)]
        found = self._sample_chunk(params, chunk)
        shown = processes.from_first(lambda: writer.save(found, end))
        self._done = end
        progress.update(end, shown, keep=end == total)
        _stop_if_asked(deferral, end == total)

  def _sample_chunk(
    self, params: Any, prompts: Sequence[Prompt]
  ) -> list[PromptRows]:
    """Returns the rows of each prompt; [] in processes after the first."""
    replicas = self.engine.replicas
    sampled_here, graded_here = _shares(prompts, replicas)
    # Processes that decode together cannot tell each other of errors meanwhile.
    alone = processes.several() and len(replicas.members[0]) == 1
    with processes.agreed() if alone else contextlib.nullcontext():
      session = self.engine.session(params)
      sampled = self.sample(session, prompts, sampled_here)
      del session  # Its cache is as large as what follows may need.
    with processes.agreed():
      found = self.make_rows(prompts, sampled, graded_here)
    return _gather(dict(zip(graded_here, found, strict=True)), len(prompts))


class _Writer:
  """The rows so far, and the file that keeps them; the first process has them.

  Its methods are called by the first process alone, but for `close`.
  """

  def __init__(self, stage: DatasetStage, directory: Path):
    self._stage, self._directory = stage, directory
    self._rows: list[dict] = []
    self._counts: Counter[str] = Counter()
    self._file: TextIO | None = None

  def open(self) -> int:
    """Reads what an earlier run has kept; returns its number of prompts."""
    self._directory.mkdir(parents=True, exist_ok=True)
    partial = self._directory / PARTIAL
    done, self._rows, self._counts = resumed(partial)
    self._file = open(partial, 'a')
    self._pushes = buckets.Pushes(self._directory)
    self._provenance = self._stage.provenance()
    return done

  def save(self, found: Sequence[PromptRows], end: int) -> dict[str, str]:
    """Adds a chunk, which ends before a prompt; returns numbers to show."""
    assert self._file is not None
    rows, counts = self._stage.join_rows(found, self._rows)
    rows = [
      row | {'provenance': self._provenance | row['provenance']} for row in rows
    ]
    self._rows += rows
    self._counts.update(counts)
    self._stage.check_counts(self._counts)
    append(self._file, rows, end, counts)
    self._pushes.due()
    return self._stage.progress_numbers(self._rows, self._counts)

  def finish(self):
    """Writes the report and the dataset, and removes the partial file."""
    stage, directory = self._stage, self._directory
    rows, report, line = stage.finish(self._rows, self._counts)
    files.write_text(directory / REPORT, json.dumps(report, indent=1) + '\n')
    if not rows:
      raise UserError(line)
    write_rows(directory / stage.output, rows)
    (directory / PARTIAL).unlink()
    print(line)

  def close(self):
    """Closes the file; what is kept for the same command goes to the bucket."""
    if self._file is None:
      return
    self._file.close()
    if (self._directory / PARTIAL).exists():
      with contextlib.suppress(UserError):
        self._pushes.now()


def _shares(
  prompts: Sequence[Prompt], replicas: Replicas
) -> tuple[list[int], list[int]]:
  """Returns the prompts to sample and to grade here; an id is not divided.

  If the ids are a b a c d, the first of two replicas has a and c: [0, 2, 3].
  """
  number = {
    name: i for i, name in enumerate(dict.fromkeys(p.id for p in prompts))
  }
  count = len(replicas.layouts)
  sampled, graded = list[int](), list[int]()
  for i, prompt in enumerate(prompts):
    turn, replica = divmod(number[prompt.id], count)
    if replica == replicas.own:
      sampled.append(i)
      if replicas.is_mine(turn):
        graded.append(i)
  return sampled, graded


def _gather(own: Mapping[int, PromptRows], count: int) -> list[PromptRows]:
  """Returns the rows of each prompt in the first process; elsewhere [].

  Args:
    own: The rows of this process, by their prompts' numbers.
    count: The number of prompts of all processes.
  """
  if not processes.several():
    return [own[i] for i in range(count)]
  found: dict[int, dict] = {}
  for start in range(0, count, _PROMPTS_AT_ONCE):
    numbers = range(start, min(start + _PROMPTS_AT_ONCE, count))
    part = hosts.tell_all({i: vars(own[i]) for i in numbers if i in own})
    if processes.is_first():
      found |= part
  return [PromptRows(**found[i]) for i in sorted(found)]


def _deferred() -> contextlib.AbstractContextManager:
  """Lets several processes end together, after a chunk.

  One process ends at once: all chunks that are finished are saved.
  """
  if processes.several():
    return interrupts.deferred(patient=True)
  return contextlib.nullcontext()


def _stop_if_asked(deferral: interrupts.Deferral | None, is_last: bool):
  """Ends all processes after a chunk, where a signal has come to any of them.

  After the last chunk it ends the run once the dataset is written.
  """
  if deferral is None:
    return
  signum = max(processes.exchange(deferral.check()))
  if signum and not is_last:
    deferral.stop(signum)
  deferral.signum = deferral.signum or signum


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
