"""Dispatches answers to the grader of their source, by its registered name.

Exact graders run in this process. Mathematics goes to worker processes and
programs go to a sandbox, all answers of a batch at once; graders of plugins run
in worker processes. A missing or empty answer is unparsable before any grader
sees it.
"""

import ast
from collections.abc import Iterator, Sequence
import contextlib
from fractions import Fraction
import json
import re

from r1jax import registry
from r1jax.data.text.response_formats import Parsed
from r1jax.data.text.tokenizer import UNKNOWN
from r1jax.graders import (
  answer_text,
  code_grader,
  grid_grader,  # noqa: F401 (registers its grader)
  ifeval_grader,
  math_grader,
  plugin_grader,
  text_graders,  # noqa: F401 (registers its graders)
)
from r1jax.graders.verdict import Grade, Verdict
from r1jax.workers import plugin_pool

MAX_CHARS = answer_text.MAX_CHARS
Item = tuple[str | None, str, str]  # Answer, gold answer, source.
Pair = tuple[str | None, str]  # Answer, gold answer.


def verdicts(items: Sequence[Item]) -> list[Verdict]:
  """Grades answers and returns their verdicts in order; see `grade`."""
  return [graded.verdict for graded in grade(items)]


def grade(items: Sequence[Item], partial: bool = False) -> list[Grade]:
  """Grades answers and returns their grades in order; callable from any thread.

  Args:
    items: Answers, each with its gold answer and its source, the name of a
      registered grader.
    partial: Whether a program that fails some tests scores the share that it
      passes; see code_grader.grade.

  Raises:
    UserError: no grader has the name of a source.
  """
  grades: dict[int, Grade] = {}
  for source in dict.fromkeys(item[2] for item in items):
    indices = [i for i, item in enumerate(items) if item[2] == source]
    pairs = [(_as_text(items[i][0], source), items[i][1]) for i in indices]
    grades |= zip(indices, _grade_pairs(source, pairs, partial))
  return [grades[i] for i in range(len(items))]


def final_answer(answer: str | None, source: str) -> str:
  """Returns the part of an answer that its grader compares; '' for none.

  For mathematics that is the final answer that final_answer.py finds, for others
  all of it.
  """
  text = (answer or '').strip()
  extract = registry.grader.origin(source).options.get('final_answer')
  return extract(text) if extract and text else text


def graded_text(parsed: Parsed, source: str) -> str | None:
  """Returns the part of a completion that goes to its grader; None for none.

  That is its answer, but the whole response behind the reasoning for graders
  that look for something else in it, such as a program, in formats that find a
  short answer in the response.
  """
  origin = registry.grader.origin(source)
  if origin.options.get('whole_response'):
    return parsed.response
  return parsed.answer


def compares_answers(source: str, gold: str) -> bool:
  """Returns whether a grader can compare two answers with each other.

  It can where gold answers are answers; those of 'code' are tests. The grader
  of a plugin is asked whether the gold answer of a problem is right.
  """
  origin = registry.grader.origin(source)
  if origin.plugin:
    return verdicts([(gold, gold, source)]) == [Verdict.CORRECT]
  return origin.options.get('gold_is_answer', True)


def is_too_expensive(answer: str, source: str) -> bool:
  """Returns whether an answer must not stand where a gold answer would."""
  guard = registry.grader.origin(source).options.get('guard')
  return len(answer) > MAX_CHARS or bool(guard and guard(answer))


def _as_text(answer: str | None, source: str) -> str | None:
  """Returns an answer, or '' if it holds something that is no text.

  A grader might skip an id that is no token: '4', no token, '2' is not 4. A
  program is run, whatever stands in its comments.
  """
  if answer and UNKNOWN in answer and source != 'code':
    return '' if UNKNOWN in final_answer(answer, source) else answer
  return answer


def _grade_pairs(
  source: str, pairs: Sequence[Pair], partial: bool
) -> list[Grade]:
  """Grades the answers of one source."""
  grader = registry.grader.get(source)
  origin = registry.grader.origin(source)
  if origin.plugin:
    return plugin_grader.grade(source, pairs)
  if origin.options.get('batch'):
    return grader(pairs, partial)
  return [_full_grade(_grade_exactly(grader, *pair)) for pair in pairs]


@registry.grader(
  'math',
  batch=True,
  final_answer=math_grader.extract_answer,
  guard=math_grader.is_too_expensive,
)
def _mathematics(pairs: Sequence[Pair], partial: bool) -> list[Grade]:
  del partial
  return list(map(_full_grade, math_grader.grade(pairs)))


@registry.grader('code', batch=True, gold_is_answer=False, whole_response=True)
def _program(pairs: Sequence[Pair], partial: bool) -> list[Grade]:
  return code_grader.grade(pairs, partial)


def _full_grade(verdict: Verdict) -> Grade:
  return Grade(verdict, verdict.score)


def shutdown():
  """Stops the worker processes and the sandbox; `grade` starts them again."""
  math_grader.shutdown()
  code_grader.shutdown()
  ifeval_grader.shutdown()
  plugin_pool.shutdown()


@contextlib.contextmanager
def shutdown_on_exit() -> Iterator[None]:
  """Calls `shutdown` when the `with` block ends, also after an error."""
  try:
    yield
  finally:
    shutdown()


def _grade_exactly(grader, answer: str | None, gold: str) -> Verdict:
  answer = (answer or '').strip()
  if not answer:
    return Verdict.UNPARSABLE
  if len(answer) > MAX_CHARS:
    return Verdict.REFUSED
  return grader(answer, gold)


@registry.grader('arithmetic')
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


@registry.grader('countdown', gold_is_answer=False)
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
