"""Countdown: reach a target with three numbers, each used once.

3 7 2 to 20  →  (7+3)*2
"""

from collections.abc import Sequence
import json

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data.tasks.corpus import connective, correction_word
from r1jax.data.tasks.task import Problem, Task

_OPS = ('+', '-', '*')


def _sample_countdown(rng: np.random.Generator) -> Problem:
  while True:
    numbers = tuple(int(n) for n in rng.integers(1, 20, 3))
    ops = tuple(str(op) for op in rng.choice(_OPS, 2))
    target = _left_to_right(numbers, ops)
    if 1 <= target <= 99:
      shown = ' '.join(str(n) for n in rng.permutation(numbers))
      return Problem(
        question=f'{shown} to {target}',
        answer=str(target),
        numbers=numbers,
        ops=ops,
      )


def _left_to_right(numbers, ops) -> int:
  total = numbers[0]
  for op, number in zip(ops, numbers[1:]):
    total = {'+': total + number, '-': total - number, '*': total * number}[op]
  return total


def _expression(numbers, ops) -> str:
  return f'({numbers[0]}{ops[0]}{numbers[1]}){ops[1]}{numbers[2]}'


def _solve_countdown(
  rng, problem: Problem, corpus: CorpusConfig
) -> tuple[str, str]:
  attempts = []
  for _ in range(rng.integers(3)):
    numbers, ops = rng.permutation(problem.numbers), rng.choice(_OPS, 2)
    if _left_to_right(numbers, ops) != int(problem.answer):
      attempts.append(
        f'{connective(rng, corpus)}{_expression(numbers, ops)}='
        f'{_left_to_right(numbers, ops)} {correction_word(rng, corpus)}'
      )
  right = _expression(problem.numbers, problem.ops)
  if rng.random() < corpus.slip_rate:
    wrong = _wrong_countdown(rng, problem)
    if rng.random() >= corpus.corrected_slip_share:
      return ' '.join([*attempts, f'{wrong}={problem.answer}']), wrong
    attempts.append(f'{wrong}={problem.answer} {correction_word(rng, corpus)}')
  return ' '.join([*attempts, f'{right}={problem.answer}']), right


def _wrong_countdown(rng, problem: Problem) -> str:
  while True:
    numbers, ops = rng.permutation(problem.numbers), rng.choice(_OPS, 2)
    if _left_to_right(numbers, ops) != int(problem.answer):
      return _expression(numbers, ops)


def countdown_answer(numbers: Sequence[int], target: int) -> str:
  """Returns the gold answer in the format that the countdown grader reads."""
  return json.dumps({'numbers': [int(n) for n in numbers], 'target': target})


registry.task('countdown')(
  Task(
    _sample_countdown,
    _solve_countdown,
    _wrong_countdown,
    gold_answer=lambda p: countdown_answer(p.numbers, int(p.answer)),
  )
)
