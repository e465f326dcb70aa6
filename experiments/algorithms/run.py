"""GRPO, PPO, DPO and group-robust DPO on one base; the language reward.

  python experiments/algorithms/run.py --out=runs/algorithms --seeds=3

Runs `r1jax sweep`, and writes results.csv (a line a seed and algorithm) and
curves.png beside this file. What is finished in --out is found again. With
--r1=runs/r1, the --out of experiments/r1_tiny, the base and GRPO are taken from
there: they are its base and its R1-Zero.
"""

import argparse
from pathlib import Path
import shutil

from r1jax.configs import pipeline_algorithms_tiny
from r1jax.runs import pipeline, validate
from r1jax.sweeps import curves, grid, plan, report, script
from r1jax.sweeps.results import Result

HERE = Path(__file__).parent
NAME = 'pipeline_algorithms_tiny'
CONFIG = pipeline_algorithms_tiny.get_config()
SAME = {'base': 'base', 'grpo': 'zero'}  # Here, and in experiments/r1_tiny.
COLUMNS = ('pass@1', 'cons@8', 'format', 'language', 'completions/mean_length')
CURVES = {
  'grpo': 'GRPO',
  'ppo': 'PPO, λ = 1',
  'ppo_lam095': 'PPO, λ = 0.95',
  'grpo_language': 'GRPO, language reward',
}


DRAWN = 'eval/pass@1', 'eval/language', 'eval/completions/mean_length'


def take_over(r1: list[Result], out: Path):
  """Copies finished stages of another study with the same configs and seeds."""
  for run in r1:
    place = plan.folder(out, grid.Point(NAME, {}), run.seed)
    for here, there in SAME.items():
      if not (place / here).exists():
        shutil.copytree(run.folder / there, place / here)


def row(run: Result, stage: str, found: dict[str, float]) -> dict:
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
    numbers |= {
      'pair accuracy': round(run.value(f'{stage}/eval/accuracy'), 4),
      'worst pair accuracy': round(run.value(f'{stage}/eval/worst_group'), 4),
    }
  if CONFIG[stage].stages[-1] == 'rl':
    explained = run.value(f'{stage}/critic/vf_explained_var', 10)
    if explained is not None:
      numbers['explained variance'] = round(explained, 3)
  return numbers


def stage_rows(run: Result, secs: dict[str, float]) -> list[dict]:
  """Returns the row of each policy; `secs` are the times of the stages."""
  rows = []
  for stage in CONFIG.stages:
    found = pipeline.measured(run.folder / stage / validate.MEASURED)
    if found:
      is_dpo = CONFIG[stage].stages[-1] == 'dpo'
      time = secs[stage] + secs['pairs'] * is_dpo
      first = {'commit': run.commit, 'seed': run.seed, 'stage': stage}
      rows.append(first | {'secs': round(time, 1)} | row(run, stage, found))
  return rows


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--r1', type=Path)
  parser.add_argument('--seeds', default='3')
  args = parser.parse_args()
  r1 = []
  if args.r1:
    seeds = grid.parse_seeds(args.seeds)
    r1 = [run for run in script.load(args.r1) if run.seed in seeds]
  take_over(r1, args.out)
  runs = script.sweep(args.out, NAME, seeds=args.seeds)
  secs = {run.seed: dict(run.stage_secs) for run in runs}
  for run in r1:
    secs[run.seed] |= {
      here: run.stage_secs[there] for here, there in SAME.items()
    }
  report.write_csv(
    HERE / 'results.csv',
    [line for run in runs for line in stage_rows(run, secs[run.seed])],
  )
  curves.draw(
    {
      metric: {
        name: curves.over_runs([run.curve(f'{stage}/{metric}') for run in runs])
        for stage, name in CURVES.items()
      }
      for metric in DRAWN
    },
    HERE / 'curves.png',
  )


if __name__ == '__main__':
  main()
