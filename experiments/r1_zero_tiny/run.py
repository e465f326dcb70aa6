"""R1-Zero in miniature, with several seeds: each before and after training.

  python experiments/r1_zero_tiny/run.py --out=runs/study --seeds=3

Runs `r1jax sweep`; a run that is finished in --out is found again. Writes
results.csv and the first seed's curves.png beside this file.
"""

import argparse
from pathlib import Path
import shutil

from r1jax.sweeps import report, script
from r1jax.sweeps.results import Result

HERE = Path(__file__).parent
COLUMNS = {
  'pass@1': 'eval/pass@1',
  'cons@8': 'eval/cons@8',
  'format': 'eval/format',
  'length': 'eval/completions/mean_length',
  'self_correction': 'eval/completions/self_correction',
}


def row(run: Result) -> dict:
  accuracy = run.curve('eval/pass@1')
  numbers = {
    'commit': run.commit,
    'seed': run.seed,
    'steps': run.lines['rl'][-1]['step'],
    'wall_secs': run.wall_secs and round(run.wall_secs),
  }
  for name, key in COLUMNS.items():
    (_, before), *_, (_, after) = run.curve(key)
    numbers[f'{name}_before'] = round(before, 4)
    numbers[f'{name}_after'] = round(after, 4)
  reached = [step for step, value in accuracy if value >= 0.9]
  return numbers | {'steps_to_0.9': reached[0] if reached else ''}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='3')
  args = parser.parse_args()
  runs = script.sweep(args.out, 'r1_zero_tiny', seeds=args.seeds)
  report.write_csv(HERE / 'results.csv', [row(run) for run in runs])
  shutil.copy(runs[0].folder / 'rl/curves.png', HERE / 'curves.png')


if __name__ == '__main__':
  main()
