"""Arithmetic of exact rational numbers and of numbers of mpmath, within bounds.

Each operation checks what it would cost before it begins, and takes steps from
a budget that the two answers at hand share.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
import math
from typing import Any

import mpmath

from r1jax.graders.mathematics.nodes import TooLarge

MAX_BITS = 34_000
MAX_STEPS = 6_000
_BITS_PER_STEP = 500  # Adding larger numbers costs more steps.
_POWER_STEPS, _GAMMA_STEPS = 4, 20
MAX_LOG2 = 333_000
_MAX_FACTORIAL = 3_000
MAX_ARGUMENT = 10**30

ZERO, ONE = Fraction(0), Fraction(1)
Value = Any  # A Fraction, or a real or complex number of mpmath.


class _Budget:
  """The steps that are left for the pair of answers at hand."""

  steps: float = MAX_STEPS


def begin_pair():
  """Fills the budget of steps for another pair of answers."""
  _Budget.steps = MAX_STEPS


def spend(steps: float):
  """Takes steps from the budget of the pair.

  Raises:
    TooLarge: none are left.
  """
  _Budget.steps -= steps
  if _Budget.steps < 0:
    raise TooLarge('too many steps')


def is_integer(value: Value) -> bool:
  """Whether a value is an exact integer."""
  return isinstance(value, Fraction) and value.denominator == 1


def as_number(value: Value) -> Value:
  """Converts a value to a number of mpmath."""
  if isinstance(value, Fraction):
    return mpmath.mpf(value.numerator) / value.denominator
  return value


def quotient(over: Value, under: Value) -> Value:
  """Divides two values."""
  return _div(over, under)


def difference(a: Value, b: Value) -> Value:
  """Subtracts two values."""
  return add(a, -b)


def _check(bits: float):
  spend(bits // _BITS_PER_STEP)
  if bits > MAX_BITS:
    raise TooLarge('too many digits')


def _bits(value: Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())


def add(*parts: Value) -> Value:
  total = parts[0]
  for part in parts[1:]:
    if isinstance(total, Fraction) and isinstance(part, Fraction):
      _check(_bits(total) + _bits(part))
      total += part
    else:
      total = as_number(total) + as_number(part)
  return total


def mul(*parts: Value) -> Value:
  total = parts[0]
  for part in parts[1:]:
    if isinstance(total, Fraction) and isinstance(part, Fraction):
      _check(_bits(total) + _bits(part))
      total *= part
    else:
      total = as_number(total) * as_number(part)
  return total


def _div(over: Value, under: Value) -> Value:
  if isinstance(over, Fraction) and isinstance(under, Fraction):
    _check(_bits(over) + _bits(under))
    return over / under
  if under == 0:
    raise ZeroDivisionError('a division by zero')
  return as_number(over) / as_number(under)


def _power(base: Value, exponent: Value) -> Value:
  if isinstance(base, Fraction) and is_integer(exponent):
    if base in (0, 1, -1):
      if base == 0 and exponent < 0:
        raise ZeroDivisionError('a power of zero')
      return base ** (int(exponent) if base == 0 else int(exponent) % 2)
    _check(_bits(base) * abs(exponent))
    return base ** int(exponent)
  if isinstance(base, Fraction) and base < 0 and isinstance(exponent, Fraction):
    if exponent.denominator % 2:  # The real root, as in \sqrt[3]{-8}.
      sign = -1 if exponent.numerator % 2 else 1
      return sign * _power(-base, exponent)
  base_number, exponent_number = as_number(base), as_number(exponent)
  if base_number == 0:
    if mpmath.re(exponent_number) <= 0:
      raise ZeroDivisionError('a power of zero')
    return mpmath.mpf(0)
  if mpmath.isinf(base_number) or mpmath.isinf(exponent_number):
    raise ValueError('a power of infinity')
  spend(_POWER_STEPS)
  _bounded(exponent_number, mpmath.log(base_number, 2))
  real = isinstance(base_number, mpmath.mpf) and base_number < 0
  if real and isinstance(exponent, Fraction) and exponent.denominator % 2:
    root = mpmath.power(-base_number, exponent_number)
    return -root if exponent.numerator % 2 else root
  return mpmath.power(base_number, exponent_number)


def _bounded(a: Value, b: Value):
  """Raises TooLarge if 2 to the power of a · b is too large or too small."""
  if not abs(a) * abs(b) <= MAX_LOG2:
    raise TooLarge('a huge power')


def _exp(value: Value) -> Value:
  return _power(+mpmath.e, value)


def _root(value: Value, index: Value) -> Value:
  return _power(value, _div(Fraction(1), index))


def _ln(value: Value) -> Value:
  if value == 0:
    raise ValueError('the logarithm of zero')
  return mpmath.log(as_number(value))


def _log(value: Value, base: Value) -> Value:
  return _div(_ln(value), _ln(base))


def _factorial(value: Value) -> Value:
  if is_integer(value) and value >= 0:
    if value > _MAX_FACTORIAL:
      raise TooLarge('a huge factorial')
    return Fraction(math.factorial(int(value)))
  number = as_number(value)
  if abs(number) > 10_000:
    raise TooLarge('a huge factorial')
  spend(_GAMMA_STEPS)
  return mpmath.gamma(number + 1)


def _binom(n: Value, k: Value) -> Value:
  if is_integer(n) and is_integer(k) and n >= 0:
    if not 0 <= k <= n:
      return Fraction(0)
    _check(min(k, n - k) * n.numerator.bit_length())
    return Fraction(math.comb(int(n), int(k)))
  n, k = as_number(n), as_number(k)
  if max(abs(n), abs(k)) > 10_000:
    raise TooLarge('a huge binomial')
  spend(3 * _GAMMA_STEPS)
  return mpmath.binomial(n, k)


def _abs(value: Value) -> Value:
  return abs(value)


def _rounding(function: Callable) -> Callable:
  def apply(value: Value) -> Value:
    if isinstance(value, Fraction):
      return Fraction(function(value))
    if not isinstance(value, mpmath.mpf) or abs(value) > MAX_ARGUMENT:
      raise ValueError('no real number')
    return Fraction(int(mpmath.floor(value))) + (
      1 if function is math.ceil and value != mpmath.floor(value) else 0
    )

  return apply


def _of_integers(function: Callable) -> Callable:
  def apply(*values: Value) -> Value:
    if not all(map(is_integer, values)):
      raise TypeError('no integers')
    return Fraction(function(*map(int, values)))

  return apply


FUNCTIONS: Mapping[str, Callable[..., Value]] = {
  'add': add,
  'mul': mul,
  'div': _div,
  'pow': _power,
  'neg': lambda value: -value,
  'percent': lambda value: _div(value, Fraction(100)),
  'degree': lambda value: value,
  'sqrt': lambda value: _power(value, Fraction(1, 2)),
  'root': _root,
  'ln': _ln,
  'lg': _log,
  'log': _log,
  'exp': _exp,
  'abs': _abs,
  'factorial': _factorial,
  'binom': _binom,
  'floor': _rounding(math.floor),
  'ceil': _rounding(math.ceil),
  'min': lambda *values: min(values, key=as_number),
  'max': lambda *values: max(values, key=as_number),
  'gcd': _of_integers(math.gcd),
  'lcm': _of_integers(math.lcm),
}
TRIGONOMETRY: Mapping[str, Callable[[Value], Value]] = {
  'sin': mpmath.sin,
  'cos': mpmath.cos,
  'tan': mpmath.tan,
  'cot': mpmath.cot,
  'sec': mpmath.sec,
  'csc': mpmath.csc,
  'arcsin': mpmath.asin,
  'arccos': mpmath.acos,
  'arctan': mpmath.atan,
  'arccot': mpmath.acot,
  'arcsec': mpmath.asec,
  'arccsc': mpmath.acsc,
  'sinh': mpmath.sinh,
  'cosh': mpmath.cosh,
  'tanh': mpmath.tanh,
  'coth': mpmath.coth,
  'sech': mpmath.sech,
  'csch': mpmath.csch,
  'arsinh': mpmath.asinh,
  'arcosh': mpmath.acosh,
  'artanh': mpmath.atanh,
}
HYPERBOLIC = frozenset(('sinh', 'cosh', 'tanh', 'coth', 'sech', 'csch'))
