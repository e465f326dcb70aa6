"""Load balance of experts: none, by a loss, by the selection bias.

  python experiments/moe_balance/run.py --out=runs/balance --seeds=3

DeepSeek-V3 sections 2.1.2 and 4.5: the bias balances without a loss that the
model pays for. Runs `r1jax sweep`, and writes results.csv and curves.png beside
this file.
"""

import argparse
from pathlib import Path
import shutil

from r1jax.sweeps import report, script
from r1jax.sweeps.results import Result

HERE = Path(__file__).parent
VARIANTS = {  # Speed of the bias (γ), coefficient of the loss (α).
  'none': (0.0, 0.0),
  'loss': (0.0, 1e-2),
  'bias': (1e-3, 0.0),
}
KEYS = ('pretrain.routed_bias_update_rate', 'pretrain.router_aux_loss_coef')
SIZE = {
  'pretrain.max_steps': 300,
  'pretrain.logging_steps': 5,
  'model.n_routed_experts': 16,
  'model.n_group': 1,
  'model.topk_group': 1,
  'model.moe_intermediate_size': 32,
}
LATE = 10  # Lines that a final value is the mean of: 50 steps.


def row(name: str, run: Result) -> dict:
  late = run.lines['pretrain'][-LATE:]
  return {
    'commit': run.commit,
    'variant': name,
    'seed': run.seed,
    'loss': round(run.value('loss', LATE), 4),
    'max_violation': round(run.value('moe/max_violation', LATE), 3),
    'min_entropy': round(min(x['moe/min_entropy'] for x in late), 4),
    'dead_experts': max(x['moe/dead_experts'] for x in late),
    'wall_secs': run.wall_secs and round(run.wall_secs),
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='3')
  args = parser.parse_args()
  values = ','.join(f'({speed},{loss})' for speed, loss in VARIANTS.values())
  runs = script.sweep(
    args.out,
    'pretrain_tiny',
    grid=[f'{",".join(KEYS)}={values}'],
    seeds=args.seeds,
    changes=SIZE,
    flags=[
      f'--last_lines={LATE}',
      '--metric=moe/max_violation',
      '--metric=loss',
    ],
  )
  points = list(dict.fromkeys(run.point for run in runs))
  name_of = dict(zip(points, VARIANTS, strict=True))
  report.write_csv(
    HERE / 'results.csv',
    [
      row(name_of[run.point], run)
      for run in sorted(runs, key=lambda run: run.seed)
    ],
  )
  shutil.copy(args.out / 'curves.png', HERE / 'curves.png')


if __name__ == '__main__':
  main()
