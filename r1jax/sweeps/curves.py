"""Curves of a sweep's metrics over steps, with bands over seeds."""

from collections.abc import Mapping, Sequence
import csv
import io
from pathlib import Path

from r1jax import files
from r1jax.sweeps.plan import Sweep
from r1jax.sweeps.results import Result
from r1jax.sweeps.statistics import Estimate, estimate

_LINES_TO_A_LEGEND = 12
# A grid point → step → the estimate over the seeds that have this step.
Curves = Mapping[str, Mapping[int, Estimate]]


def over_seeds(
  sweep: Sweep, runs: Sequence[Result], metric: str
) -> dict[str, dict[int, Estimate]]:
  """Returns the mean and interval of a metric at each step of a grid point.

  Runs that are not finished count as far as they are, so that late steps may
  be of fewer seeds.
  """
  found = {
    point.name: over_runs(
      [run.curve(metric) for run in runs if run.point == point.name]
    )
    for point in sweep.points
  }
  return {name: steps for name, steps in found.items() if steps}


def over_runs(
  curves: Sequence[Sequence[tuple[int, float]]],
) -> dict[int, Estimate]:
  """Returns the mean and interval at each step of curves, one for each seed."""
  values: dict[int, list[float]] = {}
  for curve in curves:
    for step, value in curve:
      values.setdefault(step, []).append(value)
  return {step: estimate(values[step]) for step in sorted(values)}


def write(
  sweep: Sweep, runs: Sequence[Result], metrics: Sequence[str], out: Path
):
  """Writes curves.csv and draws curves.png, for metrics that have steps."""
  drawn = {
    metric: found
    for metric in metrics
    if (found := over_seeds(sweep, runs, metric))
  }
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    ['metric', 'grid point', 'step', 'seeds', 'mean', 'low', 'high']
  )
  for metric, found in drawn.items():
    for name, steps in found.items():
      for step, each in steps.items():
        writer.writerow(
          [metric, name, step, each.seeds, each.mean, each.low, each.high]
        )
  files.write_text(out / 'curves.csv', text.getvalue())
  (out / 'curves.png').unlink(missing_ok=True)
  if drawn:
    draw(drawn, out / 'curves.png')


def draw(metrics: Mapping[str, Curves], path: Path):
  """Draws a panel for each metric: means as lines, intervals as bands."""
  # Imported last, so that no sweep waits for it. No pyplot: a notebook keeps
  # its own.
  from matplotlib import colormaps
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5.5 * len(metrics), 3.8), layout='constrained')
  panels = figure.subplots(1, len(metrics), squeeze=False)[0]
  names = list(
    dict.fromkeys(name for found in metrics.values() for name in found)
  )
  colors = colormaps['tab10' if len(names) <= 10 else 'viridis']
  for panel, (metric, found) in zip(panels, metrics.items()):
    for name, steps in found.items():
      place = names.index(name)
      color = colors(place if len(names) <= 10 else place / (len(names) - 1))
      panel.plot(
        list(steps),
        [each.mean for each in steps.values()],
        'o-' if len(steps) < 30 else '-',
        color=color,
        label=name,
        lw=1.2,
        ms=3,
      )
      banded = {s: e for s, e in steps.items() if e.low is not None}
      panel.fill_between(
        list(banded),
        [each.low for each in banded.values()],
        [each.high for each in banded.values()],
        color=color,
        alpha=0.15,
        lw=0,
      )
    panel.set(title=metric, xlabel='step')
    panel.grid(alpha=0.3)
    if len(found) <= _LINES_TO_A_LEGEND:
      panel.legend(fontsize=8)
  if len(names) > _LINES_TO_A_LEGEND:
    figure.legend(
      *panels[0].get_legend_handles_labels(),
      fontsize=7,
      loc='outside right upper',
    )
  figure.savefig(path, dpi=110)
