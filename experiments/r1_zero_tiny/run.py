"""Runs the miniature with several seeds and tabulates them.

  python experiments/r1_zero_tiny/run.py --out=runs/study --seeds=0,1,2

Writes results.csv and the first seed's curves.png beside this file.
"""

import argparse
import csv
from pathlib import Path
import shutil
import subprocess
import sys
import time

from r1jax.train import metrics

HERE = Path(__file__).parent
CONFIG = 'r1_zero_tiny'
COLUMNS = {
  'pass@1': 'eval/pass@1',
  'cons@8': 'eval/cons@8',
  'format': 'eval/format',
  'length': 'eval/completions/mean_length',
  'self_correction': 'eval/completions/self_correction',
}


def main():
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument('--out', required=True)
  flags.add_argument('--seeds', default='0,1,2')
  args = flags.parse_args()
  commit = subprocess.run(
    ['git', 'describe', '--always', '--dirty'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()
  rows = []
  for seed in args.seeds.split(','):
    workdir = Path(args.out) / f'seed{seed}'
    began = time.monotonic()
    subprocess.run(
      [
        sys.executable,
        '-m',
        'r1jax.cli.main',
        'train',
        f'--config={CONFIG}',
        f'--workdir={workdir}',
        f'--config.seed={seed}',
      ],
      check=True,
    )
    secs = time.monotonic() - began
    lines = metrics.read(workdir / 'rl' / 'metrics.jsonl')
    evals = [line for line in lines if 'eval/pass@1' in line]
    row = {
      'commit': commit,
      'seed': seed,
      'steps': lines[-1]['step'],
      'wall_secs': round(secs),
    }
    for name, key in COLUMNS.items():
      row[f'{name}_before'] = round(evals[0][key], 4)
      row[f'{name}_after'] = round(evals[-1][key], 4)
    reached = [e['step'] for e in evals if e['eval/pass@1'] >= 0.9]
    row['steps_to_0.9'] = reached[0] if reached else ''
    rows.append(row)
  with open(HERE / 'results.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  first = Path(args.out) / f'seed{args.seeds.split(",")[0]}'
  shutil.copy(first / 'rl' / 'curves.png', HERE / 'curves.png')


if __name__ == '__main__':
  main()
