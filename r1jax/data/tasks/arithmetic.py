"""Chained arithmetic, from left to right and never below zero.

7+5-3+9-4  →  7+5=12 12-3=9 9+9=18 18-4=14  →  14
"""

import numpy as np

from r1jax import registry
from r1jax.config.schema.data import CorpusConfig
from r1jax.data.tasks.corpus import connective, correction_word
from r1jax.data.tasks.task import Problem, Task

_TERMS = 5


def _sample_arithmetic(rng: np.random.Generator) -> Problem:
  numbers = rng.integers(1, 10, _TERMS)
  total, ops = int(numbers[0]), []
  for number in numbers[1:]:
    minus = rng.random() < 0.5 and total >= number
    ops.append('-' if minus else '+')
    total += -int(number) if minus else int(number)
  question = str(numbers[0]) + ''.join(
    f'{op}{number}' for op, number in zip(ops, numbers[1:])
  )
  return Problem(
    question=question,
    answer=str(total),
    numbers=tuple(map(int, numbers)),
    ops=tuple(ops),
  )


def _solve_arithmetic(
  rng, problem: Problem, corpus: CorpusConfig
) -> tuple[str, str]:
  """Computes from left to right; an uncorrected slip carries on."""
  total, steps = problem.numbers[0], []
  for op, number in zip(problem.ops, problem.numbers[1:]):
    right = total - number if op == '-' else total + number
    step = f'{total}{op}{number}='
    word = connective(rng, corpus)
    if rng.random() < corpus.slip_rate:
      wrong = _slipped(rng, right)
      steps.append(f'{word}{step}{wrong}')
      if rng.random() < corpus.corrected_slip_share:
        steps.append(f'{correction_word(rng, corpus)} {step}{right}')
        total = right
      else:
        total = wrong
    else:
      steps.append(f'{word}{step}{right}')
      total = right
  return ' '.join(steps), str(total)


def _slipped(rng, right: int) -> int:
  """Samples a wrong result, off by 1 or 2 and not below 0."""
  offset = int(rng.choice([-2, -1, 1, 2]))
  return right + offset if right + offset >= 0 else right - offset


def _wrong_arithmetic(rng, problem: Problem) -> str:
  right = int(problem.answer)
  wrong = right
  while wrong == right or wrong < 0:
    wrong = right + int(rng.integers(-9, 10))
  return str(wrong)


registry.task('arithmetic')(
  Task(_sample_arithmetic, _solve_arithmetic, _wrong_arithmetic)
)
