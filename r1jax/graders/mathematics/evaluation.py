"""Evaluates mathematical answers, within bounds on size and time.

Numbers stay exact as long as they are rational; everything else is computed
with mpmath to a given precision. The bounds are checked on values before each
step, not read off the text: 2^{2^5} is 2³², and e^{0.05t} has no digits at all.

  exact number       at most 10,000 digits, as 2004! has 5,736
  power, exp         result between 10^−100,000 and 10^100,000
  sine and others    argument below 10^30
  n!                 n at most 3,000
  one pair           1,000 steps and 80 a node of the gold answer; arithmetic.py
"""

from collections.abc import Callable
from fractions import Fraction
import functools
import hashlib
from typing import NamedTuple

import mpmath

from r1jax.graders.mathematics.arithmetic import (
  FUNCTIONS,
  TRIGONOMETRY,
  Value,
  add,
  as_number,
  is_integer,
  mul,
  spend,
  trigonometry,
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

_MAX_TERMS = 500
_OPERATION_STEPS = 2
# Points at which a line is looked for.
PROBES = tuple(map(Fraction, (0, 1, 3, 7, -5)))


class Undefined(ArithmeticError):
  """An answer that has no value here, such as a division by zero."""


class Evaluator:
  """Evaluates nodes with given values of their symbols.

  A node is compiled to a program at first, since it is evaluated at many points.

  Args:
    values: Value of a symbol from its name.

  Attributes:
    bound: Values of the indices of sums and products.
    is_known: Whether no unknown function was met, whose value is arbitrary.
  """

  def __init__(self, values: Callable[[str], Value]):
    self._values = values
    self.bound: dict[str, Value] = {}
    self.is_known = True

  def value(self, node: Node) -> Value:
    """Returns the value of a node.

    Raises:
      TooLarge: it would take too long or too much memory.
      Undefined: it has no value here.
    """
    found = self.run(node)
    return Fraction(found) if isinstance(found, int) else found

  def run(self, node: Node) -> Value:
    """Returns the value of a node, an integer as int."""
    run, steps = _program(node)
    spend(steps)
    return run(self)

  def symbol(self, name: str) -> Value:
    """Returns the value of a symbol."""
    return self.bound[name] if name in self.bound else self._values(name)

  def unknown(self, node: Node) -> Value:
    """Returns a number that depends on a function's name and arguments alone."""
    self.is_known = False
    return _hashed(self._key(node), mpmath.mp.prec)

  def _key(self, node: Node) -> str:
    match node:
      case Sequence(brackets=name, items=parts):
        pass
      case Operation(name=name, args=parts):
        if name in FUNCTIONS or name in TRIGONOMETRY:
          return _rounded(self.run(node))
      case Relation(sides=parts, operators=operators):
        name = ' '.join(operators)
      case Matrix(rows=rows):
        name = 'matrix'
        parts = tuple(Sequence('row', row) for row in rows)
      case _:
        return _rounded(self.run(node))
    spend(1)
    return f'{name}({",".join(map(self._key, parts))})'


class _Program(NamedTuple):
  """A compiled node.

  Attributes:
    run: Returns its value.
    steps: What that costs, without the terms of sums and the work of functions.
  """

  run: Callable[[Evaluator], Value]
  steps: int


def _program(node: Node) -> _Program:
  """Returns the program of a node, which is compiled once."""
  found = node.memo.get('program')
  if found is None:
    found = node.memo['program'] = _compiled(node)
  return found


def _compiled(node: Node) -> _Program:
  match node:
    case Number(value=value):
      number = int(value) if value.denominator == 1 else value
      return _Program(lambda _: number, 1)
    case Symbol(name=name):
      constant = _CONSTANTS.get(name)
      if constant is not None:
        return _Program(lambda _: constant(), 1)
      return _Program(lambda env: env.symbol(name), 1)
    case Quantity(value=inner):
      return _program(inner)
    case Operation(name='sum:^_' | 'prod:^_'):
      return _big(node)
    case Operation(name='pm', args=(inner,)):
      return _program(inner)
    case Operation(name='mp', args=(inner,)):
      return _program(Operation('neg', (inner,)))
    case Operation(name=name) if name in TRIGONOMETRY:
      return _trigonometry(node)
    case Operation(name=name) if name in FUNCTIONS:
      return _applied(FUNCTIONS[name], node)
    case Operation() | Sequence() | Relation() | Matrix():
      return _Program(lambda env: env.unknown(node), 1)
  return _Program(lambda _: _undefined(node), 1)


_CONSTANTS: dict[str, Callable[[], Value]] = {
  '\\pi': lambda: +mpmath.pi,
  'e': lambda: +mpmath.e,
  'i': lambda: mpmath.mpc(0, 1),
  '\\infty': lambda: mpmath.inf,
}


def _undefined(node: Node) -> Value:
  raise Undefined(f'{type(node).__name__} has no value')


def _applied(function: Callable[..., Value], node: Operation) -> _Program:
  """Compiles a function of the values of its arguments."""
  programs = [_program(part) for part in node.args]
  steps = _OPERATION_STEPS + sum(program.steps for program in programs)
  arguments = [program.run for program in programs]

  def run(env: Evaluator) -> Value:
    values = [argument(env) for argument in arguments]
    try:
      return function(*values)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
      raise Undefined(str(error)) from error
    except TypeError:
      return env.unknown(node)

  return _Program(run, steps)


def _trigonometry(node: Operation) -> _Program:
  name, argument = node.name, node.args[0]
  in_degrees = isinstance(argument, Operation) and argument.name == 'degree'
  inner = _program(argument)

  def run(env: Evaluator) -> Value:
    value = inner.run(env)
    if in_degrees:
      value = as_number(value) * mpmath.pi / 180
    try:
      return trigonometry(name, value)
    except (ZeroDivisionError, ValueError) as error:
      raise Undefined(str(error)) from error

  return _Program(run, inner.steps + _OPERATION_STEPS)


def _big(node: Operation) -> _Program:
  """Compiles a sum or a product of terms, if the bounds are integers."""
  body, lower, upper = node.args
  match lower:
    case Relation((Symbol(name=name), start), ('=',)):
      pass
    case _:
      return _Program(lambda env: env.unknown(node), 1)
  first, last, term = map(_program, (start, upper, body))
  is_sum = node.name.startswith('sum')
  join = add if is_sum else mul

  def run(env: Evaluator) -> Value:
    low, high = first.run(env), last.run(env)
    if not (is_integer(low) and is_integer(high)):
      return env.unknown(node)
    if high - low > _MAX_TERMS:
      raise TooLarge('too many terms')
    total: Value = 0 if is_sum else 1
    before = env.bound.get(name)
    for index in range(int(low), int(high) + 1):
      spend(term.steps + _OPERATION_STEPS)
      env.bound[name] = index
      total = join(total, term.run(env))
    env.bound.pop(name, None)
    if before is not None:
      env.bound[name] = before
    return total

  return _Program(run, 1 + first.steps + last.steps)


def _rounded(value: Value) -> str:
  return mpmath.nstr(as_number(value), 12)


@functools.lru_cache(4096)
def _hashed(text: str, precision: int) -> Value:
  """Returns a number between 0.5 and 2.5 that a text determines.

  Args:
    text: The text.
    precision: Today's precision in bits.
  """
  del precision
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
      number = _hashed(f'{seed} {name}', mpmath.mp.prec)
      if signs and _hashed(f'sign {seed} {name}', mpmath.mp.prec) < 1.5:
        number = -number
      known[name] = number
    return known[name]

  return value
