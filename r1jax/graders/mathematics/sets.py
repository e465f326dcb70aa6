"""Sets of real numbers as sorted intervals: x > 2 and (2, ∞) are one set."""

import dataclasses
from typing import NamedTuple

import mpmath

from r1jax.graders.mathematics import arithmetic, evaluation, numbers
from r1jax.graders.mathematics.arithmetic import Value
from r1jax.graders.mathematics.nodes import (
  Node,
  Operation,
  Relation,
  Sequence,
  Symbol,
  TooLarge,
  Words,
)
from r1jax.graders.mathematics.relations import is_application

_FLIPPED = {'<': '>', '<=': '>=', '>': '<', '>=': '<=', '=': '=', '!=': '!='}
_MAX_PARTS = 50


class Interval(NamedTuple):
  """An interval, or a point.

  Attributes:
    low: Its lower end; −∞ if it has none.
    has_low: Whether the lower end belongs to it.
    high: Its upper end.
    has_high: Whether the upper end belongs to it.
  """

  low: Value
  has_low: bool
  high: Value
  has_high: bool


RealSet = tuple[Interval, ...]
_ALL: RealSet = (Interval(-mpmath.inf, False, mpmath.inf, False),)


def same_set(a: RealSet, b: RealSet) -> bool:
  """Returns whether two sets have the same intervals."""
  return len(a) == len(b) and all(
    x.has_low == y.has_low
    and x.has_high == y.has_high
    and numbers.close(x.low, y.low)
    and numbers.close(x.high, y.high)
    for x, y in zip(a, b)
  )


def real_set(node: Node) -> RealSet | None:
  """Returns the set that a node stands for; None if it is no set of reals.

  Raises:
    TooLarge: a number in it costs too much to evaluate.
  """
  match node:
    case (
      Symbol(name='\\mathbb{R}')
      | Words(text='all real numbers' | 'all reals' | 'real numbers')
    ):
      return _ALL
    case Sequence(brackets='{}', items=items):
      return _points(items)
    case Sequence(brackets='', items=items) if all(
      isinstance(item, Relation) for item in items
    ):
      return _conditions(items)
    case Sequence(
      brackets=('()' | '[)' | '(]' | '[]') as brackets, items=items
    ):
      return _interval(brackets, items)
    case Operation(name='union'):
      sets = [real_set(part) for part in _united(node)]
      if any(part is None for part in sets):
        return None
      return _union(tuple(part for some in sets for part in some or ()))
    case Operation(name=('intersection' | 'difference') as name, args=args):
      a, b = map(real_set, args)
      if a is None or b is None:
        return None
      return _intersection(a, b if name == 'intersection' else _complement(b))
    case Relation():
      return _relation(node)
  return None


def _united(node: Node) -> list[Node]:
  """Returns the sets of a union of unions, in their order."""
  if isinstance(node, Operation) and node.name == 'union':
    return [part for side in node.args for part in _united(side)]
  return [node]


def _points(items: tuple[Node, ...]) -> RealSet | None:
  values = [numbers.constant(item) for item in items]
  if any(value is None for value in values) or len(values) > _MAX_PARTS:
    return None
  if not all(map(_is_real, values)):
    return None
  return _union(tuple(Interval(v, True, v, True) for v in values))


def _interval(brackets: str, items: tuple[Node, ...]) -> RealSet | None:
  if len(items) != 2:
    return None
  low, high = map(numbers.constant, items)
  if low is None or high is None or not (_is_real(low) and _is_real(high)):
    return None
  if not arithmetic.less(low, high):
    return None
  return (Interval(low, brackets[0] == '[', high, brackets[1] == ']'),)


def _conditions(relations: tuple[Node, ...]) -> RealSet | None:
  """Returns what all conditions allow, or else what any of them does.

  1 < x, x < 3 → (1, 3);  x < 1, x > 3 → (−∞, 1) ∪ (3, ∞)
  """
  sets = [real_set(relation) for relation in relations]
  names = [relation.variables for relation in relations]
  if any(part is None for part in sets) or len(set(names)) != 1:
    return None
  common: RealSet = _ALL
  together: RealSet = ()
  for part in sets:
    assert part is not None
    common = _intersection(common, part)
    together += part
  return common or _union(together)


def _relation(node: Relation) -> RealSet | None:
  """Returns the numbers that satisfy a chain of relations in one variable."""
  node = dataclasses.replace(node, sides=tuple(map(_variable, node.sides)))
  names = node.variables
  if node.operators == ('in',) and isinstance(node.sides[0], Symbol):
    return real_set(node.sides[1])
  if not node.operators or node.modulus is not None:
    return None
  if len(names) != 1 or not set(node.operators) <= set(_FLIPPED):
    return None
  found = _ALL
  for left, operator, right in zip(node.sides, node.operators, node.sides[1:]):
    part = _comparison(left, operator, right)
    if part is None:
      return None
    found = _intersection(found, part)
  return found


def _variable(side: Node) -> Node:
  """Replaces the value of a function, f(x), by a variable of its own."""
  return Symbol('f(x)') if is_application(side) else side


def _comparison(left: Node, operator: str, right: Node) -> RealSet | None:
  """Solves one comparison, if a side is a constant and the other linear."""
  value = numbers.constant(right)
  if value is None:
    value, left, operator = (numbers.constant(left), right, _FLIPPED[operator])
  if value is None or not _is_real(value) or not left.variables:
    return None
  match left:
    case Operation(name='abs', args=(inner,)) if operator in _FLIPPED:
      return _absolute(inner, operator, value)
  line = _line(left)
  if line is None:
    return None
  slope, offset = line
  bound = arithmetic.quotient(arithmetic.difference(value, offset), slope)
  if arithmetic.less(slope, arithmetic.ZERO):
    operator = _FLIPPED[operator]
  return _half_line(operator, bound)


def _half_line(operator: str, bound: Value) -> RealSet:
  point = (Interval(bound, True, bound, True),)
  if operator == '=':
    return point
  if operator == '!=':
    return _complement(point)
  closed = operator.endswith('=')
  if operator.startswith('<'):
    return (Interval(-mpmath.inf, False, bound, closed),)
  return (Interval(bound, closed, mpmath.inf, False),)


def _absolute(inner: Node, operator: str, value: Value) -> RealSet | None:
  """Solves |x| < a and the like."""
  if not isinstance(inner, Symbol) or not (
    arithmetic.less(arithmetic.ZERO, value)
  ):
    return None
  above = _half_line(operator, value)
  below = _half_line(_FLIPPED[operator], -value)
  if operator in ('<', '<=', '!='):
    return _intersection(above, below)
  return _union(above + below)


def _line(node: Node) -> tuple[Value, Value] | None:
  """Returns slope and offset of a linear expression in one variable."""
  if isinstance(node, Symbol):
    return arithmetic.ONE, arithmetic.ZERO
  [name] = node.variables
  try:
    values = [
      evaluation.Evaluator({name: point}.__getitem__).value(node)
      for point in evaluation.PROBES
    ]
  except evaluation.Undefined:
    return None
  if not all(map(_is_real, values)):
    return None
  offset = values[0]
  slope = arithmetic.difference(values[1], offset)
  if not abs(slope) > 0:
    return None
  for point, value in zip(evaluation.PROBES[2:], values[2:]):
    step = arithmetic.difference(value, offset)
    if not numbers.close(arithmetic.quotient(step, point), slope):
      return None
  return slope, offset


def _is_real(value: Value) -> bool:
  return not isinstance(value, mpmath.mpc)


def _union(parts: RealSet) -> RealSet:
  """Sorts intervals and joins those that touch."""
  merged: list[Interval] = []
  for part in sorted(
    parts, key=lambda p: (arithmetic.as_number(p.low), not p.has_low)
  ):
    last = merged[-1] if merged else None
    if last and _touch(last, part):
      if numbers.close(last.high, part.high):
        high, has_high = last.high, last.has_high or part.has_high
      elif arithmetic.less(last.high, part.high):
        high, has_high = part.high, part.has_high
      else:
        high, has_high = last.high, last.has_high
      has_low = last.has_low or (
        part.has_low and numbers.close(part.low, last.low)
      )
      merged[-1] = Interval(last.low, has_low, high, has_high)
    else:
      merged.append(part)
  return tuple(merged)


def _touch(first: Interval, second: Interval) -> bool:
  if numbers.close(first.high, second.low):
    return first.has_high or second.has_low
  return arithmetic.less(second.low, first.high)


def _complement(parts: RealSet) -> RealSet:
  found, low, has_low = [], -mpmath.inf, False
  for part in _union(parts):
    found.append(Interval(low, has_low, part.low, not part.has_low))
    low, has_low = part.high, not part.has_high
  found.append(Interval(low, has_low, mpmath.inf, False))
  return tuple(part for part in found if _is_filled(part))


def _intersection(a: RealSet, b: RealSet) -> RealSet:
  if len(a) * len(b) > _MAX_PARTS**2:
    raise TooLarge('too many intervals')
  found = []
  for x in a:
    for y in b:
      if numbers.close(x.low, y.low):
        low, has_low = x.low, x.has_low and y.has_low
      else:
        higher = x if arithmetic.less(y.low, x.low) else y
        low, has_low = higher.low, higher.has_low
      if numbers.close(x.high, y.high):
        high, has_high = x.high, x.has_high and y.has_high
      else:
        lower = x if arithmetic.less(x.high, y.high) else y
        high, has_high = lower.high, lower.has_high
      found.append(Interval(low, has_low, high, has_high))
  return _union(tuple(part for part in found if _is_filled(part)))


def _is_filled(part: Interval) -> bool:
  if numbers.close(part.low, part.high):
    return (
      part.has_low
      and part.has_high
      and not mpmath.isinf(arithmetic.as_number(part.low))
    )
  return arithmetic.less(part.low, part.high)
