"""What graders say of answers: one grader a source, one verdict an answer.

Exact graders run here; mathematics goes to worker processes and programs to a
sandbox, all of a batch's at once. A missing or empty answer is unparsable before any grader sees it.
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
  """Their verdicts, in order, from any thread."""
  return [found.verdict for found in grade(items)]


def grade(items: Sequence[Item], partial: bool = False) -> list[Grade]:
  """With what they are worth; `partial` as in code_grader.grade."""
  found: list[Grade | None] = [None] * len(items)
  batched = {
    'math': lambda pairs: map(_whole, math_grader.grade(pairs)),
    'code': lambda pairs: code_grader.grade(pairs, partial),
  }
  for name, grader in batched.items():
    asked = [i for i, item in enumerate(items) if item[2] == name]
    for i, each in zip(asked, grader([items[i][:2] for i in asked])):
      found[i] = each
  return [each or _whole(_exactly(*item)) for each, item in zip(found, items)]


def _whole(verdict: Verdict) -> Grade:
  return Grade(verdict, verdict.score)


def shutdown():
  """Stops the worker processes and the sandbox; the next call of `grade` starts
  them again."""
  math_grader.shutdown()
  code_grader.shutdown()


@contextlib.contextmanager
def shutdown_on_exit() -> Iterator[None]:
  """Calls `shutdown` when the block ends, however it ends."""
  try:
    yield
  finally:
    shutdown()


def _exactly(answer: str | None, gold: str, source: str) -> Verdict:
  answer = (answer or '').strip()
  if not answer:
    return Verdict.UNPARSABLE
  if len(answer) > MAX_CHARS:
    return Verdict.REFUSED
  return _EXACT[source](answer, gold)


def integer(answer: str, gold: str) -> Verdict:
  """Exact, and nothing but the integer: '07', '+7' and '7.0' are wrong."""
  return Verdict.CORRECT if answer == gold else Verdict.WRONG


_LITERAL = re.compile(r'[0-9+\-*/() .]+')
_OPERATORS = {
  ast.Add: lambda a, b: a + b,
  ast.Sub: lambda a, b: a - b,
  ast.Mult: lambda a, b: a * b,
  ast.Div: lambda a, b: a / b,
}


def countdown(answer: str, gold: str) -> Verdict:
  """An expression over + - * / that uses each number once, evaluated exactly.

  `gold` is JSON: {"numbers": [44, 19, 35], "target": 98}.
  """
  wanted = json.loads(gold)
  if not _LITERAL.fullmatch(answer):
    return Verdict.UNPARSABLE
  try:
    used: list[int] = []
    value = _evaluate(ast.parse(answer, mode='eval').body, used)
  except ZeroDivisionError:
    return Verdict.WRONG
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return Verdict.UNPARSABLE
  right = (
    sorted(used) == sorted(wanted['numbers']) and value == wanted['target']
  )
  return Verdict.CORRECT if right else Verdict.WRONG


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
  """Exact value of a tree of the four operations; notes its integers."""
  if isinstance(node, ast.Constant) and type(node.value) is int:
    used.append(node.value)
    return Fraction(node.value)
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](
      _evaluate(node.left, used), _evaluate(node.right, used)
    )
  raise ValueError('not one of the four operations')


_EXACT: dict[str, Callable[[str, str], Verdict]] = {
  'arithmetic': integer,
  'countdown': countdown,
}
GRADERS = ('math', 'code', *_EXACT)  # What Prompt.source may be.
