"""Compares the values and outputs of programs, outside the sandbox.

Values are compared by Python's == on built-in values, as in the asserts of the
benchmarks: 1 == 1.0 == True, [1] != (1,). No type that a program defines ever
arrives here. Where a test says `is`, the types must be equal too.
"""

from collections.abc import Sequence
import decimal
import math

from r1jax.data.code import values as code_values
from r1jax.data.code.asserts import TRANSFORMS
from r1jax.data.code.cases import CallCase

_MAX_NUMBER_CHARS = 100  # A longer token is compared as text only.
# Errors when a value of a wrong type, size or depth is compared.
_MISMATCH_ERRORS = (
  ArithmeticError,
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)


def case_passes(case: CallCase, encoded) -> bool:
  """Whether the encoded value of a call satisfies the case; never raises."""
  try:
    value = code_values.decode(encoded)
    for name, *args in case.transforms:
      if name in ('set', 'dict') and len(value) > code_values.MAX_HASHED:
        return False
      value = TRANSFORMS[name](value, *map(code_values.decode, args))
    expected = code_values.decode(case.expected)
    return bool(_related(case.relation, value, expected, case.tolerance))
  except _MISMATCH_ERRORS:
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


def checker_expression(case: CallCase, encoded) -> str | None:
  """Returns the expression that applies the case's checker to a value.

  Returns:
    Python source that evaluates to a bool; None if `encoded` is malformed.
  """
  try:
    value = code_values.to_source(code_values.decode(encoded))
  except _MISMATCH_ERRORS:
    return None
  return f'bool((lambda result: {case.checker})({value}))'


def outputs_match(output: str, expected: str) -> bool:
  """Compares two outputs line by line and token by token.

  White space between tokens and empty lines at the start and end do not matter.
  Tokens that are numbers are compared as numbers: '1.50' equals '1.5', as in
  LiveCodeBench.
  """
  output_lines = [line.split() for line in output.strip().splitlines()]
  lines = [line.split() for line in expected.strip().splitlines()]
  return len(output_lines) == len(lines) and all(
    len(one) == len(other) and all(map(_tokens_match, one, other))
    for one, other in zip(output_lines, lines)
  )


def _tokens_match(token: str, expected: str) -> bool:
  if token == expected:
    return True
  if max(len(token), len(expected)) > _MAX_NUMBER_CHARS:
    return False
  try:
    return decimal.Decimal(token) == decimal.Decimal(expected)
  except decimal.InvalidOperation:
    return False
