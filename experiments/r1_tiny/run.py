"""The whole of R1 in miniature, with several seeds: what each stage is worth.

  python experiments/r1_tiny/run.py --out=runs/r1 --seeds=0,1,2

Writes results.csv (a line a seed and stage), claims.csv and curves.png beside
this file. A pipeline that is finished in --out is found again.
"""

from pathlib import Path
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study

from r1jax.configs import pipeline_r1_tiny

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


def main():
  out, seeds = study.flags(__doc__)
  rows, claims, curves = [], [], {'R1-Zero': [], 'from a cold start': []}
  for seed in seeds:
    place = out / f'seed{seed}'
    secs = study.pipeline('pipeline_r1_tiny', place, seed)
    found = study.evaluations(place, CONFIG.stages)
    rows += [
      {
        'commit': study.commit(),
        'seed': seed,
        'stage': stage,
        'secs': secs[stage],
      }
      | {
        f'{task}/{column}': round(values[f'{task}/{column}'], 4)
        if f'{task}/{column}' in values
        else ''
        for task in TASKS
        for column in COLUMNS
      }
      for stage, values in found.items()
    ]
    zero, reasoning = (
      study.evaluated(place / stage) for stage in ('zero', 'reasoning')
    )
    curves['R1-Zero'].append(zero)
    curves['from a cold start'].append(reasoning)
    claims.append({'seed': seed} | _claims(found, secs, zero, reasoning))
  study.write_csv(HERE / 'results.csv', rows)
  study.write_csv(HERE / 'claims.csv', claims)
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


def _claims(found, secs, zero: list[dict], reasoning: list[dict]) -> dict:
  """Returns the numbers of this run for each claim of the paper."""
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
    'student by RL secs': secs['student_rl'],
    'pipeline secs': round(sum(secs.values())),
  }


if __name__ == '__main__':
  main()
