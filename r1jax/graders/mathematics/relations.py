"""Equations, inequalities, congruences, and names in front of an answer."""

from collections.abc import Callable

import mpmath

from r1jax.graders.mathematics import numbers
from r1jax.graders.mathematics.nodes import (
  CONSTANTS,
  Node,
  Number,
  Operation,
  Relation,
  Sequence,
  Symbol,
)

_FLIPPED = {'<': '>', '<=': '>=', '>': '<', '>=': '<='}
# Operators that ask for a value, which their other side gives: \\lim x = 0.
_QUESTIONS = frozenset('int iint iiint oint lim limsup liminf sum prod'.split())
# Letters that name functions: f(x) = 3 is 3, and xy = 3 is not.
_FUNCTION_NAMES = frozenset('fghpqrsuvwy')


def name(node: Node) -> tuple[Node, ...] | None:
  """Returns what an answer is said to be: x for x = 3; None if not said."""
  if not isinstance(node, Relation):
    return None
  names = []
  for side, operator in zip(node.sides, node.operators):
    if operator not in ('=', 'approx') or not _is_name(side):
      break
    names.append(side)
  return tuple(names) or None


def unverified(node: Relation) -> list[Node]:
  """Returns sides before the last of a chain of = that are not just names or
  numbers, whose equality nobody checks: a matrix, an integral."""
  if set(node.operators) - {'=', 'approx'}:
    return []
  return [
    side
    for side in node.sides[:-1]
    if not _is_name(side)
    and not side.variables
    and numbers.constant(side) is None
  ]


def value(node: Node) -> Node:
  """Returns an answer without the name before it.

  x = 3 → 3,  x = 1/3 ≈ 0.33 → 1/3,  x ∈ (0,1) → (0,1),  2 + 1 = 3 → 3
  """
  if not isinstance(node, Relation) or node.modulus is not None:
    return node
  if node.operators == ('in',) and _is_name(node.sides[0]):
    return node.sides[1]
  if not set(node.operators) <= {'=', 'approx'}:
    return node
  sides, operators = list(node.sides), list(node.operators)
  while operators and _is_name(sides[0]):
    sides.pop(0)
    operators.pop(0)
  if len(sides) > 1 and any(side.variables for side in sides[1:]):
    return node  # An equation that is no definition.
  if len(sides) > 1 and sides[0].variables:
    return node
  if 'approx' in operators:
    sides = sides[: operators.index('approx') + 1]
  return sides[-1]


def is_consistent(
  node: Node, same: Callable[[Node, Node], bool] | None = None
) -> bool:
  """Whether all equations between numbers in a chain are true.

  Args:
    node: An answer; True if it is no chain.
    same: Compares sides that are points or sets.

  Raises:
    TooLarge: a number costs too much to evaluate.
  """
  if not isinstance(node, Relation) or node.modulus is not None:
    return True
  return all(
    _agree(left, operator, right, same)
    for left, operator, right in zip(node.sides, node.operators, node.sides[1:])
  )


def _agree(left: Node, operator: str, right: Node, same) -> bool:
  if operator not in ('=', 'approx'):
    return True
  if isinstance(left, Sequence) and isinstance(right, Sequence):
    is_constant = not left.variables
    return (
      operator != '=' or not is_constant or same is None or same(left, right)
    )
  rounded = operator == 'approx'
  return numbers.agree(left, right, rounded) or (
    _has_percent(left) != _has_percent(right)
    and numbers.agree(_without_percent(left), _without_percent(right), rounded)
  )


def _without_percent(node: Node) -> Node:
  if not isinstance(node, Operation):
    return node
  args = tuple(map(_without_percent, node.args))
  return args[0] if node.name == 'percent' else Operation(node.name, args)


def _has_percent(node: Node) -> bool:
  return isinstance(node, Operation) and (
    node.name == 'percent' or any(map(_has_percent, node.args))
  )


def _is_name(node: Node) -> bool:
  """Whether the left side of an equation only names what is on the right."""
  match node:
    case Symbol(name=text):
      return text not in CONSTANTS or text == 'e'
    case Sequence(brackets='()' | '', items=items):
      return all(isinstance(item, Symbol) for item in items)
    case Operation(name='abs', args=(inner,)):
      return _is_name(inner)
    case Operation(name='div', args=(over, under)):
      parts = (over, under)
      return all(map(_is_segment, parts)) or all(map(_is_differential, parts))
    case Operation(name='ratio', args=parts):
      return all(map(_is_segment, parts))
    case Operation(name='mul', args=(Operation(name='div', args=parts), _)) if (
      all(map(_is_differential, parts))
    ):
      return True  # A derivative of something, as below.
    case Operation(name=kind) if kind.split(':')[0] in _QUESTIONS:
      return numbers.constant(node) is None
    case Operation(name='mul' | 'apply'):
      return _is_segment(node) or is_application(node)
  return False


def _letters(node: Node) -> list[str] | None:
  """Returns the names of a product of symbols in order."""
  match node:
    case Symbol(name=text):
      return [text]
    case Operation(name='mul', args=(left, right)):
      a, b = _letters(left), _letters(right)
      return None if a is None or b is None else a + b
  return None


def _is_segment(node: Node) -> bool:
  """Whether a node is points in a row, such as AB or \\angle ABC."""
  letters = _letters(node)
  return letters is not None and all(
    text[0].isupper()
    or text.startswith(('\\angle', '\\overline', '\\triangle'))
    for text in letters
  )


def _is_differential(node: Node) -> bool:
  letters = _letters(node)
  return letters is not None and letters[0] in ('d', '\\partial')


def is_application(node: Node) -> bool:
  """Whether a node is a function of a variable or number, such as f(x)."""
  match node:
    case Operation(name='apply'):
      return True
    case Operation(
      name='mul',
      args=(Symbol(name=function), Symbol() | Number() | Operation()),
    ):
      base = function.split('_')[0].rstrip("'")
      argument = node.args[1]
      if isinstance(argument, Operation) and argument.name != 'neg':
        return False
      return base in _FUNCTION_NAMES or base.isupper() or function.endswith("'")
    case Operation(name='mul', args=(Symbol(name=function), Sequence())):
      return True
  return False


def same_relation(
  a: Relation, b: Relation, same: Callable[[Node, Node], bool]
) -> bool:
  """Returns whether two relations are the same statement.

  Args:
    a: One of them.
    b: The other.
    same: Compares their sides.

  Raises:
    TooLarge: finding it out would cost too much.
  """
  if 'equiv' in a.operators or a.modulus is not None or b.modulus is not None:
    return _same_congruence(a, b, same)
  if name(a) is not None and name(a) == name(b):
    x, y = value(a), value(b)
    if not (isinstance(x, Relation) or isinstance(y, Relation)):
      return same(x, y)
  if name(a) is None and name(b) is None:
    x, y = value(a), value(b)
    if (x, y) != (a, b) and not (
      isinstance(x, Relation) and isinstance(y, Relation)
    ):
      return same(x, y)
  if _same_in_order(a, b, same):
    return True
  if len(a.operators) != len(b.operators):
    return False
  if len(a.operators) == 1:
    return _same_comparison(_difference(a, 0), _difference(b, 0))
  return any(
    all(
      _same_comparison(_difference(a, i), _difference(c, i))
      for i in range(len(a.operators))
    )
    for c in (b, _reversed(b))
    if c is not None
  )


def _same_in_order(a: Relation, b: Relation, same) -> bool:
  return a.operators == b.operators and all(map(same, a.sides, b.sides))


def _reversed(node: Relation) -> Relation | None:
  if not set(node.operators) <= set(_FLIPPED):
    return None
  return Relation(
    node.sides[::-1], tuple(_FLIPPED[o] for o in node.operators[::-1])
  )


def _difference(node: Relation, index: int) -> tuple[Node, str]:
  """Returns left − right of a comparison, and its operator to 0."""
  left, right = node.sides[index : index + 2]
  return Operation('add', (left, Operation('neg', (right,)))), (
    node.operators[index]
  )


def _same_comparison(a: tuple[Node, str], b: tuple[Node, str]) -> bool:
  """Whether two comparisons with 0 differ by a constant factor."""
  operator = b[1]
  if a[1] not in ('=', '!=', '<', '<=', '>', '>='):
    return False
  if any(isinstance(part[0], Sequence) for part in (a, b)):
    return False
  if not a[0].variables or not b[0].variables:
    return False  # A statement about numbers says nothing.
  ratio = numbers.proportion(a[0], b[0])
  if ratio is None:
    return False
  if operator in ('=', '!='):
    return a[1] == operator
  if isinstance(ratio, mpmath.mpc):
    return False
  return a[1] == (operator if ratio > 0 else _FLIPPED[operator])


def _same_congruence(a: Relation, b: Relation, same) -> bool:
  """Compares x ≡ 3 (mod 7) with x ≡ 10 (mod 7)."""
  if len(a.sides) != len(b.sides) or (a.modulus is None) != (b.modulus is None):
    return False
  if a.modulus is None or b.modulus is None:
    return _same_in_order(a, b, same)
  if not same(a.modulus, b.modulus):
    return False
  values = numbers.rationals([a.modulus, a.sides[-1], b.sides[-1]])
  if values is None or not values[0]:
    return _same_in_order(a, b, same)
  return all(map(same, a.sides[:-1], b.sides[:-1])) and (
    (values[1] - values[2]) % values[0] == 0
  )
