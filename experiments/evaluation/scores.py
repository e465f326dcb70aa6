"""Our scores and lm-evaluation-harness's, of the same completions.

python experiments/evaluation/scores.py --solutions --out=/tmp/scores
python experiments/evaluation/scores.py --out=runs/eval-qwen

The second form reads the folder of `r1jax eval --suite=math500,gsm8k,…`. The first
one makes such a folder without a model: the problems' own solutions, solutions
that end in the answer in other words, those of another problem, and solutions
whose end is missing. It needs `pip install -e '.[lm_eval]' 'lm_eval[math]'`, and
R1JAX_DATA for --solutions.
"""

from collections import Counter
import json
from pathlib import Path
import re

from absl import app, flags
import numpy as np

from r1jax import registry
from r1jax.data import readers
from r1jax.data.text import reasoning
from r1jax.data.text.response_formats import ResponseParser
from r1jax.evaluate import stored
from r1jax.graders import dispatch

_OUT = flags.DEFINE_string('out', None, 'The folder.', required=True)
_SOLUTIONS = flags.DEFINE_bool('solutions', False, 'Make the folder first.')
_PROBLEMS = flags.DEFINE_integer(
  'problems', 500, 'Of each suite, from the first.'
)
_SHOWN = flags.DEFINE_integer('shown', 5, 'Differences of each kind to show.')
_FILES = {'math500': 'math/math500', 'gsm8k': 'math/gsm8k_test'}
_GSM8K = re.compile(r'(-?[$0-9.,]{2,})|(-?[0-9]+)')


def main(_):
  """Prints a table of scores, and completions whose verdicts differ."""
  folder = Path(_OUT.value)
  if _SOLUTIONS.value:
    with dispatch.shutdown_on_exit():
      for suite, path in _FILES.items():
        _make(folder / suite, path)
  rows = []
  for place in sorted(folder.iterdir()):
    if place.is_dir():
      rows += _compared(place)
  print(
    '| suite | completions | ours | theirs | metric of theirs | only ours | only theirs |'
  )
  print('|---' * 7 + '|')
  for row in rows:
    print('| ' + ' | '.join(map(str, row)) + ' |')


def _make(folder: Path, path: str):
  """Writes four completions of each problem, and our verdicts."""
  rows = [row.fields for row in readers.rows(readers.files(path))]
  rows = rows[: _PROBLEMS.value]
  parser = ResponseParser(registry.response_format.get('plain'))
  records = [
    dict(
      problem=p,
      sample=g,
      id=row['id'],
      question=row['question'],
      prompt=row['question'],
      gold=row['answer'],
      source='math',
      completion=text,
      format=1.0,
      tokens=len(text),
      truncated=False,
    )
    for p, row in enumerate(rows)
    for g, text in enumerate(_completions(rows, p))
  ]
  answers = [parser.parse(r['completion']).answer for r in records]
  verdicts = dispatch.verdicts(
    [(a, r['gold'], 'math') for a, r in zip(answers, records)]
  )
  for record, answer, verdict in zip(records, answers, verdicts):
    record['answer'] = dispatch.final_answer(answer, 'math')
    record['verdict'] = str(verdict)
    record['accuracy'] = verdict.score
  stored.Writer(folder, 0).write(records)
  stored.join(folder)


def _completions(rows: list[dict], p: int) -> list[str]:
  """Returns a right solution, one in other words, a wrong one, and a torn one."""
  row, other = rows[p], rows[(p + 1) % len(rows)]
  body = row['solution'].partition('####')[0].strip()
  whole = body if '\\boxed' in body else f'{body}\n#### {row["answer"]}'
  words = row['answer'].replace('\\frac', '\\dfrac').replace('\\left', '')
  words = words.replace('\\right', '').replace('\\!', '')
  return [
    whole,
    f'Let us see.\nThe final answer is ${words}$',
    f'{body[: len(body) // 2]}\nSo it is $\\boxed{{{other["answer"]}}}$',
    body[: len(body) // 2],
  ]


def _compared(folder: Path) -> list[tuple]:
  """Returns a row for each metric of the harness that fits the suite."""
  records = stored.load(folder)
  texts = [_response(record['completion']) for record in records]
  ours = np.array([record['verdict'] == 'correct' for record in records])
  theirs = _theirs(folder.name, records, texts)
  rows = []
  for metric, scores in theirs.items():
    found = np.array(scores, bool)
    rows.append(
      (
        folder.name,
        len(records),
        f'{ours.mean():.4f}',
        f'{found.mean():.4f}',
        metric,
        int((ours & ~found).sum()),
        int((found & ~ours).sum()),
      )
    )
    for kind, chosen in (('ours', ours & ~found), ('theirs', found & ~ours)):
      _show(
        folder.name, metric, kind, [records[i] for i in np.flatnonzero(chosen)]
      )
  return rows


def _response(completion: str) -> str:
  """Returns what a reader sees; a thought is not graded."""
  return reasoning.split(completion).answer or ''


def _theirs(suite: str, records: list[dict], texts: list[str]) -> dict:
  """Returns the harness's score of each completion, by metric."""
  from lm_eval.tasks.minerva_math import utils

  scores = [
    utils.process_results(
      {
        'solution': f'$\\boxed{{{record["gold"]}}}$',
        'answer': utils.normalize_final_answer(record['gold']),
      },
      [text],
    )
    for record, text in zip(records, texts)
  ]
  found = {'math_verify': [score['math_verify'] for score in scores]}
  if suite == 'gsm8k':
    found['flexible-extract'] = [
      _flexible(text) == record['gold'].replace(',', '')
      for record, text in zip(records, texts)
    ]
  return found


def _flexible(text: str) -> str:
  """Returns the last number of a text, as the task gsm8k takes it."""
  matches = _GSM8K.findall(text)
  last = ''.join(matches[-1]) if matches else ''
  return re.sub(r'[,$]|\.$', '', last)


def _show(suite: str, metric: str, kind: str, records: list[dict]):
  kinds = Counter(record['sample'] for record in records)
  if records:
    print(
      f'{suite}, {metric}: right by {kind} alone: {len(records)}, by sample {dict(kinds)}'
    )
  for record in records[: _SHOWN.value]:
    end = json.dumps(record['completion'][-90:])
    print(
      f'  {record["id"]}: gold {record["gold"]!r}, read {record["answer"]!r}: …{end}'
    )


if __name__ == '__main__':
  app.run(main)
