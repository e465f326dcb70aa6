"""Evaluates mathematical answers, within bounds on size and time.

Numbers stay exact as long as they are rational; everything else is computed
with mpmath to a given precision. The bounds are checked on values before each
step, not read off the text: 2^{2^5} is 2³², and e^{0.05t} has no digits at all.

  exact number       at most 10,000 digits, as 2004! has 5,736
  power, exp         result between 10^−100,000 and 10^100,000
  sine and others    argument below 10^30
  n!                 n at most 3,000
  one pair           6,000 steps; each counts fourfold in a sum of terms
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
import hashlib
import math
from typing import Any

import mpmath

from r1jax.graders.mathematics.nodes import (
  Matrix,
  Node,
  Number,
  Operation,
  Quantity,
  Relation,
  Sequence,
  Symbol,
  TooLarge,
)

MAX_BITS = 34_000
MAX_STEPS = 6_000
_TERM_WEIGHT = 4
_BITS_PER_STEP = 500  # Adding larger numbers costs more steps.
_POWER_STEPS, _GAMMA_STEPS = 4, 20
_MAX_LOG2 = 333_000
_MAX_FACTORIAL = 3_000
_MAX_ARGUMENT = 10**30
_MAX_TERMS = 500

ZERO, ONE = Fraction(0), Fraction(1)
PROBES = tuple(
  map(Fraction, (0, 1, 3, 7, -5))
)  # Points at which a line is looked for.
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


class Undefined(ArithmeticError):
  """An answer that has no value here, such as a division by zero."""


class Evaluator:
  """Evaluates nodes with given values of their symbols.

  Args:
    values: Value of a symbol from its name.
    sign: The sign that ± stands for, 1 or −1; ∓ is its opposite.

  Attributes:
    is_known: Whether no unknown function was met, whose value is arbitrary.
  """

  def __init__(self, values: Callable[[str], Value], sign: int = 1):
    self._values, self._sign = values, sign
    self._bound: dict[str, Value] = {}
    self._weight = 1
    self.is_known = True

  def value(self, node: Node) -> Value:
    """Returns the value of a node.

    Raises:
      TooLarge: it would take too long or too much memory.
      Undefined: it has no value here.
    """
    spend(self._weight)
    match node:
      case Number(value=value):
        return value
      case Symbol(name=name):
        return self._symbol(name)
      case Quantity(value=inner):
        return self.value(inner)
      case Operation(name=name):
        return self._operation(node)
      case Sequence() | Relation() | Matrix():
        return self._unknown(node)
    raise Undefined(f'{type(node).__name__} has no value')

  def _symbol(self, name: str) -> Value:
    if name in self._bound:
      return self._bound[name]
    if name == '\\pi':
      return +mpmath.pi
    if name == 'e':
      return +mpmath.e
    if name == 'i':
      return mpmath.mpc(0, 1)
    if name == '\\infty':
      return mpmath.inf
    return self._values(name)

  def _operation(self, node: Operation) -> Value:
    name = node.name
    if name in _TRIGONOMETRY:
      return self._trigonometry(name, node.args[0])
    if name in ('sum:^_', 'prod:^_'):
      return self._big(node)
    function = _FUNCTIONS.get(name)
    if function is None:
      if name in ('pm', 'mp'):
        sign = self._sign if name == 'pm' else -self._sign
        return self.value(node.args[0]) * sign
      return self._unknown(node)
    arguments = [self.value(part) for part in node.args]
    try:
      return function(*arguments)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
      raise Undefined(str(error)) from error
    except TypeError:
      return self._unknown(node)

  def _trigonometry(self, name: str, argument: Node) -> Value:
    if isinstance(argument, Operation) and argument.name == 'degree':
      value = as_number(self.value(argument.args[0])) * mpmath.pi / 180
    else:
      value = as_number(self.value(argument))
    spend(2 * self._weight)
    if not abs(value) <= _MAX_ARGUMENT:
      raise TooLarge('a huge argument')
    if name in _HYPERBOLIC and abs(value) * 1.5 > _MAX_LOG2:
      raise TooLarge('a huge argument')
    try:
      return _TRIGONOMETRY[name](value)
    except (ZeroDivisionError, ValueError) as error:
      raise Undefined(str(error)) from error

  def _big(self, node: Operation) -> Value:
    """Sums or multiplies terms, if the bounds are integers."""
    body, lower, upper = node.args
    match lower:
      case Relation((Symbol(name=name), start), ('=',)):
        first, last = self.value(start), self.value(upper)
      case _:
        return self._unknown(node)
    if not (is_integer(first) and is_integer(last)):
      return self._unknown(node)
    if last - first > _MAX_TERMS:
      raise TooLarge('too many terms')
    is_sum = node.name.startswith('sum')
    total = Fraction(0 if is_sum else 1)
    before, weight = self._bound.get(name), self._weight
    self._weight = _TERM_WEIGHT
    for index in range(int(first), int(last) + 1):
      self._bound[name] = Fraction(index)
      term = self.value(body)
      total = _add(total, term) if is_sum else _mul(total, term)
    self._weight = weight
    self._bound.pop(name)
    if before is not None:
      self._bound[name] = before
    return total

  def _unknown(self, node: Node) -> Value:
    """A number that depends on the name of a function and its arguments alone."""
    self.is_known = False
    return _hashed(self._key(node))

  def _key(self, node: Node) -> str:
    match node:
      case Sequence(brackets=name, items=parts):
        pass
      case Operation(name=name, args=parts):
        if name in _FUNCTIONS or name in _TRIGONOMETRY:
          return _rounded(self.value(node))
      case Relation(sides=parts, operators=operators):
        name = ' '.join(operators)
      case Matrix(rows=rows):
        name = 'matrix'
        parts = tuple(Sequence('row', row) for row in rows)
      case _:
        return _rounded(self.value(node))
    spend(1)
    return f'{name}({",".join(map(self._key, parts))})'


def is_integer(value: Value) -> bool:
  """Whether a value is an exact integer."""
  return isinstance(value, Fraction) and value.denominator == 1


def _rounded(value: Value) -> str:
  return mpmath.nstr(as_number(value), 12)


def _hashed(text: str) -> Value:
  """A number between 0.5 and 2.5 that a text determines."""
  digest = hashlib.sha256(text.encode()).digest()
  return mpmath.mpf(int.from_bytes(digest[:16])) / 2**127 + 0.5


def random_values(seed: int, signs: bool) -> Callable[[str], Value]:
  """Returns a function from a symbol's name to a number, the same each time.

  Args:
    seed: Chooses the numbers.
    signs: Whether half of the numbers are negative; otherwise all are positive.
  """
  known: dict[str, Value] = {}

  def value(name: str) -> Value:
    if name not in known:
      number = _hashed(f'{seed} {name}')
      if signs and _hashed(f'sign {seed} {name}') < 1.5:
        number = -number
      known[name] = number
    return known[name]

  return value


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
  return _add(a, -b)


def _check(bits: float):
  spend(bits // _BITS_PER_STEP)
  if bits > MAX_BITS:
    raise TooLarge('too many digits')


def _bits(value: Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())


def _add(*parts: Value) -> Value:
  total = parts[0]
  for part in parts[1:]:
    if isinstance(total, Fraction) and isinstance(part, Fraction):
      _check(_bits(total) + _bits(part))
      total += part
    else:
      total = as_number(total) + as_number(part)
  return total


def _mul(*parts: Value) -> Value:
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
  if not abs(a) * abs(b) <= _MAX_LOG2:
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
    if not isinstance(value, mpmath.mpf) or abs(value) > _MAX_ARGUMENT:
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


_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
  'add': _add,
  'mul': _mul,
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
_TRIGONOMETRY: Mapping[str, Callable[[Value], Value]] = {
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
