"""Process rewards and tree search against plain RL, at equal generated tokens.

  python experiments/process_rewards/run.py --out=runs/process --seeds=2

Two policies are compared: the shipped base, and the same after eight steps of
GRPO. Plain GRPO is a `r1jax sweep` over its steps; labels, reward models and
searches follow for each policy. Writes results.csv, tokens.csv and curves.png
beside this file.
"""

import argparse
import json
import os
from pathlib import Path
import re
import subprocess
import sys

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot

from r1jax.sweeps import report, script
from r1jax.train import metrics

HERE = Path(__file__).parent
TINY = 'r1_zero_tiny'
PIPELINE = 'pipeline_process_tiny'
SAMPLES = 32  # A problem, of which every power of two is judged.
SEARCHED = (8, 16, 32)  # Budgets, in the policy's completions.
EARLY_STEPS, STEPS = 8, 30
# Thoughts of the early policy are longer: fewer of them cost as much.
PROMPTS = {'base': 96, 'early': 48}
RL = {'rl.eval_steps': 3, 'rl.save_steps': STEPS, 'eval.num_samples': 4}


def command(name: str, *args) -> str:
  """Runs r1jax; returns what it printed."""
  done = subprocess.run(
    [sys.executable, '-m', 'r1jax.cli.main', name, *args],
    text=True,
    capture_output=True,
    env=os.environ,
  )
  if done.returncode:
    raise SystemExit(f'{" ".join(args)}\n{done.stdout}{done.stderr}')
  return done.stdout


def overrides(changes: dict[str, object], prefix: str = '') -> list[str]:
  return [f'--config.{prefix}{key}={value}' for key, value in changes.items()]


def evaluated(file: Path, changes: dict[str, object]) -> dict[str, float]:
  """Returns the metrics of `r1jax eval`, which are kept in a file."""
  if not file.exists():
    printed = command('eval', f'--config={TINY}', *overrides(changes))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(printed)
  pairs = [
    line.split()
    for line in file.read_text().splitlines()
    if line.startswith('eval/')
  ]
  return {name.removeprefix('eval/'): float(value) for name, value in pairs}


def judged(
  place: Path, init: str, seed: int, prompts: int, only: tuple[str, ...]
) -> dict:
  """Trains on step labels of a policy; returns costs and quality."""
  changes = [
    f'--config.{stage}.{key}={value}'
    for stage in ('labels', 'prm', 'policy')
    for key, value in (('seed', seed), ('init', init))
  ]
  for stage in only:
    command(
      'pipeline',
      f'--config={PIPELINE}',
      f'--workdir={place}',
      f'--only={stage}',
      *changes,
      f'--config.labels.label_steps.num_prompts={prompts}',
    )
  report = (place / 'labels/label_steps/report.json').read_text()
  last = metrics.read(place / 'prm/prm/metrics.jsonl')[-1]
  return {'label_tokens': json.loads(report)['tokens']} | {
    f'prm_{name}': last[f'eval/{name}']
    for name in ('accuracy', 'auc', 'calibration')
  }


def policy_rows(
  out: Path, name: str, init: str, seed: int, only: tuple[str, ...]
) -> list[dict]:
  """Accuracy and tokens of each method that chooses an answer, for a policy."""
  place = out / f'seed{seed}' / name
  cost = judged(place / 'process', init, seed, PROMPTS[name], only)
  model = place / 'process/prm/prm/model.safetensors'
  shared = {
    'init': init,
    'seed': seed,
    'eval.search.process_reward_model': model,
  }
  found = evaluated(
    place / 'best.txt',
    shared | {'eval.search.kind': 'best_of_n', 'eval.num_samples': SAMPLES},
  )
  columns = {'seed': seed, 'policy': name} | cost
  rows = []
  for key, value in found.items():  # 'cons@4', 'best@4/min', 'tokens@4'
    metric, n, aggregate = re.fullmatch(r'(\w+)@(\d+)(/\w+)?', key).groups('')
    if metric != 'tokens':
      rows.append(
        columns
        | {
          'method': metric + aggregate,
          'n': int(n),
          'tokens': found[f'tokens@{n}'],
          'accuracy': value,
        }
      )
  tokens_per_sample = found['tokens@1']
  for n in SEARCHED:
    search = evaluated(
      place / f'mcts{n}.txt',
      shared
      | {
        'eval.search.kind': 'mcts',
        'eval.search.budget_tokens': round(n * tokens_per_sample),
      },
    )
    rows.append(
      columns
      | {
        'method': 'mcts',
        'n': n,
        'tokens': search['tokens'],
        'accuracy': search['pass@1'],
      }
    )
  return rows


def reached(lines: list[dict], tokens: float) -> dict:
  """The last evaluation of a run before it had drawn so many tokens."""
  used, best = 0.0, lines[0]
  for line in lines:
    used += line.get('completions/mean_length', 0.0) * 512
    if used > tokens:
      break
    if 'eval/pass@1' in line:
      best = line
  return best


def curve(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
  some = [line for line in lines if key in line]
  return [line['step'] for line in some], [line[key] for line in some]


def plot(rows: list[dict], runs: dict[str, list[dict]]):
  """Accuracy over tokens of each policy, and what the reward says."""
  figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.8))
  for panel, policy in zip(panels, PROMPTS):
    for method in (
      'pass',
      'best/min',
      'best/product',
      'best/last',
      'cons',
      'mcts',
    ):
      of_method = [
        row
        for row in rows
        if row['policy'] == policy and row['method'] == method
      ]
      sizes = sorted({row['n'] for row in of_method})
      mean = lambda key: [
        sum(r[key] for r in of_method if r['n'] == n)
        / sum(r['n'] == n for r in of_method)
        for n in sizes
      ]
      panel.plot(
        mean('tokens'),
        mean('accuracy'),
        label=method,
        marker='o',
        markersize=3,
        linestyle=':' if method == 'pass' else '-',
      )
    panel.set(
      title=f'{policy}: accuracy of the chosen answer',
      xscale='log',
      xlabel='tokens a problem',
      ylim=(0, 1),
    )
    ticks = [32, 64, 128, 256, 512, 1024]
    panel.set_xticks(ticks, labels=ticks, minor=False)
    panel.minorticks_off()
  for color, (name, lines) in zip(('C0', 'C3'), runs.items()):
    panels[2].plot(
      *curve(lines, 'eval/pass@1'),
      color=color,
      label=f'{name}: held-out pass@1',
    )
    panels[2].plot(
      *curve(lines, 'rewards/accuracy/mean'),
      color=color,
      alpha=0.4,
      linestyle='--',
      label=f'{name}: accuracy of samples',
    )
  panels[2].plot(
    *curve(runs['process reward'], 'rewards/prm/mean'),
    color='k',
    label='process reward: its reward',
  )
  panels[2].set(title='RL, the first seed', xlabel='step', ylim=(0, 1))
  for panel in panels:
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
  figure.tight_layout()
  figure.savefig(HERE / 'curves.png', dpi=110)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='2')
  args = parser.parse_args()
  out = args.out
  rows, runs, totals = [], {}, []
  trained = script.sweep(
    out / 'grpo',
    TINY,
    grid=[f'rl.max_steps={EARLY_STEPS},{STEPS}'],
    seeds=args.seeds,
    changes=RL,
  )
  half = len(trained) // 2
  for early, late in zip(trained[:half], trained[half:], strict=True):
    seed, plain = late.seed, late.lines['rl']
    place = out / f'seed{seed}'
    found = policy_rows(
      out, 'base', 'shipped', seed, ('labels', 'prm', 'policy')
    )
    found += policy_rows(
      out,
      'early',
      str(early.folder / 'rl/model.safetensors'),
      seed,
      ('labels', 'prm'),
    )
    before = early.lines['rl']
    spent = {
      'base': 0.0,
      'early': 512
      * sum(line.get('completions/mean_length', 0.0) for line in before),
    }
    hacked = metrics.read(place / 'base/process/policy/rl/metrics.jsonl')
    runs = runs or {'rule reward': plain, 'process reward': hacked}
    for policy in PROMPTS:
      some = [row for row in found if row['policy'] == policy]
      tokens = spent[policy] + some[0]['label_tokens']
      at = reached(plain, tokens)
      accuracy = lambda method, n: next(
        row['accuracy']
        for row in some
        if (row['method'], row['n']) == (method, n)
      )
      totals.append(
        {
          'commit': late.commit,
          'seed': seed,
          'policy': policy,
          'training_tokens': round(tokens),
          'label_tokens': some[0]['label_tokens'],
          'pass@1': accuracy('pass', 1),
          'cons@32': accuracy('cons', 32),
          'best@32': accuracy('best/min', 32),
          'mcts@32': accuracy('mcts', 32),
          'pass@32': accuracy('pass', 32),
          'grpo_steps': at['step'],
          'grpo_pass@1': at['eval/pass@1'],
          'prm_accuracy': some[0]['prm_accuracy'],
          'prm_auc': some[0]['prm_auc'],
          'prm_calibration': some[0]['prm_calibration'],
        }
      )
    last = [run[-1] for run in (plain, hacked)]
    first = next(line for line in hacked if 'rewards/prm/mean' in line)
    totals[-2] |= {
      'rule_rl_pass@1': last[0]['eval/pass@1'],
      'process_rl_pass@1': last[1]['eval/pass@1'],
      'process_reward_before': first['rewards/prm/mean'],
      'process_reward_after': last[1]['rewards/prm/mean'],
    }
    rows += found
  for name, table in (('tokens', rows), ('results', totals)):
    report.write_csv(
      HERE / f'{name}.csv',
      [
        {
          key: round(value, 4) if isinstance(value, float) else value
          for key, value in row.items()
        }
        for row in table
      ],
    )
  plot(rows, runs)


if __name__ == '__main__':
  main()
