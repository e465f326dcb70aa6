"""GRPO, PPO, DPO and group-robust DPO on one base; the language reward.

  python experiments/algorithms/run.py --out=runs/algorithms --seeds=0,1,2

Writes results.csv (a line a seed and algorithm) and curves.png beside this
file. What is finished in --out is found again. With --r1=runs/r1, the --out of
experiments/r1_tiny, the base and GRPO are taken from there: they are its base
and its R1-Zero.
"""

import argparse
import json
from pathlib import Path
import shutil
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study

from r1jax.configs import pipeline_algorithms_tiny
from r1jax.train import metrics

CONFIG = pipeline_algorithms_tiny.get_config()
SAME = {'base': 'base', 'grpo': 'zero'}  # Here, and in experiments/r1_tiny.
COLUMNS = ('pass@1', 'cons@8', 'format', 'language', 'completions/mean_length')
CURVES = {
  'grpo': 'GRPO',
  'ppo': 'PPO, λ = 1',
  'ppo_lam095': 'PPO, λ = 0.95',
  'grpo_language': 'GRPO, language reward',
}


def taken_over(r1: Path, place: Path):
  """Copies finished stages of another study with the same configs and seed."""
  secs = json.loads((r1 / 'secs.json').read_text())
  for here, there in SAME.items():
    if not (place / here).exists():
      shutil.copytree(r1 / there, place / here)
  if not (place / 'secs.json').exists():
    (place / 'secs.json').write_text(
      json.dumps({here: secs[there] for here, there in SAME.items()})
    )


def row(place: Path, stage: str, found: dict[str, float]) -> dict:
  """The numbers of one policy: in the mean of the groups, and of the worst."""
  group = [found[f'{task}/pass@1'] for task in CONFIG.evaluations]
  numbers = {
    'mean pass@1': round(sum(group) / len(group), 4),
    'worst pass@1': round(min(group), 4),
  } | {
    f'{task}/{column}': round(found[f'{task}/{column}'], 4)
    for task in CONFIG.evaluations
    for column in COLUMNS
  }
  numbers |= {
    'pair accuracy': '',
    'worst pair accuracy': '',
    'explained variance': '',
  }
  if CONFIG[stage].stages[-1] == 'dpo':
    last = [
      line
      for line in metrics.read(place / stage / 'dpo/metrics.jsonl')
      if 'eval/accuracy' in line
    ][-1]
    numbers |= {
      'pair accuracy': round(last['eval/accuracy'], 4),
      'worst pair accuracy': round(last['eval/worst_group'], 4),
    }
  if CONFIG[stage].stages[-1] == 'rl':
    explained = [
      line['critic/vf_explained_var']
      for line in metrics.read(place / stage / 'rl/metrics.jsonl')
      if 'critic/vf_explained_var' in line
    ][-10:]
    if explained:
      numbers['explained variance'] = round(sum(explained) / len(explained), 3)
  return numbers


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--r1', type=Path)
  parser.add_argument('--seeds', default='0,1,2')
  args = parser.parse_args()
  rows, curves = [], {name: [] for name in CURVES.values()}
  for seed in map(int, args.seeds.split(',')):
    place = args.out / f'seed{seed}'
    if args.r1:
      taken_over(args.r1 / f'seed{seed}', place)
    secs = study.pipeline('pipeline_algorithms_tiny', place, seed)
    found = study.evaluations(place, CONFIG.stages)
    rows += [
      {
        'commit': study.commit(),
        'seed': seed,
        'stage': stage,
        'secs': secs[stage]
        + secs['pairs'] * (CONFIG[stage].stages[-1] == 'dpo'),
      }
      | row(place, stage, values)
      for stage, values in found.items()
    ]
    for stage, name in CURVES.items():
      curves[name].append(study.evaluated(place / stage))
  study.write_csv(HERE / 'results.csv', rows)
  study.plot(
    HERE / 'curves.png',
    {
      metric: curves
      for metric in (
        'eval/pass@1',
        'eval/language',
        'eval/completions/mean_length',
      )
    },
  )


if __name__ == '__main__':
  main()
