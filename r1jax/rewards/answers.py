"""Is the answer right? One exact or equivalence-aware grader a source.

A grader takes the text of the answer and the gold answer and returns True or
False. A missing or empty answer is wrong before any grader sees it.
"""

import ast
from collections.abc import Callable
from fractions import Fraction
import json
import re
import threading

import math_verify

from r1jax.rewards import magnitude

MAX_CHARS = 300  # An answer longer than this is not an answer.


def is_right(answer: str | None, gold: str, source: str) -> bool:
  """Grades one answer by its source's grader."""
  if not answer or not answer.strip() or len(answer) > MAX_CHARS:
    return False
  return GRADERS[source](answer.strip(), gold)


def integer(answer: str, gold: str) -> bool:
  """Exact, and nothing but the integer: '07', '+7' and '7.0' are wrong."""
  return answer == gold


_LITERAL = re.compile(r'[0-9+\-*/() .]+')
_OPERATORS = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b, ast.Div: lambda a, b: a / b}


def countdown(answer: str, gold: str) -> bool:
  """An expression over + - * / that uses each number once, evaluated exactly.

  `gold` is JSON: {"numbers": [44, 19, 35], "target": 98}.
  """
  wanted = json.loads(gold)
  if not _LITERAL.fullmatch(answer):
    return False
  try:
    used: list[int] = []
    value = _evaluate(ast.parse(answer, mode='eval').body, used)
  except (SyntaxError, ValueError, ZeroDivisionError, RecursionError,
          MemoryError):
    return False
  return sorted(used) == sorted(wanted['numbers']) and value == wanted['target']


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
  """Exact value of a tree of the four operations; notes its integers."""
  if isinstance(node, ast.Constant) and type(node.value) is int:
    used.append(node.value)
    return Fraction(node.value)
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](
        _evaluate(node.left, used), _evaluate(node.right, used))
  raise ValueError('not one of the four operations')


# Products of such numbers take a fraction of a millisecond; those of the MATH
# data are shorter, the longest gold of which is 1/2004!, of 5,736 digits.
MAX_DIGITS = 10_000
# What would keep a symbolic engine busy in other ways.
_BOMB = re.compile(r'binom|choose|\d{40,}')


def is_bomb(answer: str) -> bool:
  """Whether a symbolic engine might choke on it: better never asked."""
  return bool(_BOMB.search(answer) or _depth(answer) > 20
              or magnitude.digits(answer) > MAX_DIGITS)


def math(answer: str, gold: str) -> bool:
  """Mathematical equivalence, by math-verify (latex or plain expressions).

  Raises:
    RuntimeError: called off the main thread, where math-verify's time-outs,
      which are signals, cannot work: better no grade than a wrong one.
  """
  if answer == gold:
    return True
  if is_bomb(answer):
    return False
  if threading.current_thread() is not threading.main_thread():
    raise RuntimeError('math-verify needs the main thread for its time-outs')
  parsed = math_verify.parse(f'${answer}$', parsing_timeout=2)
  wanted = math_verify.parse(f'${gold}$', parsing_timeout=2)
  return bool(parsed) and math_verify.verify(
      wanted, parsed, timeout_seconds=2)


def _depth(text: str) -> int:
  depth = deepest = 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    deepest = max(deepest, depth)
  return deepest


GRADERS: dict[str, Callable[[str, str], bool]] = {
    'arithmetic': integer, 'countdown': countdown, 'math': math}
