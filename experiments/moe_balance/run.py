"""Load balance of experts: none, by a loss, by the selection bias.

  python experiments/moe_balance/run.py --out=runs/balance --seeds=0,1,2

DeepSeek-V3 sections 2.1.2 and 4.5: the bias balances without a loss that the
model pays for. Writes results.csv and curves.png beside this file.
"""

from pathlib import Path
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study

VARIANTS = {  # Speed of the bias (γ), coefficient of the loss (α).
  'none': (0.0, 0.0),
  'loss': (0.0, 1e-2),
  'bias': (1e-3, 0.0),
}
SIZE = {
  'pretrain.max_steps': 300,
  'pretrain.logging_steps': 5,
  'model.n_routed_experts': 16,
  'model.n_group': 1,
  'model.topk_group': 1,
  'model.moe_intermediate_size': 32,
}


def main():
  out, seeds = study.flags(__doc__)
  rows, runs = [], {name: [] for name in VARIANTS}
  for seed in seeds:
    for name, (speed, loss) in VARIANTS.items():
      lines, secs = study.pretrain(
        'pretrain_tiny',
        out / f'{name}_{seed}',
        SIZE
        | {
          'seed': seed,
          'pretrain.routed_bias_update_rate': speed,
          'pretrain.router_aux_loss_coef': loss,
        },
      )
      runs[name].append(lines)
      late = lines[-10:]
      rows.append(
        {
          'commit': study.commit(),
          'variant': name,
          'seed': seed,
          'loss': round(study.smoothed([x['loss'] for x in lines], 10), 4),
          'max_violation': round(
            study.smoothed([x['moe/max_violation'] for x in lines], 10), 3
          ),
          'min_entropy': round(min(x['moe/min_entropy'] for x in late), 4),
          'dead_experts': max(x['moe/dead_experts'] for x in late),
          'wall_secs': round(secs),
        }
      )
      study.write_csv(HERE / 'results.csv', rows)
  study.plot(
    HERE / 'curves.png',
    {metric: runs for metric in ('moe/max_violation', 'loss')},
  )


if __name__ == '__main__':
  main()
