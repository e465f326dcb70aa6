"""Arithmetic of exact rational numbers and of numbers of mpmath, within bounds.

Each operation checks what it would cost before it begins, and takes steps from
a budget that the two answers at hand share. A step is the work of about one
microsecond, whatever the operation, so that the number of steps bounds the time
of a pair without a clock. The budget grows with the gold answer alone: equal
answers of MATH, GSM8K and OlympiadBench take two thirds of it at most.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
import math
from typing import Any

import mpmath
from mpmath import libmp

from r1jax.graders.mathematics.nodes import TooLarge

ZERO, ONE = Fraction(0), Fraction(1)
_HALF = Fraction(1, 2)
Value = Any  # An int, a Fraction, or a real or complex number of mpmath.
MAX_BITS = 34_000
MIN_STEPS, STEPS_PER_NODE, MAX_STEPS = 1_000, 80, 20_000
_MAX_LOG2 = 333_000
_MAX_FACTORIAL = 3_000
_MAX_ARGUMENT = 10**30
# Steps of functions of real numbers to 50 digits; complex ones take _COMPLEX
# times as long, and _PRECISE times if it is to 200 digits.
_POWER_STEPS, _ROOT_STEPS, _INTEGER_POWER_STEPS = 20, 5, 2
_LOG_STEPS, _GAMMA_STEPS, _BINOMIAL_STEPS, _TRIGONOMETRY_STEPS = 10, 30, 160, 12
_COMPLEX, _PRECISE, _PRECISE_BITS = 4, 4, 400
# Steps for each product of a number of bits with another one: reducing a
# fraction, multiplying integers, a factorial, each factor of a binomial.
_GCD, _MULTIPLY, _FACTORIAL, _COMBINATIONS = 1e-5, 1e-7, 6e-7, 1.5e-5
_SMALL_BITS = 300


class _Budget:
  """The steps that are left for the pair of answers at hand."""

  steps: float = MIN_STEPS


def begin_pair(gold_size: int):
  """Fills the budget of steps for another pair of answers.

  Args:
    gold_size: How many nodes the gold answer has.
  """
  _Budget.steps = min(MIN_STEPS + STEPS_PER_NODE * gold_size, MAX_STEPS)


def spend(steps: float):
  """Takes steps from the budget of the pair.

  Raises:
    TooLarge: none are left.
  """
  _Budget.steps -= steps
  if _Budget.steps < 0:
    raise TooLarge('too many steps')


def _spend_on(steps: float, value: Value, other: Value = ZERO):
  """Takes the steps of a function of numbers of mpmath at today's precision."""
  if isinstance(value, mpmath.mpc) or isinstance(other, mpmath.mpc):
    steps *= _COMPLEX
  spend(steps * _PRECISE if mpmath.mp.prec > _PRECISE_BITS else steps)


def is_rational(value: Value) -> bool:
  """Whether a value is exact."""
  # isinstance is slow for classes of numbers.
  kind = type(value)
  return kind is int or kind is Fraction


def is_integer(value: Value) -> bool:
  """Whether a value is an exact integer."""
  return is_rational(value) and value.denominator == 1


def as_number(value: Value) -> Value:
  """Converts a value to a number of mpmath."""
  if is_rational(value):
    return mpmath.mp.make_mpf(
      libmp.from_rational(
        value.numerator, value.denominator, mpmath.mp.prec, libmp.round_nearest
      )
    )
  return value


def less(a: Value, b: Value) -> bool:
  """Returns whether a real value is less than another one."""
  if is_rational(a) and is_rational(b):
    if max(_bits(a), _bits(b)) <= _SMALL_BITS:
      return a < b
  return bool(as_number(a) < as_number(b))


def quotient(over: Value, under: Value) -> Value:
  """Divides two values."""
  return _div(over, under)


def difference(a: Value, b: Value) -> Value:
  """Subtracts two values."""
  return add(a, -b)


def _bits(value: int | Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())


def _check_bits(bits: float):
  if bits > MAX_BITS:
    raise TooLarge('too many digits')


def _check(a: int | Fraction, b: int | Fraction):
  """Takes the steps of adding, multiplying or dividing two rational numbers."""
  over, under = a.numerator.bit_length(), a.denominator.bit_length()
  other_over, other_under = b.numerator.bit_length(), b.denominator.bit_length()
  bits = max(over, under) + max(other_over, other_under)
  if bits > _SMALL_BITS:
    _check_bits(bits)
    reduced = over * other_under + under * other_over + under * other_under
    spend(reduced * _GCD + over * other_over * _MULTIPLY)


def add(*parts: Value) -> Value:
  total = parts[0]
  for part in parts[1:]:
    if is_rational(total) and is_rational(part):
      _check(total, part)
      total += part
    else:
      total = as_number(total) + as_number(part)
  return total


def mul(*parts: Value) -> Value:
  total = parts[0]
  for part in parts[1:]:
    if is_rational(total) and is_rational(part):
      _check(total, part)
      total *= part
    else:
      total = as_number(total) * as_number(part)
  return total


def _div(over: Value, under: Value) -> Value:
  if is_rational(over) and is_rational(under):
    _check(over, under)
    return Fraction(over, under)
  if under == 0:
    raise ZeroDivisionError('a division by zero')
  return as_number(over) / as_number(under)


def _power(base: Value, exponent: Value) -> Value:
  if is_rational(base) and is_integer(exponent):
    if base in (0, 1, -1):
      if base == 0 and exponent < 0:
        raise ZeroDivisionError('a power of zero')
      return base ** (int(exponent) if base == 0 else int(exponent) % 2)
    if exponent < 0:
      base, exponent = 1 / Fraction(base), -exponent
    bits = _bits(base) * abs(exponent)
    _check_bits(bits)
    spend(float(bits) ** 2 * _MULTIPLY)
    return base ** int(exponent)
  if is_rational(base) and base < 0 and is_rational(exponent):
    if exponent.denominator % 2:  # The real root, as in \sqrt[3]{-8}.
      sign = -1 if exponent.numerator % 2 else 1
      return sign * _power(-base, exponent)
  return _number_power(as_number(base), exponent)


def _number_power(base: Value, exponent: Value) -> Value:
  """Raises a number of mpmath to a power."""
  number = as_number(exponent)
  if base == 0:
    if mpmath.re(number) <= 0:
      raise ZeroDivisionError('a power of zero')
    return mpmath.mpf(0)
  if mpmath.isinf(base) or mpmath.isinf(number):
    raise ValueError('a power of infinity')
  if not (abs(mpmath.mag(base)) + 1) * abs(number) <= _MAX_LOG2:
    _spend_on(_LOG_STEPS, base)
    _bounded(number, mpmath.log(base, 2))
  if exponent == _HALF:
    _spend_on(_ROOT_STEPS, base)
    return mpmath.sqrt(base)
  if is_integer(exponent):
    _spend_on(_INTEGER_POWER_STEPS * math.log2(abs(exponent) + 2), base)
    return base ** int(exponent)
  _spend_on(_POWER_STEPS, base, number)
  real = isinstance(base, mpmath.mpf) and base < 0
  if real and is_rational(exponent) and exponent.denominator % 2:
    root = mpmath.power(-base, number)
    return -root if exponent.numerator % 2 else root
  return mpmath.power(base, number)


def _bounded(a: Value, b: Value):
  """Raises TooLarge if 2 to the power of a · b is too large or too small."""
  if not abs(a) * abs(b) <= _MAX_LOG2:
    raise TooLarge('a huge power')


def _exp(value: Value) -> Value:
  return _power(+mpmath.e, value)


def _root(value: Value, index: Value) -> Value:
  return _power(value, _div(1, index))


def _ln(value: Value) -> Value:
  if value == 0:
    raise ValueError('the logarithm of zero')
  number = as_number(value)
  _spend_on(_LOG_STEPS, number)
  return mpmath.log(number)


def _log(value: Value, base: Value) -> Value:
  return _div(_ln(value), _ln(base))


def _factorial(value: Value) -> Value:
  if is_integer(value) and value >= 0:
    if value > _MAX_FACTORIAL:
      raise TooLarge('a huge factorial')
    spend((float(value) * math.log2(value + 1)) ** 2 * _FACTORIAL)
    return math.factorial(int(value))
  number = as_number(value)
  if abs(number) > 10_000:
    raise TooLarge('a huge factorial')
  _spend_on(_GAMMA_STEPS, number)
  return mpmath.gamma(number + 1)


def _binom(n: Value, k: Value) -> Value:
  if is_integer(n) and is_integer(k) and n >= 0:
    if not 0 <= k <= n:
      return 0
    factors, bits = int(min(k, n - k)), n.numerator.bit_length()
    _check_bits(factors * bits)
    spend(factors**2 * bits * _COMBINATIONS)
    return math.comb(int(n), int(k))
  n, k = as_number(n), as_number(k)
  if max(abs(n), abs(k)) > 10_000:
    raise TooLarge('a huge binomial')
  _spend_on(_BINOMIAL_STEPS, n, k)
  return mpmath.binomial(n, k)


def _abs(value: Value) -> Value:
  return abs(value)


def _rounding(function: Callable) -> Callable:
  def apply(value: Value) -> Value:
    if is_rational(value):
      return function(value)
    if not isinstance(value, mpmath.mpf) or abs(value) > _MAX_ARGUMENT:
      raise ValueError('no real number')
    return int(mpmath.floor(value)) + (
      1 if function is math.ceil and value != mpmath.floor(value) else 0
    )

  return apply


def _of_integers(function: Callable) -> Callable:
  def apply(*values: Value) -> Value:
    if not all(map(is_integer, values)):
      raise TypeError('no integers')
    return function(*map(int, values))

  return apply


FUNCTIONS: Mapping[str, Callable[..., Value]] = {
  'add': add,
  'mul': mul,
  'div': _div,
  'pow': _power,
  'neg': lambda value: -value,
  'percent': lambda value: _div(value, 100),
  'degree': lambda value: value,
  'sqrt': lambda value: _power(value, _HALF),
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
_HYPERBOLIC = frozenset(('sinh', 'cosh', 'tanh', 'coth', 'sech', 'csch'))


def trigonometry(name: str, value: Value) -> Value:
  """Returns the value of a function of TRIGONOMETRY.

  Raises:
    TooLarge: the argument or the value is huge.
    ZeroDivisionError, ValueError: the function has no value there.
  """
  number = as_number(value)
  _spend_on(_TRIGONOMETRY_STEPS, number)
  if not abs(number) <= _MAX_ARGUMENT:
    raise TooLarge('a huge argument')
  if name in _HYPERBOLIC and abs(number) * 1.5 > _MAX_LOG2:
    raise TooLarge('a huge argument')
  return TRIGONOMETRY[name](number)
