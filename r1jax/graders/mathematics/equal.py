"""Decides whether an answer equals the gold answer.

numbers, expressions   by value; see numbers.py
x = 3                  is 3: a name before an answer says what it is
equations              if one is a multiple of the other
inequalities           as sets of numbers, or as multiples
(1, 2)                 in order, with the same brackets
{1, 2}                 in any order, as often as each is there
1, 2                   in any order, unless its order says something: with
                       dots, or three or more numbers of which neither list
                       is sorted as the elements of a set are
7 students             is 7; 5 m is 500 cm and not 5 cm
50 %                   is 0.5, and 50: questions ask for either
"""

from collections import Counter
from collections.abc import Sequence as Items
from fractions import Fraction
import itertools

from r1jax.graders.mathematics import numbers, relations, sets, units
from r1jax.graders.mathematics.matrices import matrix
from r1jax.graders.mathematics.nodes import (
  Based,
  Matrix,
  Node,
  Number,
  Operation,
  Quantity,
  Relation,
  Sequence,
  Symbol,
  Words,
  contains,
  symbols,
)

_FEW_ITEMS = 6
_MAX_ITEMS = 100  # Longer lists are compared in order alone.
_ORDERED = ('()', '[]', '(]', '[)', '<>')


def same(a: Node, b: Node) -> bool:
  """Returns whether an answer and a gold answer are equal.

  Raises:
    TooLarge: finding it out would cost too much.
  """
  if a == b:
    return True
  a, b = map(_expanded, (a, b))
  if isinstance(a, Quantity) or isinstance(b, Quantity):
    return _same_quantity(a, b)
  if isinstance(a, Words) or isinstance(b, Words):
    return _same_words(a, b) or _same_words(b, a)
  if isinstance(a, Based) or isinstance(b, Based):
    return False  # Their digits or bases differ.
  if isinstance(a, Relation) or isinstance(b, Relation):
    return _same_relation(a, b)
  if isinstance(a, Sequence) and isinstance(b, Sequence):
    if _same_sequence(a, b):
      return True
    has_relation = any(contains(node, Relation) for node in (a, b))
    return has_relation and _same_as_sets(a, b)
  rows, other = matrix(a), matrix(b)
  if rows is not None or other is not None:
    return _same_matrix(rows, a, other, b)
  if isinstance(a, Sequence) or isinstance(b, Sequence):
    return _is_alone(a, b) or _is_alone(b, a) or _same_as_sets(a, b)
  if _is_set(a) or _is_set(b):
    return _same_as_sets(a, b) or _same_parts(a, b)
  if _is_ratio(a) or _is_ratio(b):
    return _same_ratio(a, b)
  return _same_number(a, b)


def evaluate(node: Node):
  """Evaluates an answer once, to find out whether it is too large.

  Raises:
    TooLarge: it is.
  """
  numbers.same_value(node, Number(Fraction(1)))


def _expanded(node: Node) -> Node:
  """Replaces ± by both values that it stands for."""
  match node:
    case Sequence(brackets=('' | '{}') as brackets, items=items):
      found = [part for item in items for part in _both(item)]
      return Sequence(brackets, tuple(found))
    case Relation(sides=(name, value), operators=('=',)) if _has_sign(value):
      return Sequence(
        '', tuple(Relation((name, v), ('=',)) for v in _both(value))
      )
  both = _both(node)
  return both[0] if len(both) == 1 else Sequence('', tuple(both))


def _both(node: Node) -> list[Node]:
  if isinstance(node, Sequence) or not _has_sign(node):
    return [node]
  if isinstance(node, Relation):
    parts = _expanded(node)
    return list(parts.items) if isinstance(parts, Sequence) else [node]
  return [_signed(node, 1), _signed(node, -1)]


def _has_sign(node: Node) -> bool:
  if isinstance(node, Operation) and node.name in ('pm', 'mp'):
    return True
  return isinstance(node, Operation) and any(map(_has_sign, node.args))


def _signed(node: Node, sign: int) -> Node:
  if not isinstance(node, Operation):
    return node
  args = tuple(_signed(part, sign) for part in node.args)
  if node.name in ('pm', 'mp'):
    negative = (node.name == 'pm') == (sign < 0)
    return Operation('neg', args) if negative else args[0]
  return Operation(node.name, args)


def _same_quantity(a: Node, b: Node) -> bool:
  if isinstance(a, Quantity) and isinstance(b, Quantity):
    if not units.are_compatible(a.unit, b.unit):
      return False
    first, second = units.scale(a.unit), units.scale(b.unit)
    if a.unit != b.unit and first and second:
      (kind, size), (other, other_size) = first, second
      return kind == other and same(
        Operation('mul', (a.value, Number(size))),
        Operation('mul', (b.value, Number(other_size))),
      )
  return same(*(n.value if isinstance(n, Quantity) else n for n in (a, b)))


_NO_SOLUTION = frozenset((
  'no solution', 'no solutions', 'no real solution', 'no real solutions', 'none',
  'empty set', 'the empty set', 'no such number', 'does not exist', 'dne',
))  # fmt: skip
_DOES_NOT_EXIST = frozenset(('undefined', 'does not exist', 'dne'))


def _same_words(a: Node, b: Node) -> bool:
  """Compares words with another node."""
  if not isinstance(a, Words):
    return False
  match b:
    case Words(text=text):
      return _bare(a.text) == _bare(text) or any(
        a.text in group and text in group
        for group in (_NO_SOLUTION, _DOES_NOT_EXIST)
      )
    case Symbol(name='\\infty'):
      return a.text in ('infinity', 'infinite', 'positive infinity')
    case Symbol(name=name):
      return a.text == name.lower() and len(name) == 1
    case Sequence(brackets='{}', items=()):
      return a.text in _NO_SOLUTION
    case Number(value=value):
      return units.cardinal(a.text) == value
    case Operation(name='mul') | Relation() | Sequence():
      return _same_as_sets(a, b)
  return False


def _bare(text: str) -> str:
  """Removes articles, spaces and punctuation from words."""
  words = ''.join(c if c.isalnum() else ' ' for c in text).split()
  if len(words) > 1 and words[0] in ('the', 'a', 'an'):
    words = words[1:]
  return ''.join(words)


def _same_relation(a: Node, b: Node) -> bool:
  if not relations.is_consistent(a, same):
    return False  # Example: x = 5 = 3.
  if isinstance(a, Relation) and isinstance(b, Relation):
    unverified = relations.unverified(a)
    if not all(
      any(same(side, other) for other in b.sides) for side in unverified
    ):
      return False
  if isinstance(a, Relation) and isinstance(b, Relation):
    b = _with_argument_of(a, b)
    return relations.same_relation(a, b, same) or _same_as_sets(a, b)
  bare = relations.value(a), relations.value(b)
  if bare != (a, b) and not (
    isinstance(bare[0], Relation) or isinstance(bare[1], Relation)
  ):
    return same(*bare)
  return _same_as_sets(a, b)


def _with_argument_of(a: Relation, b: Relation) -> Relation:
  """Renames the argument of a function: f(t) = t + 1 is f(x) = x + 1."""
  match a.sides[0], b.sides[0]:
    case (
      Operation('mul', (Symbol(function), Symbol(argument))),
      Operation('mul', (Symbol(other), Symbol(name))),
    ) if (
      function == other
      and argument != name
      and relations.is_application(a.sides[0])
      and argument not in b.variables
    ):
      sides = tuple(_renamed(side, name, argument) for side in b.sides)
      return Relation(sides, b.operators, b.modulus)
  return b


def _same_as_sets(a: Node, b: Node) -> bool:
  """Compares sets of real numbers; an interval alone is no answer to a point."""
  names = a.variables, b.variables
  if all(names) and names[0] != names[1]:
    return False  # x > 2 is not y > 2.
  wanted = sets.real_set(b)  # That of an answer may cost more.
  if wanted is None:
    return False
  found = sets.real_set(a)
  return found is not None and sets.same_set(found, wanted)


def _is_set(node: Node) -> bool:
  return isinstance(node, Operation) and node.name in (
    'union',
    'intersection',
    'difference',
    'set_builder',
  )


def _same_parts(a: Node, b: Node) -> bool:
  """Compares sets of other things part by part."""
  return (
    isinstance(a, Operation)
    and isinstance(b, Operation)
    and a.name == b.name
    and (
      _in_any_order(a.args, b.args)
      if a.name in ('union', 'intersection')
      else _in_order(a.args, b.args)
    )
  )


def _is_alone(a: Node, b: Node) -> bool:
  """Whether a is a set of one item, which equals b."""
  if not isinstance(a, Sequence) or a.brackets not in ('{}', ''):
    return False
  return len(a.items) == 1 and same(a.items[0], b)


def _same_sequence(a: Sequence, b: Sequence) -> bool:
  a, b = _distinct_points(a), _distinct_points(b)
  if len(a.items) != len(b.items):
    return False
  if a.brackets == b.brackets and a.brackets in _ORDERED:
    return _in_order(a.items, b.items)
  kinds = {a.brackets, b.brackets}
  if kinds in ({'()', '<>'}, {'', '()'}, {'', '<>'}):
    return _in_order(a.items, b.items)
  if kinds == {'', '[]'} and len(a.items) > 2:
    return _in_order(a.items, b.items)
  if not kinds <= {'', '{}'}:
    return False
  if _has_order(a, b):
    return _in_order(a.items, b.items)
  return _in_any_order(a.items, b.items)


def _distinct_points(node: Sequence) -> Sequence:
  """Removes points that a list of points has twice; numbers may be repeated."""
  if node.brackets in _ORDERED or not all(
    isinstance(item, Sequence) and item.brackets == '()' for item in node.items
  ):
    return node
  return Sequence(node.brackets, tuple(dict.fromkeys(node.items)))


def _has_order(a: Sequence, b: Sequence) -> bool:
  """Whether the order of two lists says something."""
  if any(item == Symbol('\\ldots') for item in (*a.items, *b.items)):
    return True
  names = [
    {relations.name(item) for item in items} for items in (a.items, b.items)
  ]
  if (None in names[0]) != (None in names[1]) and len(names[0] | names[1]) > 2:
    return True  # Example: x=1, y=2 and 1, 2.
  if len(a.items) > _MAX_ITEMS:
    return True
  if '{}' in (a.brackets, b.brackets) or len(a.items) < 3:
    return False
  orders = _order(a.items), _order(b.items)
  return 'rising' not in orders and '' in orders


def _order(items: Items[Node]) -> str:
  """Returns 'rising', 'falling' or '' for the order of numbers.

  Items that are not all numbers count as falling, since nobody sorts them.
  """
  values = numbers.rationals(items)
  if values is None:
    return 'falling'
  pairs = list(itertools.pairwise(values))
  if all(x <= y for x, y in pairs):
    return 'rising'
  return 'falling' if all(x >= y for x, y in pairs) else ''


def _in_order(a: Items[Node], b: Items[Node]) -> bool:
  return len(a) == len(b) and all(map(same, a, b))


def _in_any_order(a: Items[Node], b: Items[Node]) -> bool:
  """Whether two lists have the same items, each as often."""
  if len(a) != len(b):
    return False
  values = numbers.rationals((*a, *b))
  plain = not any(
    numbers.is_decimal(item) or contains(item, Quantity) for item in (*a, *b)
  )
  if values is not None and plain:
    return Counter(values[: len(a)]) == Counter(values[len(a) :])
  many = len(a) > _FEW_ITEMS
  rest = [(numbers.fingerprint(item) if many else None, item) for item in b]
  keys = [numbers.fingerprint(item) if many else None for item in a]
  for key, item in zip(keys, a):
    found = next(
      (
        index
        for index, (other_key, other) in enumerate(rest)
        if (key == other_key or None in (key, other_key)) and same(item, other)
      ),
      None,
    )
    if found is None:
      return False
    rest.pop(found)
  return True


def _same_matrix(a, node: Node, b, other: Node) -> bool:
  """Compares matrices; a column equals a vector in round brackets."""
  vectors = []
  for rows, original in ((a, node), (b, other)):
    if rows is None:
      if not isinstance(original, Sequence) or original.brackets not in (
        '()',
        '<>',
      ):
        return False
      vectors.append(original.items)
    elif a is None or b is None:
      if len(rows) > 1 and any(len(row) > 1 for row in rows):
        return False
      vectors.append(tuple(item for row in rows for item in row))
  if vectors:
    return _in_order(*vectors)
  return len(a) == len(b) and all(map(_in_order, a, b))


def _is_ratio(node: Node) -> bool:
  return isinstance(node, Operation) and node.name == 'ratio'


def _same_ratio(a: Node, b: Node) -> bool:
  """Compares 1:2 with 2:4, and with 1/2."""
  parts = [
    node.args
    if isinstance(node, Operation) and node.name == 'ratio'
    else (node, Number(Fraction(1)))
    for node in (a, b)
  ]
  if len(parts[0]) != len(parts[1]):
    return False
  if all(map(_is_clock, parts)) or any(map(_is_zero, parts[0] + parts[1])):
    return _in_order(*parts)
  return all(
    same(Operation('mul', (x, parts[1][0])), Operation('mul', (y, parts[0][0])))
    for x, y in zip(*parts)
  )


def _is_clock(parts: Items[Node]) -> bool:
  """Whether a ratio may be a time of day, such as 2:30."""
  values = numbers.rationals(parts)
  return (
    values is not None
    and len(values) == 2
    and values[0] <= 24
    and 10 <= values[1] < 60
  )


def _is_zero(node: Node) -> bool:
  return numbers.constant(node) == 0


def _same_number(a: Node, b: Node) -> bool:
  if isinstance(a, Matrix) or isinstance(b, Matrix):
    return False
  names = a.variables, b.variables
  if names[0] ^ names[1] == {'c', 'C'}:  # The constant of integration.
    a, b = _renamed(a, 'c', 'C'), _renamed(b, 'c', 'C')
  if all(map(_is_family, (a, b), names)):  # 2πn and 2πk for all integers.
    a = _renamed(a, *names[0], *names[1])
  if numbers.same_value(a, b):
    return True
  if _has_percent(a) == _has_percent(b):
    return False
  return numbers.same_value(_without_percent(a), _without_percent(b))


def _is_family(node: Node, names: frozenset[str]) -> bool:
  """Whether an expression is one of angles, with an integer in it."""
  return len(names) == 1 and names <= {*'nkmj'} and '\\pi' in symbols(node)


def _renamed(node: Node, old: str, new: str) -> Node:
  """Replaces a symbol by another one."""
  if node == Symbol(old):
    return Symbol(new)
  if isinstance(node, Operation):
    args = (_renamed(part, old, new) for part in node.args)
    return Operation(node.name, tuple(args))
  return node


def _has_percent(node: Node) -> bool:
  return isinstance(node, Operation) and (
    node.name == 'percent'
    or (node.name == 'neg' and _has_percent(node.args[0]))
  )


def _without_percent(node: Node) -> Node:
  match node:
    case Operation(name='percent', args=(value,)):
      return value
    case Operation(name='neg', args=(value,)):
      return Operation('neg', (_without_percent(value),))
  return node
