"""GRPO beside PPO with λ = 1 and 0.95, on the same base, rollouts and rewards.

  python experiments/ppo/run.py --out=runs/ppo --seeds=0

Writes results.csv and curves.png beside this file. A run that is finished in
--out is found again.
"""

from pathlib import Path
import subprocess
import sys
import time

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402: it lies beside this folder.
from r1jax.train import metrics  # noqa: E402

VARIANTS = {
    'GRPO': ('configs/r1_zero_tiny.py', ()),
    'PPO, λ = 1': ('configs/ppo_tiny.py', ()),
    'PPO, λ = 0.95': ('configs/ppo_tiny.py', ('rl.ppo.lam=0.95',)),
    # A critic that has seen 20 rollouts before the policy moves.
    'PPO, λ = 0.95, warm critic': (
        'configs/ppo_tiny.py', ('rl.ppo.lam=0.95', 'rl.steps=100',
                                'rl.ppo.value_warmup_steps=20'))}


def main():
  out, seeds = study.flags(__doc__)
  rows, runs = [], {name: [] for name in VARIANTS}
  for seed in seeds:
    for i, (name, (config, changes)) in enumerate(VARIANTS.items()):
      workdir, began = out / f'seed{seed}_{i}', time.monotonic()
      subprocess.run(
          [sys.executable, '-m', 'r1jax.main', 'train', f'--config={config}',
           f'--workdir={workdir}', f'--config.seed={seed}',
           *(f'--config.{change}' for change in changes)], check=True)
      lines = metrics.read(workdir / 'rl' / 'metrics.jsonl')
      evals = [line for line in lines if 'eval/pass@1' in line]
      runs[name].append(evals)
      last = evals[-1]
      explained = [line['value/explained_variance'] for line in lines
                   if 'value/explained_variance' in line]
      rows.append({
          'commit': study.commit(), 'variant': name, 'seed': seed,
          'steps': last['step'], 'wall_secs': round(time.monotonic() - began),
          'pass@1_before': round(evals[0]['eval/pass@1'], 4),
          'pass@1_after': round(last['eval/pass@1'], 4),
          'cons@8_after': round(last['eval/cons@8'], 4),
          'length_after': round(last['eval/response_length/mean'], 1),
          'explained_variance': round(
              sum(explained[-10:]) / len(explained[-10:]), 3)
                                if explained else ''})
  study.write_csv(HERE / 'results.csv', rows)
  study.plot(HERE / 'curves.png', {
      metric: runs for metric in ('eval/pass@1', 'eval/response_length/mean')})


if __name__ == '__main__':
  main()
