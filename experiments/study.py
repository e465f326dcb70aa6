"""Shared code of the studies: variants × seeds, a table, a plot.

Every run is the public command in a process of its own; a finished run is
found again in --out.
"""

import argparse
import csv
import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import time

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot

from r1jax.train import metrics

COLORS = 'C0', 'C1', 'C2', 'C3'


def flags(doc: str):
  """--out and --seeds."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='0,1,2')
  args = parser.parse_args()
  return args.out, [int(seed) for seed in args.seeds.split(',')]


@functools.cache  # A study's own results make the tree another.
def commit() -> str:
  return subprocess.run(
    ['git', 'describe', '--always', '--dirty'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


def pretrain(config: str, workdir: Path, changes: dict[str, object]):
  """Runs `r1jax train`; returns the lines of metrics.jsonl and seconds."""
  began = time.monotonic()
  overrides = [f'--config.{key}={value}' for key, value in changes.items()]
  subprocess.run(
    [
      sys.executable,
      '-m',
      'r1jax.cli.main',
      'train',
      f'--config={config}',
      f'--workdir={workdir}',
      *overrides,
    ],
    check=True,
    env=os.environ | {'R1JAX_CACHE': str(workdir.parent / 'cache')},
  )
  lines = metrics.read(workdir / 'pretrain' / 'metrics.jsonl')
  return lines, time.monotonic() - began


def pipeline(config: str, workdir: Path, seed: int) -> dict[str, float]:
  """Runs `r1jax pipeline`; returns the seconds that each stage took, with its
  evaluation: in the run that finished it."""
  record, secs = workdir / 'secs.json', {}
  workdir.mkdir(parents=True, exist_ok=True)
  if record.exists():
    secs = json.loads(record.read_text())
  name, began = '', time.monotonic()
  with subprocess.Popen(
    [
      sys.executable,
      '-m',
      'r1jax.cli.main',
      'pipeline',
      f'--config={config}',
      f'--workdir={workdir}',
      f'--config.seed={seed}',
    ],
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    for line in process.stdout:
      print(line, end='', flush=True)
      if line.startswith('--- '):
        if name:
          secs.setdefault(name, round(time.monotonic() - began, 1))
          record.write_text(json.dumps(secs, indent=1) + '\n')
        name, began = line.strip('- \n'), time.monotonic()
  if process.returncode:
    raise SystemExit(f'{workdir}: the pipeline ended with {process.returncode}')
  secs.setdefault(name, round(time.monotonic() - began, 1))
  record.write_text(json.dumps(secs, indent=1) + '\n')
  return secs


def evaluations(workdir: Path, stages) -> dict[str, dict[str, float]]:
  """Returns the evaluation of each stage that trains a policy, in order."""
  files = {stage: workdir / stage / 'evaluation.json' for stage in stages}
  return {
    stage: json.loads(file.read_text())
    for stage, file in files.items()
    if file.exists()
  }


def evaluated(workdir: Path) -> list[dict]:
  """The lines of an RL run that hold an evaluation."""
  return [
    line
    for line in metrics.read(workdir / 'rl' / 'metrics.jsonl')
    if 'eval/pass@1' in line
  ]


def smoothed(values: list[float], last: int) -> float:
  """Returns the mean of the last values, since one batch's loss is noisy."""
  return sum(values[-last:]) / len(values[-last:])


def write_csv(path: Path, rows: list[dict]):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def plot(path: Path, curves: dict[str, dict[str, list[list[dict]]]]):
  """A panel for each metric: variant → runs, each a list of its lines."""
  figure, panels = pyplot.subplots(
    1, len(curves), figsize=(5 * len(curves), 3.4), squeeze=False
  )
  for panel, (metric, variants) in zip(panels[0], curves.items()):
    for color, (name, runs) in zip(COLORS, variants.items()):
      for i, lines in enumerate(runs):
        panel.plot(
          [line['step'] for line in lines],
          [line[metric] for line in lines],
          color=color,
          alpha=0.7,
          linewidth=1,
          label=name if i == 0 else None,
        )
    panel.set(title=metric, xlabel='step')
    panel.grid(alpha=0.3)
    panel.legend(fontsize='small')
  figure.tight_layout()
  figure.savefig(path, dpi=110)
