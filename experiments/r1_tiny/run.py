"""The whole of R1 in miniature, with several seeds: what each stage is worth.

  python experiments/r1_tiny/run.py --out=runs/r1 --seeds=3

Runs `r1jax sweep`, and writes results.csv (a line a seed and stage), claims.csv
and curves.png beside this file. A pipeline that is finished in --out is found
again.
"""

import argparse
from pathlib import Path

from r1jax.configs import pipeline_r1_tiny
from r1jax.runs import pipeline, validate
from r1jax.sweeps import curves, report, script
from r1jax.sweeps.results import Result

HERE = Path(__file__).parent
CONFIG = pipeline_r1_tiny.get_config()
TASKS = CONFIG.evaluations
COLUMNS = (
  'pass@1',
  'cons@8',
  'format',
  'language',
  'completions/mean_length',
  'quality',
)


CURVES = {'R1-Zero': 'zero', 'from a cold start': 'reasoning'}
DRAWN = 'eval/pass@1', 'eval/language', 'eval/completions/mean_length'


def evaluations(run: Result) -> dict[str, dict[str, float]]:
  """Returns the evaluation of each stage that leaves a policy, in order."""
  found = {
    stage: pipeline.measured(run.folder / stage / validate.MEASURED)
    for stage in CONFIG.stages
  }
  return {stage: values for stage, values in found.items() if values}


def stage_rows(run: Result) -> list[dict]:
  return [
    {
      'commit': run.commit,
      'seed': run.seed,
      'stage': stage,
      'secs': round(run.stage_secs[stage], 1),
    }
    | {
      f'{task}/{column}': round(values[f'{task}/{column}'], 4)
      if f'{task}/{column}' in values
      else ''
      for task in TASKS
      for column in COLUMNS
    }
    for stage, values in evaluations(run).items()
  ]


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, type=Path)
  parser.add_argument('--seeds', default='3')
  args = parser.parse_args()
  runs = script.sweep(args.out, 'pipeline_r1_tiny', seeds=args.seeds)
  report.write_csv(
    HERE / 'results.csv', [row for run in runs for row in stage_rows(run)]
  )
  report.write_csv(
    HERE / 'claims.csv', [{'seed': run.seed} | _claims(run) for run in runs]
  )
  curves.draw(
    {
      metric: {
        name: curves.over_runs([run.curve(f'{stage}/{metric}') for run in runs])
        for name, stage in CURVES.items()
      }
      for metric in DRAWN
    },
    HERE / 'curves.png',
  )


def _claims(run: Result) -> dict:
  """Returns the numbers of this run for each claim of the paper."""
  found, secs = evaluations(run), run.stage_secs
  zero, reasoning = (
    [line for line in run.lines[f'{stage}/rl'] if 'eval/pass@1' in line]
    for stage in CURVES.values()
  )
  first, last = zero[0], zero[-1]
  reached = [
    line['step']
    for line in reasoning
    if line['eval/pass@1'] >= last['eval/pass@1']
  ]
  mean = lambda stage: (
    (found[stage]['arithmetic/pass@1'] + found[stage]['countdown/pass@1']) / 2
  )
  return {
    'zero pass@1 before': round(first['eval/pass@1'], 4),
    'zero pass@1 after': round(last['eval/pass@1'], 4),
    'zero length before': round(first['eval/completions/mean_length'], 1),
    'zero length after': round(last['eval/completions/mean_length'], 1),
    'zero cons@8 after': round(last['eval/cons@8'], 4),
    'zero steps': last['step'],
    'cold start reaches it after': reached[0] if reached else '',
    'language of zero': round(last['eval/language'], 4),
    'language from a cold start': round(reasoning[-1]['eval/language'], 4),
    'general of sft': round(found['sft']['manners/quality'], 4),
    'general of final': round(found['final']['manners/quality'], 4),
    'general of reasoning': round(found['reasoning']['manners/quality'], 4),
    'reasoning after RL 1': round(mean('reasoning'), 4),
    'reasoning after RL 2': round(mean('final'), 4),
    'student distilled': round(mean('student'), 4),
    'student by RL': round(mean('student_rl'), 4),
    # Includes the time that its teacher took to sample the data.
    'student distilled secs': round(
      secs['distillation_data'] + secs['student'], 1
    ),
    'student by RL secs': round(secs['student_rl'], 1),
    'pipeline secs': round(sum(secs.values())),
  }


if __name__ == '__main__':
  main()
