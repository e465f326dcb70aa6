"""The record of a run's attempts: sweep.jsonl in its folder.

  {"began": 1767225600.0, "cores": 2}
  {"ended": 1767225720.5, "exit_code": 0}

An attempt without an end was killed together with the sweep.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import time
from typing import NamedTuple

from r1jax import files
from r1jax.runs import lineage
from r1jax.train import metrics

FILE, LOG = 'sweep.jsonl', 'sweep.log'


class Attempt(NamedTuple):
  """One process that worked at a run.

  Attributes:
    began, ended: Unix time in seconds; the end is None where it is unknown.
    exit_code: Its exit code; None where it is unknown.
  """

  began: float
  ended: float | None = None
  exit_code: int | None = None


def begin(run: Path, cores: int):
  """Records that an attempt begins on so many cores."""
  run.mkdir(parents=True, exist_ok=True)
  _append(run, {'began': time.time(), 'cores': cores})


def end(run: Path, exit_code: int):
  """Records that the last attempt has ended."""
  _append(run, {'ended': time.time(), 'exit_code': exit_code})


def _append(run: Path, line: dict):
  """Adds a line, and drops one that a kill has cut off."""
  lines = [*metrics.read(run / FILE), line]
  text = ''.join(json.dumps(each) + '\n' for each in lines)
  files.write_text(run / FILE, text)


def read(run: Path) -> list[Attempt]:
  """Returns the attempts at a run; [] if it has not begun."""
  found: list[Attempt] = []
  for line in metrics.read(run / FILE):
    if 'began' in line:
      found.append(Attempt(line['began']))
    else:
      found[-1] = Attempt(found[-1].began, line['ended'], line['exit_code'])
  return found


def is_finished(run: Path, stages: Sequence[str]) -> bool:
  """Returns whether a run has done all its work.

  Args:
    run: Its folder.
    stages: See Sweep.stages; of a pipeline each has its own lineage.
  """
  past = read(run)
  if not past or past[-1].exit_code != 0:
    return False
  return all(
    (run / Path(stage).parent / lineage.FILE).exists() for stage in stages
  )


def secs(past: Sequence[Attempt]) -> float | None:
  """Returns the wall time of all attempts; None where an end is unknown."""
  times = [a.ended - a.began for a in past if a.ended is not None]
  return sum(times) if past and len(times) == len(past) else None


def overlap(past: Sequence[Attempt], start: float, end: float) -> float:
  """Returns the seconds between two times in which an attempt was going on."""
  return sum(
    max(
      0.0,
      min(a.ended if a.ended is not None else end, end) - max(a.began, start),
    )
    for a in past
  )


def last_line(run: Path) -> str:
  """Returns the last line that a run has printed, in full."""
  try:
    text = (run / LOG).read_text(errors='replace')
  except OSError:
    return ''
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1].removeprefix('r1jax: ') if lines else ''
