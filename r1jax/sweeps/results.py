"""Reads what the runs of a sweep have left: states, metrics, times, commits."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path

from r1jax.config.keys import flatten
from r1jax.errors import UserError, unknown
from r1jax.runs import lineage, pipeline, validate
from r1jax.sweeps import attempts
from r1jax.sweeps.plan import Sweep
from r1jax.train import metrics

FINISHED = 'finished'
# The metric that a table shows unless it is told otherwise: the first of these
# that the runs have.
_DEFAULTS = ('eval/pass@1', 'eval/quality', 'eval/accuracy', 'loss')
_EVALUATED = ('pass@1', 'quality')  # The same, of a task in a pipeline.


@dataclasses.dataclass(frozen=True)
class Result:
  """The files of a run, as far as it has come.

  Attributes:
    point: The name of its grid point.
    seed: Its seed.
    folder: Its folder.
    state: 'finished', 'failed', 'unfinished' or 'not begun'.
    note: Why it failed, or how far it is; '' where there is nothing to say.
    lines: The lines of metrics.jsonl of each stage, by Sweep.stages.
    final: Metrics that are no lines: evaluations of a pipeline's policies, and
      the report of a stage that writes a dataset.
    wall_secs: The time of its attempts; None where it is unknown.
    stage_secs: The same of each stage of a pipeline, with its evaluation.
    commit: The commit that it ran at; '' where it is unknown.
  """

  point: str
  seed: int
  folder: Path
  state: str
  note: str
  lines: Mapping[str, list[dict]]
  final: Mapping[str, float]
  wall_secs: float | None
  stage_secs: Mapping[str, float]
  commit: str

  def names(self) -> list[str]:
    """Returns the names of its metrics, in the order of the stages."""
    return list(
      dict.fromkeys(
        [
          f'{_prefix(stage)}{name}'
          for stage, lines in self.lines.items()
          for line in lines
          for name in line
          if name != 'step'
        ]
        + list(self.final)
      )
    )

  def curve(self, metric: str) -> list[tuple[int, float]]:
    """Returns the steps and values of a metric that lines have."""
    for stage, lines in self.lines.items():
      name = metric.removeprefix(_prefix(stage))
      if metric.startswith(_prefix(stage)):
        found = [
          (line['step'], line[name])
          for line in lines
          if line.get(name) is not None
        ]
        if found:
          return found
    return []

  def value(self, metric: str, last_lines: int = 1) -> float | None:
    """Returns the final value of a metric of a finished run.

    Args:
      metric: Its name.
      last_lines: The number of lines that it is the mean of, the last that
        have it.

    Returns:
      None where the run is not finished, lacks it, or ends with a value that is
      not finite.
    """
    if self.state != FINISHED:
      return None
    if metric in self.final:
      return self.final[metric]
    for stage, lines in self.lines.items():
      name = metric.removeprefix(_prefix(stage))
      if metric.startswith(_prefix(stage)):
        values = [line[name] for line in lines if name in line][-last_lines:]
        if values:
          return None if None in values else sum(values) / len(values)
    return None


def _prefix(stage: str) -> str:
  """Returns what a metric's name begins with: 'zero/' for the stage zero/rl."""
  parent = str(Path(stage).parent)
  return '' if parent == '.' else f'{parent}/'


def read(sweep: Sweep, out: Path) -> list[Result]:
  """Returns the result of each run, begun or not."""
  return [
    _result(sweep, point.name, seed, folder)
    for point, seed, folder in sorted(
      sweep.run_folders(out), key=lambda each: sweep.points.index(each[0])
    )
  ]


def _result(sweep: Sweep, point: str, seed: int, folder: Path) -> Result:
  past = attempts.read(folder)
  lines: dict[str, list[dict]] = {}
  final: dict[str, float] = {}
  for stage in sweep.stages:
    lines[stage] = metrics.read(folder / stage / 'metrics.jsonl')
    final |= _numbers(folder / stage / 'report.json', _prefix(stage))
    if sweep.command == 'pipeline':
      measured = pipeline.measured(
        folder / Path(stage).parent / validate.MEASURED
      )
      final |= {f'{_prefix(stage)}{key}': v for key, v in measured.items()}
  state, note = _state(sweep, folder, past, lines)
  record = lineage.read(folder / Path(sweep.stages[-1]).parent)
  return Result(
    point,
    seed,
    folder,
    state,
    note,
    lines,
    final,
    attempts.secs(past),
    _stage_secs(sweep, folder, past),
    _short(record['commit'] if record else None),
  )


def _short(commit: str | None) -> str:
  """Returns seven digits of a commit, with '+' where the tree was changed."""
  return f'{commit[:7]}{"+" * commit.endswith("+")}' if commit else ''


def _state(
  sweep: Sweep,
  folder: Path,
  past: Sequence[attempts.Attempt],
  lines: Mapping[str, list[dict]],
) -> tuple[str, str]:
  """Returns the state of a run and the note to it."""
  if not past:
    return 'not begun', ''
  if attempts.is_finished(folder, sweep.stages):
    unknown_time = attempts.secs(past) is None
    return FINISHED, 'its wall time is unknown' * unknown_time
  reached = [
    f'{Path(stage).name if not _prefix(stage) else _prefix(stage)[:-1]} '
    f'is at step {found[-1]["step"]}'
    for stage, found in lines.items()
    if found
  ]
  code = past[-1].exit_code
  if code in (None, 0, 130, 143):  # It was ended, or its files are gone.
    return 'unfinished', reached[-1] if reached else ''
  return 'failed', f'exit code {code}: {attempts.last_line(folder)}'


def _numbers(path: Path, prefix: str) -> dict[str, float]:
  """Returns the numbers in a JSON file, by their keys; {} without one."""
  try:
    found = flatten(json.loads(path.read_text()))
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(f'sweep: {path} is broken ({error})') from error
  return {
    f'{prefix}{key}': float(value)
    for key, value in found.items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
  }


def _stage_secs(
  sweep: Sweep, folder: Path, past: Sequence[attempts.Attempt]
) -> dict[str, float]:
  """Returns the seconds of each finished stage of a pipeline, by its name.

  A stage ends when its lineage, or its evaluation if it has one, is written.
  """
  if sweep.command != 'pipeline' or not past:
    return {}
  found, start = {}, past[0].began
  for stage in sweep.stages:
    place = folder / Path(stage).parent
    if not (place / lineage.FILE).exists():
      break
    ends = (place / lineage.FILE, place / validate.MEASURED)
    end = max(path.stat().st_mtime for path in ends if path.exists())
    found[place.name] = attempts.overlap(past, start, end)
    start = max(start, end)
  return found


def choose(
  results: Sequence[Result], sweep: Sweep, wanted: Sequence[str]
) -> list[str]:
  """Returns the metrics of a table: those that are wanted, or the main ones.

  Args:
    results: The runs.
    sweep: The sweep.
    wanted: Names that the user gives; none for the main ones of the stage, or
      in a pipeline of the last policy that was evaluated.

  Raises:
    UserError: The runs have metrics, and not this one; names the nearest.
  """
  known = list(dict.fromkeys(name for each in results for name in each.names()))
  for name in wanted:
    if known and name not in known:
      raise unknown('--metric', name, known)
  if wanted:
    return list(dict.fromkeys(wanted))
  for stage in reversed(sweep.stages):
    prefix = _prefix(stage)
    own = [name for name in known if name.startswith(prefix)]
    if prefix:
      tasks = [
        name
        for name in own
        if not name.startswith(f'{prefix}eval/')
        and name.count('/') == 2
        and name.rpartition('/')[2] in _EVALUATED
      ]
      if tasks:
        return tasks
  last = _prefix(sweep.stages[-1])
  main = [f'{last}{name}' for name in _DEFAULTS if f'{last}{name}' in known]
  return main[:1]
