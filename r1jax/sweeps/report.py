"""The report of a sweep: tables and curves over seeds, from what runs have left.

  table.md    a row a grid point: means with intervals, differences, p values
  table.csv   the same numbers, one a column
  runs.csv    a row a run: its state and all its final metrics
  curves.png, curves.csv   means and intervals over seeds, by step

Nothing is imputed: a run that is missing or unfinished counts nowhere but in the
curves, as far as it is, and the table says so.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import math
from pathlib import Path

from r1jax import files
from r1jax.sweeps import curves, results
from r1jax.sweeps.grid import Point
from r1jax.sweeps.plan import Sweep
from r1jax.sweeps.results import FINISHED, Result
from r1jax.sweeps.statistics import Estimate, estimate, sign_flip_p, smallest_p

_MINUS = '−'


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A metric of one grid point.

  Attributes:
    own: The mean over the seeds that have it.
    difference: The paired difference to the baseline, over common seeds; None
      for the baseline itself.
    p: The p value of that difference; None without a common seed.
  """

  own: Estimate
  difference: Estimate | None
  p: float | None


@dataclasses.dataclass(frozen=True)
class Row:
  """A grid point in the table.

  Attributes:
    point: The grid point.
    finished: The number of runs that are finished.
    metrics: Each metric by its name.
    wall_secs: The mean time of the finished runs whose time is known.
  """

  point: Point
  finished: int
  metrics: Mapping[str, Comparison]
  wall_secs: Estimate


def rows(
  sweep: Sweep,
  runs: Sequence[Result],
  metrics: Sequence[str],
  baseline: Point,
  last_lines: int = 1,
) -> list[Row]:
  """Returns the rows of the table, one a grid point.

  Args:
    sweep: The sweep.
    runs: Its runs.
    metrics: Names of metrics.
    baseline: The grid point that the others are compared with.
    last_lines: The lines that a final value is the mean of.
  """

  def values(point: Point, metric: str) -> dict[int, float]:
    return {
      run.seed: value
      for run in runs
      if run.point == point.name
      and (value := run.value(metric, last_lines)) is not None
    }

  found = []
  for point in sweep.points:
    finished = [
      run for run in runs if run.point == point.name and run.state == FINISHED
    ]
    secs = [run.wall_secs for run in finished if run.wall_secs is not None]
    found.append(
      Row(
        point,
        len(finished),
        {
          metric: _compared(
            values(point, metric),
            None if point == baseline else values(baseline, metric),
          )
          for metric in metrics
        },
        estimate(secs),
      )
    )
  return found


def _compared(
  own: Mapping[int, float], base: Mapping[int, float] | None
) -> Comparison:
  """Compares the values of a grid point, by seed, with the baseline's."""
  if base is None:
    return Comparison(estimate(list(own.values())), None, None)
  paired = [own[seed] - base[seed] for seed in own if seed in base]
  return Comparison(
    estimate(list(own.values())),
    estimate(paired),
    sign_flip_p(paired) if paired else None,
  )


def write(
  sweep: Sweep,
  out: Path,
  wanted: Sequence[str],
  baseline: Point,
  last_lines: int = 1,
) -> str:
  """Writes the report into the folder of a sweep.

  Args:
    sweep: The sweep.
    out: Its folder.
    wanted: Names of metrics; none for the main ones.
    baseline: The grid point that the others are compared with.
    last_lines: The lines that a final value is the mean of.

  Returns:
    The table, as table.md has it.

  Raises:
    UserError: There is no such metric, or a file of a run is broken.
  """
  runs = results.read(sweep, out)
  metrics = results.choose(runs, sweep, wanted)
  table = rows(sweep, runs, metrics, baseline, last_lines)
  said = legend(runs, table, metrics, baseline, last_lines)
  text = f'{markdown(sweep, table, metrics)}\n\n{said}'
  files.write_text(out / 'table.md', text + '\n')
  write_csv(out / 'table.csv', table_records(sweep, table))
  write_csv(out / 'runs.csv', run_records(sweep, runs, last_lines))
  curves.write(sweep, runs, metrics, out)
  return text


def markdown(sweep: Sweep, table: Sequence[Row], metrics: Sequence[str]) -> str:
  """Returns the table, with columns of equal width."""
  compares = len(table) > 1
  header = ['grid point', 'seeds']
  for metric in metrics:
    header += [metric] + ['Δ', 'p'] * compares
  lines = [[*header, 'wall time']]
  for row in table:
    cells = [row.point.name, f'{row.finished} of {len(sweep.seeds)}']
    for metric in metrics:
      cells.append(_interval(row.metrics[metric].own))
      if compares:
        cells += _difference(row.metrics[metric])
    secs = row.wall_secs.mean
    lines.append([*cells, '' if secs is None else f'{secs:.0f} s'])
  widths = [max(map(len, column)) for column in zip(*lines)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    f'| {" | ".join(cell.ljust(w) for cell, w in zip(line, widths))} |'
    for line in lines
  )


def _difference(compared: Comparison) -> list[str]:
  if compared.difference is None:
    return ['baseline', '']
  p = '' if compared.p is None else f'{compared.p:.3g}'
  return [_interval(compared.difference, '+'), p]


def _interval(found: Estimate, sign: str = '') -> str:
  """Returns '0.984 [0.973, 0.995]', with two digits of the interval's half."""
  if found.mean is None:
    return ''
  if found.low is None or found.high is None:
    return _number(found.mean, f'{sign}.4g')
  half = (found.high - found.low) / 2
  form = f'{sign}.4g'
  if half >= 1e-5:
    form = f'{sign}.{max(1 - math.floor(math.log10(half)), 0)}f'
  mean, low, high = (
    _number(x, form) for x in (found.mean, found.low, found.high)
  )
  return f'{mean} [{low}, {high}]'


def _number(value: float, form: str) -> str:
  return format(value, form).replace('-', _MINUS)


def legend(
  runs: Sequence[Result],
  table: Sequence[Row],
  metrics: Sequence[str],
  baseline: Point,
  last_lines: int,
) -> str:
  """Returns what the columns mean, and which runs are not in them."""
  final = (
    f'the mean of the last {last_lines} lines'
    if last_lines > 1
    else 'the final value'
  )
  said = [
    f"Metrics are means over seeds of {final} [95 % interval by Student's t]; "
    'the wall time is the mean of a run.'
  ]
  if len(table) > 1:
    counts = {
      compared.difference.seeds
      for row in table
      for compared in row.metrics.values()
      if compared.difference and compared.difference.seeds
    }
    least = ', '.join(
      f'{smallest_p(n):.2g} with {n} {"seed" if n == 1 else "seeds"}'
      for n in sorted(counts)
    )
    said.append(
      f'Δ is the mean difference to {baseline.name} over the seeds that both '
      'have; p is two-sided, of the paired sign-flip permutation test, without '
      'a correction for the number of rows. '
      + (f'The smallest p there can be is {least}.' if counts else '')
    )
  missing = [_missing(run) for run in runs if run.state != FINISHED or run.note]
  for metric in metrics:
    missing += [
      f'- {run.point}/seed_{run.seed} has no final {metric}'
      for run in runs
      if run.state == FINISHED and run.value(metric, last_lines) is None
    ]
  if missing:
    said.append('\n'.join(['Not in the table, or not wholly:', '', *missing]))
  return '\n\n'.join(text.strip() for text in said)


def _missing(run: Result) -> str:
  note = f' ({run.note})' if run.note else ''
  return f'- {run.point}/seed_{run.seed} is {run.state}{note}'


def table_records(sweep: Sweep, table: Sequence[Row]) -> list[dict]:
  """Returns the rows of table.csv; what is not known is empty."""
  records = []
  for row in table:
    record: dict = {'grid point': row.point.name} | dict(row.point.values)
    record |= {'seeds': len(sweep.seeds), 'finished': row.finished}
    for metric, compared in row.metrics.items():
      record |= _columns(metric, compared.own)
      record |= _columns(f'{metric} difference', compared.difference)
      record[f'{metric} p'] = compared.p
    records.append(record | {'wall_secs': row.wall_secs.mean})
  return records


def _columns(name: str, found: Estimate | None) -> dict:
  found = found or Estimate(None, None, None, 0)
  return {
    name: found.mean,
    f'{name} low': found.low,
    f'{name} high': found.high,
    f'{name} seeds': found.seeds,
  }


def run_records(
  sweep: Sweep, runs: Sequence[Result], last_lines: int = 1
) -> list[dict]:
  """Returns the rows of runs.csv; what is not known is empty."""
  values = {point.name: point.values for point in sweep.points}
  names = list(dict.fromkeys(name for run in runs for name in run.names()))
  stages = list(dict.fromkeys(name for run in runs for name in run.stage_secs))
  return [
    {'grid point': run.point}
    | dict(values[run.point])
    | {
      'seed': run.seed,
      'state': run.state,
      'commit': run.commit,
      'wall_secs': run.wall_secs,
    }
    | {f'{name} secs': run.stage_secs.get(name) for name in stages}
    | {name: run.value(name, last_lines) for name in names}
    for run in runs
  ]


def write_csv(path: Path, records: Sequence[Mapping]):
  """Writes records that have the same keys as the rows of a CSV file."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(records[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(records)
  files.write_text(path, text.getvalue())
