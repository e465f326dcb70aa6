"""What the studies of training share: variants × seeds, a table, a plot.

Every run is the public command in a process of its own; a finished run is
found again in --out.
"""

import argparse
import csv
import os
from pathlib import Path
import subprocess
import sys
import time

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402: after the backend is chosen.

from r1jax.train import metrics  # noqa: E402


def flags(doc: str):
  """--out and --seeds."""
  parser = argparse.ArgumentParser(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='0,1,2')
  args = parser.parse_args()
  return args.out, [int(seed) for seed in args.seeds.split(',')]


def commit() -> str:
  return subprocess.run(
      ['git', 'describe', '--always', '--dirty'], capture_output=True,
      text=True, check=True).stdout.strip()


def pretrain(config: str, workdir: Path, changes: dict[str, object]):
  """Runs `r1jax train`; returns the lines of metrics.jsonl and seconds."""
  began = time.monotonic()
  overrides = [f'--config.{key}={value}' for key, value in changes.items()]
  subprocess.run(
      [sys.executable, '-m', 'r1jax.main', 'train', f'--config={config}',
       f'--workdir={workdir}', *overrides], check=True,
      env=os.environ | {'R1JAX_CACHE': str(workdir.parent / 'cache')})
  lines = metrics.read(workdir / 'pretrain' / 'metrics.jsonl')
  return lines, time.monotonic() - began


def smoothed(values: list[float], last: int) -> float:
  """Mean of the last so many values: one batch's loss is noise."""
  return sum(values[-last:]) / len(values[-last:])


def write_csv(path: Path, rows: list[dict]):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def plot(path: Path, curves: dict[str, dict[str, list[list[dict]]]]):
  """A panel for each metric: variant → runs, each a list of its lines."""
  figure, panels = pyplot.subplots(
      1, len(curves), figsize=(5 * len(curves), 3.4), squeeze=False)
  for panel, (metric, variants) in zip(panels[0], curves.items()):
    for color, (name, runs) in zip('C0 C1 C2 C3'.split(), variants.items()):
      for i, lines in enumerate(runs):
        panel.plot([line['step'] for line in lines],
                   [line[metric] for line in lines], color=color, alpha=0.7,
                   linewidth=1, label=name if i == 0 else None)
    panel.set(title=metric, xlabel='step')
    panel.grid(alpha=0.3)
    panel.legend(fontsize='small')
  figure.tight_layout()
  figure.savefig(path, dpi=110)
