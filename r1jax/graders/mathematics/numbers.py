"""Decides whether two expressions have the same value.

Without symbols, rational values are compared exactly and others to 30 digits.
With symbols, both sides are evaluated at random points to 18 digits: two
different expressions agree there with negligible probability. A decimal stands
for what rounds to it, if it has at least six digits: 0.333333 for 1/3.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import mpmath

from r1jax.graders.mathematics import arithmetic, evaluation
from r1jax.graders.mathematics.arithmetic import Value
from r1jax.graders.mathematics.evaluation import Evaluator, Undefined
from r1jax.graders.mathematics.nodes import (
  Node,
  Number,
  Operation,
  Symbol,
  children,
)

_DIGITS, _POINT_DIGITS = 50, 30
_EXACT, _AT_POINTS, _DECIMAL = 1e-30, 1e-18, 1e-6
_SHOWN_DIGITS = 15  # A computer shows a fraction with so many.
# Points with positive numbers alone, where roots and logarithms are real, and
# points with both signs, which tell |x| from x. Analytic expressions need two of
# the first kind: what agrees there agrees everywhere.
_POSITIVE, _SIGNED = (1, 2, 3), (4, 5, 6, 7)
_ENOUGH = 2
_NOT_ANALYTIC = frozenset(
  'sqrt root ln lg log abs floor ceil min max gcd lcm arcsin arccos arctan arccot '
  'arcsec arccsc arsinh arcosh artanh pm mp'.split()
)


def same_value(a: Node, b: Node) -> bool:
  """Returns whether two expressions are equal.

  Raises:
    TooLarge: evaluating them would cost too much.
  """
  if not a.variables | b.variables:
    return _same_constant(a, b)
  tolerance = _DECIMAL if is_decimal(a) or is_decimal(b) else _AT_POINTS
  analytic = _is_analytic(a) and _is_analytic(b)
  matches = 0
  for x, y, signed in _at_points(a, b):
    if signed and not (_is_real(x) and _is_real(y)):
      continue  # Branches of roots and logarithms may differ there.
    if not _close(x, y, tolerance):
      return False
    matches += 1
    if matches == _ENOUGH and analytic:
      break
  return matches >= _ENOUGH


def proportion(a: Node, b: Node) -> Value | None:
  """Returns the constant ratio of two expressions that are not 0, or None.

  2x + 4 and x + 2 → 2. It decides whether equations have the same solutions.

  Raises:
    TooLarge: evaluating them would cost too much.
  """
  tolerance = _DECIMAL if is_decimal(a) or is_decimal(b) else _AT_POINTS
  analytic = _is_analytic(a) and _is_analytic(b)
  ratio, matches = None, 0
  for x, y, signed in _at_points(a, b):
    if signed and not (_is_real(x) and _is_real(y)):
      continue
    if not all(1e-15 < abs(value) < mpmath.inf for value in (x, y)):
      return None
    quotient = arithmetic.quotient(x, y)
    if ratio is not None and not _close(ratio, quotient, tolerance):
      return None
    ratio, matches = quotient, matches + 1
    if matches == _ENOUGH and analytic:
      break
  return ratio if matches >= _ENOUGH else None


def _is_analytic(node: Node) -> bool:
  """Whether an expression has no roots, absolute values and the like."""
  found = node.memo.get('is_analytic')
  if found is None:
    match node:
      case Operation('pow', (base, exponent)) if not (
        base == Symbol('e') or _is_integer(exponent)
      ):
        found = False
      case Operation(name) if name in _NOT_ANALYTIC:
        found = False
      case _:
        found = all(map(_is_analytic, children(node)))
    node.memo['is_analytic'] = found
  return found


def _is_integer(node: Node) -> bool:
  if isinstance(node, Operation) and node.name == 'neg':
    return _is_integer(node.args[0])
  return isinstance(node, Number) and node.value.denominator == 1


def constant(node: Node) -> Value | None:
  """Returns the value of an expression without variables; None without one.

  Raises:
    TooLarge: evaluating it would cost too much.
  """
  evaluator = Evaluator(_no_variable)
  value = None if node.variables else _evaluated(evaluator, node)
  return value if evaluator.is_known else None


def _evaluated(evaluator: Evaluator, node: Node) -> Value | None:
  with mpmath.workdps(_DIGITS):
    try:
      return evaluator.value(node)
    except Undefined:
      return None


def rationals(nodes: Sequence[Node]) -> list[Fraction] | None:
  """Returns the values of expressions; None unless all are rational numbers.

  Raises:
    TooLarge: evaluating one would cost too much.
  """
  values = [constant(node) for node in nodes]
  exact = [value for value in values if isinstance(value, Fraction)]
  return exact if len(exact) == len(values) else None


def close(a: Value, b: Value) -> bool:
  """Whether two exact values are equal: to 30 digits if not rational."""
  arithmetic.spend(2)
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return a == b
  arithmetic.spend(2)
  with mpmath.workdps(_DIGITS):
    return _close(a, b, _EXACT)


def agree(a: Node, b: Node, is_rounded: bool = False) -> bool:
  """Whether two sides of an equation agree; True if a value is not known.

  A decimal may be rounded: 2/3 = 0.67 is no contradiction.

  Args:
    a: The left side.
    b: The right side.
    is_rounded: Whether the sign is ≈, which allows integers to be rounded and
      an error of 1 %.
  """
  x, y = constant(a), constant(b)
  if x is None or y is None:
    return True
  if _same_constant(a, b):
    return True
  if not (_is_real(x) and _is_real(y)):
    return False
  unit = max(_last_place(a, is_rounded), _last_place(b, is_rounded))
  error = abs(arithmetic.as_number(arithmetic.difference(x, y)))
  return bool(
    error <= 0.51 * unit
    or (is_rounded and error <= abs(arithmetic.as_number(x)) / 100)
  )


def _last_place(node: Node, is_rounded: bool) -> float:
  """Returns the unit of the last digit of a decimal; 0 for other nodes."""
  if isinstance(node, Operation) and node.name == 'neg':
    return _last_place(node.args[0], is_rounded)
  if not isinstance(node, Number) or not (node.digits or is_rounded):
    return 0.0
  places = next((n for n in range(60) if not node.value * 10**n % 1), 60)
  return 10.0**-places


def fingerprint(node: Node) -> str | None:
  """Returns a text that differs for different values; None without a value.

  Raises:
    TooLarge: evaluating it would cost too much.
  """
  with mpmath.workdps(_POINT_DIGITS):
    evaluator = Evaluator(evaluation.random_values(_POSITIVE[0], False))
    try:
      value = arithmetic.as_number(evaluator.value(node))
    except Undefined:
      return None
    return mpmath.nstr(value, 8) if evaluator.is_known else None


def is_decimal(node: Node) -> bool:
  """Whether an expression contains a decimal."""
  if isinstance(node, Number):
    return bool(node.digits)
  return any(map(is_decimal, children(node)))


def _no_variable(name: str) -> Value:
  raise Undefined(f'{name} has no value')


def _is_real(value: Value) -> bool:
  return not isinstance(value, mpmath.mpc) or (
    abs(value.imag) <= 1e-18 * abs(value.real)
  )


def _at_points(a: Node, b: Node) -> Iterator[tuple[Value, Value, bool]]:
  """Evaluates two expressions at the points where both have a value."""
  with mpmath.workdps(_POINT_DIGITS):
    for seed in (*_POSITIVE, *_SIGNED):
      signed = seed in _SIGNED
      values = evaluation.random_values(seed, signed)
      try:
        yield Evaluator(values).value(a), Evaluator(values).value(b), signed
      except Undefined:
        continue


def _same_constant(a: Node, b: Node) -> bool:
  x, y = (_evaluated(Evaluator(_no_variable), node) for node in (a, b))
  if x is None or y is None:
    return False
  if isinstance(x, Fraction) and isinstance(y, Fraction) and x == y:
    return True
  decimals = is_decimal(a) or is_decimal(b)
  if decimals and _is_real(x) and _is_real(y):
    return _same_decimal(a, x, b, y)
  with mpmath.workdps(_DIGITS):
    if isinstance(x, Fraction) and isinstance(y, Fraction):
      return False
    if _close(x, y, _EXACT):
      return True
    if min(map(_size, (x, y))) > 1e-30:
      return False
  # One may be zero, up to rounding: that vanishes with more digits.
  with mpmath.workdps(4 * _DIGITS):
    difference = _difference(a, b)
    return abs(difference) < 1e-150


def _size(value: Value) -> Value:
  return abs(arithmetic.as_number(value))


def _difference(a: Node, b: Node) -> Value:
  x = Evaluator(_no_variable).value(a)
  y = Evaluator(_no_variable).value(b)
  return arithmetic.difference(x, y)


def _same_decimal(a: Node, x: Value, b: Node, y: Value) -> bool:
  """Compares two values of which one at least was written as a decimal."""
  if _terminates(a, x) and _terminates(b, y):
    # Neither needs rounding, but 0.30000000000000004 is a computer's 0.3.
    digits = max(_digits(a), _digits(b))
    return digits >= 15 and _close(x, y, 1e-14)
  return _close(x, y, _DECIMAL) or any(
    _rounds_to(value, node, decimal)
    for value, node, decimal in ((x, b, y), (y, a, x))
  )


def _rounds_to(value: Value, node: Node, decimal: Value) -> bool:
  """Whether a value rounds to a decimal with at least six places."""
  if not isinstance(decimal, Fraction) or not isinstance(node, Number):
    return False
  places = len(str(node.value.denominator)) if node.digits else 0
  return (
    node.digits >= 6
    and places >= 6
    and _close(value, decimal, 1e-5)
    and (abs(arithmetic.difference(value, decimal)) <= 0.5000001e-6)
  )


def _terminates(node: Node, value: Value) -> bool:
  """Returns whether a value is a decimal that nobody would round.

  1.005^{120} is one as well, of 360 places: more than were written, and more
  than a computer shows.
  """
  if not isinstance(value, Fraction):
    return False
  denominator = value.denominator
  if denominator > 10 ** max(_SHOWN_DIGITS, _digits(node)):
    return False
  for prime in (2, 5):
    while denominator % prime == 0:
      denominator //= prime
  return denominator == 1


def _digits(node: Node) -> int:
  if isinstance(node, Number):
    return node.digits
  return max(map(_digits, children(node)), default=0)


def _close(x: Value, y: Value, tolerance: float) -> bool:
  if isinstance(x, Fraction) and isinstance(y, Fraction):
    return x == y or (
      tolerance > _AT_POINTS and abs(x - y) <= tolerance * max(abs(x), abs(y))
    )
  x, y = arithmetic.as_number(x), arithmetic.as_number(y)
  if mpmath.isinf(x) or mpmath.isinf(y):
    return bool(x == y)
  largest = max(abs(x), abs(y))
  # Numbers at points are near 1: what is far below is rounding.
  noise = 1e-22 if tolerance == _AT_POINTS else 0
  return bool(abs(x - y) <= max(tolerance * largest, noise))
