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

from collections.abc import Callable
from fractions import Fraction
import hashlib

import mpmath

from r1jax.graders.mathematics.arithmetic import (
  FUNCTIONS,
  HYPERBOLIC,
  MAX_ARGUMENT,
  MAX_LOG2,
  TRIGONOMETRY,
  Value,
  add,
  as_number,
  is_integer,
  mul,
  spend,
)
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

_TERM_WEIGHT = 4
_MAX_TERMS = 500
# Points at which a line is looked for.
PROBES = tuple(map(Fraction, (0, 1, 3, 7, -5)))


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
    if name in TRIGONOMETRY:
      return self._trigonometry(name, node.args[0])
    if name in ('sum:^_', 'prod:^_'):
      return self._big(node)
    function = FUNCTIONS.get(name)
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
    if not abs(value) <= MAX_ARGUMENT:
      raise TooLarge('a huge argument')
    if name in HYPERBOLIC and abs(value) * 1.5 > MAX_LOG2:
      raise TooLarge('a huge argument')
    try:
      return TRIGONOMETRY[name](value)
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
      total = add(total, term) if is_sum else mul(total, term)
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
        if name in FUNCTIONS or name in TRIGONOMETRY:
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
