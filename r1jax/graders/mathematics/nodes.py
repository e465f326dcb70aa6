"""The syntax tree of a mathematical answer, made by parser.py."""

import dataclasses
from fractions import Fraction
import functools
from typing import Any

CONSTANTS = frozenset(('\\pi', 'e', 'i', '\\infty'))


class NotRead(ValueError):
  """A text, or a part of it, is not the notation of an answer."""


class TooLarge(ArithmeticError):
  """An answer that is too expensive to read or to evaluate."""


@dataclasses.dataclass(frozen=True)
class Node:
  """A part of an answer."""

  @functools.cached_property
  def variables(self) -> frozenset[str]:
    """The names of its symbols that are no constants."""
    return frozenset().union(*(part.variables for part in children(self)))

  @functools.cached_property
  def size(self) -> int:
    """How many nodes it has, itself included."""
    return 1 + sum(part.size for part in children(self))

  @functools.cached_property
  def memo(self) -> dict[str, Any]:
    """What others found out about it, such as the program that evaluates it."""
    return {}


@dataclasses.dataclass(frozen=True)
class Number(Node):
  """A number as it was written.

  Attributes:
    value: Its exact value, also of a decimal.
    digits: Significant digits of a decimal; 0 for an integer.
  """

  value: Fraction
  digits: int = 0


@dataclasses.dataclass(frozen=True)
class Symbol(Node):
  """A variable or a constant by its name, such as x, x_1, \\alpha or \\pi."""

  name: str

  @functools.cached_property
  def variables(self) -> frozenset[str]:
    """Its name, unless it is that of a constant."""
    is_constant = self.name in CONSTANTS or self.name.startswith('\\mathbb')
    return frozenset() if is_constant else frozenset((self.name,))


@dataclasses.dataclass(frozen=True)
class Operation(Node):
  """A function or an operator with its arguments.

  Attributes:
    name: 'add', 'mul', 'div', 'pow', 'neg', 'pm', 'sqrt', 'sin', … A name that
      evaluation.py does not know stands for an unknown function.
    args: Its arguments.
  """

  name: str
  args: tuple[Node, ...]

  @functools.cached_property
  def variables(self) -> frozenset[str]:
    """Those of its arguments, without the index of a sum or a product."""
    match self:
      case Operation(
        'sum:^_' | 'prod:^_',
        (body, Relation((Symbol(name), first), ('=',)), last),
      ):
        return body.variables - {name} | first.variables | last.variables
    return frozenset().union(*(part.variables for part in self.args))


@dataclasses.dataclass(frozen=True)
class Sequence(Node):
  """Several answers, a point, an interval or a set.

  Attributes:
    brackets: '()', '[]', '(]', '[)', '{}' for a set, '<>' for a vector, or ''
      for a list that is only separated.
    items: Its items in the order of the text.
  """

  brackets: str
  items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Relation(Node):
  """A chain of relations, such as 0 < x \\le 1.

  Attributes:
    sides: The related expressions, one more than operators.
    operators: '=', '!=', '<', '<=', '>', '>=', 'in', 'equiv', ':', …
    modulus: The modulus of a congruence.
  """

  sides: tuple[Node, ...]
  operators: tuple[str, ...]
  modulus: Node | None = None


@dataclasses.dataclass(frozen=True)
class Matrix(Node):
  """A matrix, a column or the rows of a definition by cases."""

  rows: tuple[tuple[Node, ...], ...]


@dataclasses.dataclass(frozen=True)
class Words(Node):
  """Words, in lower case with single spaces."""

  text: str


@dataclasses.dataclass(frozen=True)
class Based(Node):
  """A number in a given base, such as 204_5.

  Attributes:
    digits: Its digits, upper case.
    base: Its base.
  """

  digits: str
  base: int


@dataclasses.dataclass(frozen=True)
class Quantity(Node):
  """A value with a unit.

  Attributes:
    value: The value.
    unit: The unit as it was written, without spaces.
  """

  value: Node
  unit: str


def children(node: Node) -> tuple[Node, ...]:
  """Returns the direct parts of a node."""
  match node:
    case Operation(args=parts) | Sequence(items=parts):
      return parts
    case Relation(sides=sides, modulus=modulus):
      return sides if modulus is None else (*sides, modulus)
    case Matrix(rows=rows):
      return tuple(item for row in rows for item in row)
    case Quantity(value=value):
      return (value,)
  return ()


def symbols(node: Node) -> frozenset[str]:
  """Returns the names of all symbols of a node."""
  if isinstance(node, Symbol):
    return frozenset((node.name,))
  return frozenset().union(*map(symbols, children(node)))


def contains(node: Node, kinds: type | tuple[type, ...]) -> bool:
  """Returns whether a node or a part of it is of given classes."""
  return isinstance(node, kinds) or any(
    contains(part, kinds) for part in children(node)
  )
