"""Sums and products of matrices, entry by entry, without evaluating them."""

from r1jax.graders.mathematics.nodes import (
  Matrix,
  Node,
  Operation,
  TooLarge,
  contains,
)

_MAX_ENTRIES = 100
Rows = tuple[tuple[Node, ...], ...]


def matrix(node: Node) -> Rows | None:
  """Returns the entries of a matrix; None if a node stands for none.

  Raises:
    TooLarge: a product has too many entries.
  """
  match node:
    case Matrix(rows=rows):
      return rows if rows and len({*map(len, rows)}) == 1 else None
    case Operation(name='neg', args=(inner,)):
      return _scaled(inner, lambda entry: Operation('neg', (entry,)))
    case Operation(name='div', args=(inner, under)):
      return _scaled(inner, lambda entry: Operation('div', (entry, under)))
    case Operation(name='add', args=parts) if contains(node, Matrix):
      return _sum([matrix(part) for part in parts])
    case Operation(name='mul', args=(left, right)) if contains(node, Matrix):
      return _product(left, right)
  return None


def _scaled(node: Node, scale) -> Rows | None:
  rows = matrix(node)
  if rows is None:
    return None
  return tuple(tuple(map(scale, row)) for row in rows)


def _sum(parts: list[Rows | None]) -> Rows | None:
  total = parts[0]
  for part in parts[1:]:
    if total is None or part is None:
      return None
    if len(total) != len(part) or len(total[0]) != len(part[0]):
      return None
    total = tuple(
      tuple(Operation('add', pair) for pair in zip(*rows))
      for rows in zip(total, part)
    )
  return total


def _product(left: Node, right: Node) -> Rows | None:
  a, b = matrix(left), matrix(right)
  if a is None and b is None:
    return None
  if a is None or b is None:
    scalar, inner = (left, right) if a is None else (right, left)
    return _scaled(inner, lambda entry: Operation('mul', (scalar, entry)))
  if len(a[0]) != len(b):
    return None
  if len(a) * len(b) * len(b[0]) > _MAX_ENTRIES:
    raise TooLarge('a large product of matrices')
  return tuple(
    tuple(
      Operation(
        'add', tuple(Operation('mul', pair) for pair in zip(row, column))
      )
      for column in zip(*b)
    )
    for row in a
  )
