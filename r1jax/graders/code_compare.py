"""Is what came back what had to come back? Decided outside the sandbox.

Values are compared by Python's == on built-in values, as the benchmarks' own
asserts do: 1 == 1.0 == True, [1] != (1,), and no type of a program's own ever
gets here. Where a test says `is`, the type counts too.
"""

from collections.abc import Sequence
import decimal
import math

from r1jax.data.code import values as code_values
from r1jax.data.code.asserts import THROUGH
from r1jax.data.code.cases import CallCase

_MAX_NUMBER_CHARS = 100  # A longer token is compared as text only.
# What comparing a value of a wrong kind, size or depth may raise.
_UNLIKE = (
  ArithmeticError,
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)


def holds(case: CallCase, wire) -> bool:
  """Whether a call's encoded value is what the case wants; never raises."""
  try:
    value = code_values.decode(wire)
    for name, *args in case.through:
      if name in ('set', 'dict') and len(value) > code_values.MAX_HASHED:
        return False
      value = THROUGH[name](value, *map(code_values.decode, args))
    expected = code_values.decode(case.expected)
    return bool(_related(case.relation, value, expected, case.tolerance))
  except _UNLIKE:
    return False


def _related(relation: str, value, expected, tolerance: Sequence[float]):
  if relation == 'equal':
    return value == expected
  if relation == 'unequal':
    return value != expected
  if relation == 'same':
    return type(value) is type(expected) and value == expected
  if relation == 'true':
    return value
  if relation == 'false':
    return not value
  if relation == 'in':
    return value in expected
  if relation == 'near':
    return abs(value - expected) < tolerance[0]
  if relation == 'at_most':
    return abs(value - expected) <= tolerance[0]
  if relation == 'close':
    return math.isclose(
      value, expected, rel_tol=tolerance[0], abs_tol=tolerance[1]
    )
  raise KeyError(relation)


def judged(case: CallCase, wire) -> str | None:
  """The judge's expression about a value, or None if it is no value."""
  try:
    value = code_values.source(code_values.decode(wire))
  except _UNLIKE:
    return None
  return f'bool((lambda result: {case.judge})({value}))'


def same_output(found: str, expected: str) -> bool:
  """Line by line, but for white space at their ends and empty last lines.

  Tokens that are numbers count as numbers: '1.50' is '1.5', as in
  LiveCodeBench.
  """
  found_lines = [line.split() for line in found.strip().splitlines()]
  lines = [line.split() for line in expected.strip().splitlines()]
  return len(found_lines) == len(lines) and all(
    len(one) == len(other) and all(map(_same_token, one, other))
    for one, other in zip(found_lines, lines)
  )


def _same_token(found: str, expected: str) -> bool:
  if found == expected:
    return True
  if max(len(found), len(expected)) > _MAX_NUMBER_CHARS:
    return False
  try:
    return decimal.Decimal(found) == decimal.Decimal(expected)
  except decimal.InvalidOperation:
    return False
