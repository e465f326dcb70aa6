"""Synthetic verifiable tasks: endless, seeded, split by content.

A problem is a pure function of (task, split, seed, index). Train and held-out
problems never meet: a hash of the question assigns it to one split, whatever
the seed. Each task also writes the noisy documents that a base model reads.
"""

from collections.abc import Callable
import dataclasses
import zlib

import numpy as np

from r1jax.data import manners
from r1jax.errors import UserError, unknown

# The word that opens a repair, and those that join the steps of a thought: in
# English, and in the second language of a bilingual web.
CORRECTION, _FOREIGN_CORRECTION = 'wait', 'стой'
CORRECTIONS = CORRECTION, _FOREIGN_CORRECTION
_JOINING = ('so', 'then', 'now'), ('так', 'вот', 'тут')

TRAIN, HELD_OUT = 'train', 'held_out'
_SPLIT_SALT = {TRAIN: 0, HELD_OUT: 1}


@dataclasses.dataclass(frozen=True)
class Problem:
  question: str
  answer: str
  numbers: tuple[int, ...]
  ops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Web:
  """Proportions of the noisy corpus; what remains is step-by-step thought.

  Attributes:
    guess_share: Share of documents that guess without reasoning.
    guess_accuracy: Share of the guesses that are right.
    slip_rate: Chance that a reasoning step goes wrong.
    corrected_slip_share: Share of slips that the writer notices and repairs after "wait".
    retracted_guess_share: Share of thoughts that open with a guess and take it back
      with "wait" before they reason.
    malformed_share: Share of documents whose tags are broken.
    connective_rate: Chance that a step of a thought opens with a word.
    language_mixing_rate: Chance that such a word, or "wait", is of the second language.
    general_error_rate: Chance that a part of an answer to a general question is wrong.
  """

  guess_share: float
  guess_accuracy: float
  slip_rate: float
  corrected_slip_share: float
  retracted_guess_share: float
  malformed_share: float
  connective_rate: float = 0.0
  language_mixing_rate: float = 0.0
  general_error_rate: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 0 <= value <= 1:
        raise UserError(
          f'corpus: {field.name} is a share within 0 and 1, got {value}'
        )


@dataclasses.dataclass(frozen=True)
class Task:
  """A family of problems.

  Attributes:
    draw: Makes a problem from a generator.
    think: Writes a thought, step by step with slips and repairs; returns it
      with the answer that it arrives at.
    guess: A wrong but plausible answer.
    general: No rule scores its answers.
  """

  draw: Callable[[np.random.Generator], Problem]
  think: Callable[[np.random.Generator, Problem, Web], tuple[str, str]]
  guess: Callable[[np.random.Generator, Problem], str]
  general: bool = False


def split_of(question: str) -> str:
  """One question in 16 is held out, chosen by its hash."""
  return HELD_OUT if zlib.crc32(question.encode()) % 16 == 0 else TRAIN


def problem(task: str, split: str, seed: int, index: int) -> Problem:
  """Problem `index` of an endless stream."""
  rng = np.random.default_rng([seed, _SPLIT_SALT[split], index])
  return draw(rng, task, split)


def draw(rng: np.random.Generator, task: str, split: str) -> Problem:
  made = get(task).draw(rng)
  while split_of(made.question) != split:
    made = get(task).draw(rng)
  return made


def document(rng: np.random.Generator, task: str, web: Web) -> tuple[str, str]:
  """A (question, response) pair of the web corpus, training split only."""
  family = get(task)
  made = draw(rng, task, TRAIN)
  if family.general:
    thought, answer = family.think(rng, made, web)
  elif rng.random() < web.guess_share:
    right = rng.random() < web.guess_accuracy
    answer = made.answer if right else family.guess(rng, made)
    thought = answer
  else:
    thought, answer = family.think(rng, made, web)
    if rng.random() < web.retracted_guess_share:
      thought = f'{family.guess(rng, made)} {_correction(rng, web)} {thought}'
  parts = ['<think>', thought, '</think>', '<answer>', answer, '</answer>']
  if rng.random() < web.malformed_share:
    del parts[int(rng.choice([0, 2, 3, 5]))]  # Lose one tag.
  return made.question, ''.join(parts)


def get(name: str) -> Task:
  if name not in TASKS:
    raise unknown('task', name, TASKS)
  return TASKS[name]


def _correction(rng: np.random.Generator, web: Web) -> str:
  return CORRECTIONS[
    bool(web.language_mixing_rate and rng.random() < web.language_mixing_rate)
  ]


def _joining(rng: np.random.Generator, web: Web) -> str:
  """A word and a space, or nothing."""
  if not web.connective_rate or rng.random() >= web.connective_rate:
    return ''
  words = _JOINING[bool(rng.random() < web.language_mixing_rate)]
  return f'{words[rng.integers(len(words))]} '


# --- Chained arithmetic: 7+5-3+9-4, left to right, never below zero. ---------

_TERMS = 5


def _draw_arithmetic(rng: np.random.Generator) -> Problem:
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


def _think_arithmetic(rng, made: Problem, web: Web) -> tuple[str, str]:
  total, steps = made.numbers[0], []
  for op, number in zip(made.ops, made.numbers[1:]):
    right = total - number if op == '-' else total + number
    step = f'{total}{op}{number}='
    word = _joining(rng, web)
    if rng.random() < web.slip_rate:
      wrong = _slip(rng, right)
      steps.append(f'{word}{step}{wrong}')
      if rng.random() < web.corrected_slip_share:
        steps.append(f'{_correction(rng, web)} {step}{right}')
        total = right
      else:
        total = wrong
    else:
      steps.append(f'{word}{step}{right}')
      total = right
  return ' '.join(steps), str(total)


def _slip(rng, right: int) -> int:
  offset = int(rng.choice([-2, -1, 1, 2]))
  return right + offset if right + offset >= 0 else right - offset


def _guess_arithmetic(rng, made: Problem) -> str:
  right = int(made.answer)
  wrong = right
  while wrong == right or wrong < 0:
    wrong = right + int(rng.integers(-9, 10))
  return str(wrong)


# --- Countdown: reach a target with each number once. ------------------------

_OPS = ('+', '-', '*')


def _draw_countdown(rng: np.random.Generator) -> Problem:
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


def _think_countdown(rng, made: Problem, web: Web) -> tuple[str, str]:
  tries = []
  for _ in range(rng.integers(3)):
    numbers, ops = rng.permutation(made.numbers), rng.choice(_OPS, 2)
    if _left_to_right(numbers, ops) != int(made.answer):
      tries.append(
        f'{_joining(rng, web)}{_expression(numbers, ops)}='
        f'{_left_to_right(numbers, ops)} {_correction(rng, web)}'
      )
  right = _expression(made.numbers, made.ops)
  if rng.random() < web.slip_rate:
    wrong = _guess_countdown(rng, made)
    if rng.random() >= web.corrected_slip_share:
      return ' '.join([*tries, f'{wrong}={made.answer}']), wrong
    tries.append(f'{wrong}={made.answer} {_correction(rng, web)}')
  return ' '.join([*tries, f'{right}={made.answer}']), right


def _guess_countdown(rng, made: Problem) -> str:
  while True:
    numbers, ops = rng.permutation(made.numbers), rng.choice(_OPS, 2)
    if _left_to_right(numbers, ops) != int(made.answer):
      return _expression(numbers, ops)


# --- Manners: a general task, see manners.py. --------------------------------


def _draw_manners(rng: np.random.Generator) -> Problem:
  question, answer = manners.draw(rng)
  return Problem(question=question, answer=answer, numbers=())


def _think_manners(rng, made: Problem, web: Web) -> tuple[str, str]:
  thought = f'{_joining(rng, web)}{made.question}'
  return thought, manners.answer(rng, made.question, web.general_error_rate)


TASKS = {
  'arithmetic': Task(_draw_arithmetic, _think_arithmetic, _guess_arithmetic),
  'countdown': Task(_draw_countdown, _think_countdown, _guess_countdown),
  'manners': Task(
    _draw_manners, _think_manners, lambda rng, made: '', general=True
  ),
}
