"""Dispatches answers to the grader of their source.

Exact graders run in this process. Mathematics goes to worker processes and
programs go to a sandbox, all answers of a batch at once. A missing or empty
answer is unparsable before any grader sees it.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
import contextlib
from fractions import Fraction
import json
import re

from r1jax.graders import code_grader, math_grader
from r1jax.graders.verdict import Grade, Verdict

MAX_CHARS = math_grader.MAX_CHARS
Item = tuple[str | None, str, str]  # Answer, gold answer, source.


def verdicts(items: Sequence[Item]) -> list[Verdict]:
  """Grades answers and returns their verdicts in order; see `grade`."""
  return [graded.verdict for graded in grade(items)]


def grade(items: Sequence[Item], partial: bool = False) -> list[Grade]:
  """Grades answers and returns their grades in order; callable from any thread.

  Args:
    items: Answers, each with its gold answer and its source, one of GRADERS.
    partial: Whether a program that fails some tests scores the share that it
      passes; see code_grader.grade.
  """
  grades: list[Grade | None] = [None] * len(items)
  batch_graders = {
    'math': lambda pairs: map(_full_grade, math_grader.grade(pairs)),
    'code': lambda pairs: code_grader.grade(pairs, partial),
  }
  for source, grader in batch_graders.items():
    indices = [i for i, item in enumerate(items) if item[2] == source]
    for i, graded in zip(indices, grader([items[i][:2] for i in indices])):
      grades[i] = graded
  return [
    graded or _full_grade(_grade_exactly(*item))
    for graded, item in zip(grades, items)
  ]


def _full_grade(verdict: Verdict) -> Grade:
  return Grade(verdict, verdict.score)


def shutdown():
  """Stops the worker processes and the sandbox; `grade` starts them again."""
  math_grader.shutdown()
  code_grader.shutdown()


@contextlib.contextmanager
def shutdown_on_exit() -> Iterator[None]:
  """Calls `shutdown` when the `with` block ends, also after an error."""
  try:
    yield
  finally:
    shutdown()


def _grade_exactly(answer: str | None, gold: str, source: str) -> Verdict:
  answer = (answer or '').strip()
  if not answer:
    return Verdict.UNPARSABLE
  if len(answer) > MAX_CHARS:
    return Verdict.REFUSED
  return _EXACT[source](answer, gold)


def integer(answer: str, gold: str) -> Verdict:
  """Compares integers as text: with gold '7', '07', '+7' and '7.0' are wrong."""
  return Verdict.CORRECT if answer == gold else Verdict.WRONG


_LITERAL = re.compile(r'[0-9+\-*/() .]+')
_OPERATORS = {
  ast.Add: lambda a, b: a + b,
  ast.Sub: lambda a, b: a - b,
  ast.Mult: lambda a, b: a * b,
  ast.Div: lambda a, b: a / b,
}


def countdown(answer: str, gold: str) -> Verdict:
  """Grades an expression over + - * / that must use each number exactly once.

  Args:
    answer: The expression, which is evaluated in exact fractions.
    gold: The numbers and their target as JSON:
      {"numbers": [44, 19, 35], "target": 98}.
  """
  problem = json.loads(gold)
  if not _LITERAL.fullmatch(answer):
    return Verdict.UNPARSABLE
  try:
    numbers: list[int] = []
    value = _evaluate(ast.parse(answer, mode='eval').body, numbers)
  except ZeroDivisionError:
    return Verdict.WRONG
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return Verdict.UNPARSABLE
  correct = (
    sorted(numbers) == sorted(problem['numbers']) and value == problem['target']
  )
  return Verdict.CORRECT if correct else Verdict.WRONG


def _evaluate(node: ast.expr, numbers: list[int]) -> Fraction:
  """Evaluates a syntax tree exactly and appends its integers to `numbers`."""
  if isinstance(node, ast.Constant) and type(node.value) is int:
    numbers.append(node.value)
    return Fraction(node.value)
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](
      _evaluate(node.left, numbers), _evaluate(node.right, numbers)
    )
  raise ValueError('not one of the four operations')


_EXACT: dict[str, Callable[[str, str], Verdict]] = {
  'arithmetic': integer,
  'countdown': countdown,
}
GRADERS = ('math', 'code', *_EXACT)  # The possible values of Prompt.source.
