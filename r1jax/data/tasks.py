"""Synthetic verifiable tasks: endless, seeded, split by content.

A problem is a pure function of (task, split, seed, index). Training and
held-out problems never overlap, whatever the seed, since a hash of the question
assigns it to one split. Each task also writes the noisy documents on which a
base model is pre-trained.
"""

from collections.abc import Callable
import dataclasses
import zlib

import numpy as np

from r1jax.config.schema.data import CorpusConfig
from r1jax.data import manners
from r1jax.errors import unknown

# The word that introduces a correction, and the words that may open a step, in
# English and in the second language of a bilingual corpus.
CORRECTION_WORDS = 'wait', 'стой'
_CONNECTIVES = ('so', 'then', 'now'), ('так', 'вот', 'тут')

TRAIN, HELD_OUT = 'train', 'held_out'
_SPLIT_SALT = {TRAIN: 0, HELD_OUT: 1}


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem of a synthetic task.

  Attributes:
    question: The question, without a prompt template.
    answer: The right answer; in 'countdown' the target.
    numbers: The operands, for tasks that have some.
    ops: The operators of a solution, from left to right.
  """

  question: str
  answer: str
  numbers: tuple[int, ...]
  ops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
  """The functions that define a synthetic task.

  Attributes:
    sample_problem: Samples a problem.
    write_solution: Writes reasoning, step by step with slips and corrections;
      returns it with the answer that it arrives at.
    wrong_answer: Samples a wrong but plausible answer.
    general: Whether the task is general data, in DeepSeek's sense: no rule
      verifies its answers.
  """

  sample_problem: Callable[[np.random.Generator], Problem]
  write_solution: Callable[
    [np.random.Generator, Problem, CorpusConfig], tuple[str, str]
  ]
  wrong_answer: Callable[[np.random.Generator, Problem], str]
  general: bool = False


def split_of(question: str) -> str:
  """Returns the split of a question: one in 16 is held out, by its hash."""
  return HELD_OUT if zlib.crc32(question.encode()) % 16 == 0 else TRAIN


def problem_at(task: str, split: str, seed: int, index: int) -> Problem:
  """Returns problem `index` of an endless stream."""
  rng = np.random.default_rng([seed, _SPLIT_SALT[split], index])
  return sample_problem(rng, task, split)


def sample_problem(rng: np.random.Generator, task: str, split: str) -> Problem:
  """Samples a problem of one split."""
  problem = get(task).sample_problem(rng)
  while split_of(problem.question) != split:
    problem = get(task).sample_problem(rng)
  return problem


def sample_document(
  rng: np.random.Generator, task: str, corpus: CorpusConfig
) -> tuple[str, str]:
  """Samples a (question, response) pair of the corpus, of the training split."""
  family = get(task)
  problem = sample_problem(rng, task, TRAIN)
  if family.general:
    reasoning, answer = family.write_solution(rng, problem, corpus)
  elif rng.random() < corpus.guess_share:
    right = rng.random() < corpus.guess_accuracy
    answer = problem.answer if right else family.wrong_answer(rng, problem)
    reasoning = answer
  else:
    reasoning, answer = family.write_solution(rng, problem, corpus)
    if rng.random() < corpus.retracted_guess_share:
      guess = family.wrong_answer(rng, problem)
      reasoning = f'{guess} {_correction_word(rng, corpus)} {reasoning}'
  parts = ['<think>', reasoning, '</think>', '<answer>', answer, '</answer>']
  if rng.random() < corpus.malformed_share:
    del parts[int(rng.choice([0, 2, 3, 5]))]  # One of the tags.
  return problem.question, ''.join(parts)


def get(name: str) -> Task:
  """Returns the task of a name.

  Raises:
    UserError: there is no task of that name.
  """
  if name not in TASKS:
    raise unknown('task', name, TASKS)
  return TASKS[name]


def _correction_word(rng: np.random.Generator, corpus: CorpusConfig) -> str:
  """Samples the word that introduces a correction, of either language."""
  rate = corpus.language_mixing_rate
  return CORRECTION_WORDS[bool(rate and rng.random() < rate)]


def _connective(rng: np.random.Generator, corpus: CorpusConfig) -> str:
  """Samples a word and a space to open a step, or the empty string."""
  if not corpus.connective_rate or rng.random() >= corpus.connective_rate:
    return ''
  words = _CONNECTIVES[bool(rng.random() < corpus.language_mixing_rate)]
  return f'{words[rng.integers(len(words))]} '


# --- Chained arithmetic: 7+5-3+9-4, left to right, never below zero. ---------

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
    word = _connective(rng, corpus)
    if rng.random() < corpus.slip_rate:
      wrong = _slipped(rng, right)
      steps.append(f'{word}{step}{wrong}')
      if rng.random() < corpus.corrected_slip_share:
        steps.append(f'{_correction_word(rng, corpus)} {step}{right}')
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


# --- Countdown: reach a target with each number once. ------------------------

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
        f'{_connective(rng, corpus)}{_expression(numbers, ops)}='
        f'{_left_to_right(numbers, ops)} {_correction_word(rng, corpus)}'
      )
  right = _expression(problem.numbers, problem.ops)
  if rng.random() < corpus.slip_rate:
    wrong = _wrong_countdown(rng, problem)
    if rng.random() >= corpus.corrected_slip_share:
      return ' '.join([*attempts, f'{wrong}={problem.answer}']), wrong
    attempts.append(f'{wrong}={problem.answer} {_correction_word(rng, corpus)}')
  return ' '.join([*attempts, f'{right}={problem.answer}']), right


def _wrong_countdown(rng, problem: Problem) -> str:
  while True:
    numbers, ops = rng.permutation(problem.numbers), rng.choice(_OPS, 2)
    if _left_to_right(numbers, ops) != int(problem.answer):
      return _expression(numbers, ops)


# --- Manners: a general task, see manners.py. --------------------------------


def _sample_manners(rng: np.random.Generator) -> Problem:
  question, answer = manners.sample_question(rng)
  return Problem(question=question, answer=answer, numbers=())


def _solve_manners(
  rng, problem: Problem, corpus: CorpusConfig
) -> tuple[str, str]:
  reasoning = f'{_connective(rng, corpus)}{problem.question}'
  return reasoning, manners.sample_answer(
    rng, problem.question, corpus.general_error_rate
  )


TASKS = {
  'arithmetic': Task(_sample_arithmetic, _solve_arithmetic, _wrong_arithmetic),
  'countdown': Task(_sample_countdown, _solve_countdown, _wrong_countdown),
  'manners': Task(
    _sample_manners, _solve_manners, lambda rng, problem: '', general=True
  ),
}
