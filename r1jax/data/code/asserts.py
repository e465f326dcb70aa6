"""Takes an assert apart: the call, what its value goes through, the claim."""

import ast
import builtins
from collections.abc import Callable, Sequence
import dataclasses

AS_JSON = 'tuples as lists'  # No built-in: no assert can name it.


def _as_json(value):
  """JSON knows no tuples: where tests are JSON, one counts as a list."""
  if isinstance(value, (list, tuple)):
    return [_as_json(item) for item in value]
  return value


# What a value may go through on its way to be compared: each costs no more
# than the value's size.
THROUGH = {
  name: getattr(builtins, name)
  for name in (
    'abs',
    'bool',
    'dict',
    'float',
    'int',
    'len',
    'list',
    'max',
    'min',
    'round',
    'set',
    'sorted',
    'str',
    'sum',
    'tuple',
  )
} | {AS_JSON: _as_json}


class NotAClaim(Exception):
  """An assert in a form that this file does not know."""


@dataclasses.dataclass(frozen=True)
class Claim:
  """What one assert says; nodes of its syntax tree, not yet evaluated.

  Attributes:
    call: The node of the call.
    relation: One of code_cases.RELATIONS.
    expected, tolerance: Nodes.
    through: Names, each with its further argument nodes.
    test: The whole, for a judge.
  """

  call: ast.expr
  relation: str
  expected: ast.expr | None = None
  tolerance: Sequence[ast.expr] = ()
  through: Sequence[tuple[str, Sequence[ast.expr]]] = ()
  test: ast.expr | None = None


def claims(test: ast.expr, is_call: Callable[[ast.expr], bool]) -> list[Claim]:
  """The claims of an asserted expression, all of which must hold.

  Args:
    test: The expression.
    is_call: Whether a node is the call under test.

  Raises:
    NotAClaim: it claims something of no known form.
  """
  if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
    return [claim for part in test.values for claim in claims(part, is_call)]
  return [_claim(test, is_call)]


def _claim(test: ast.expr, is_call) -> Claim:
  calls = _outermost(test, is_call)
  if len(calls) != 1:
    raise NotAClaim(f'{len(calls)} calls of the answer in one claim')
  peeled = _peel(test, is_call)
  if peeled:
    return Claim(relation='true', **peeled)
  if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
    peeled = _peel(test.operand, is_call)
    if peeled:
      return Claim(relation='false', **peeled)
  found = None
  if isinstance(test, ast.Compare) and len(test.ops) == 1:
    found = _comparison(test, is_call)
  if _named(test, 'math.isclose') and len(test.args) == 2:
    found = _close(test, is_call)
  return found or Claim(call=calls[0], relation='judge', test=test)


def _outermost(node: ast.AST, is_call) -> list[ast.expr]:
  """Calls, but none in an argument of another: f([Pair(5, 24)])."""
  if is_call(node):
    return [node]
  return [
    call
    for child in ast.iter_child_nodes(node)
    for call in _outermost(child, is_call)
  ]


_SYMMETRIC = {ast.Eq: 'equal', ast.NotEq: 'unequal', ast.Is: 'same'}


def _comparison(test: ast.Compare, is_call) -> Claim | None:
  op, left, right = type(test.ops[0]), test.left, test.comparators[0]
  if op in (ast.Lt, ast.LtE) and (
    _named(left, 'abs') or _named(left, 'math.fabs')
  ):
    inner = left.args[0]
    if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub):
      for value, expected in (
        (inner.left, inner.right),
        (inner.right, inner.left),
      ):
        peeled = _peel(value, is_call)
        if peeled:
          return Claim(
            relation='near' if op is ast.Lt else 'at_most',
            expected=expected,
            tolerance=[right],
            **peeled,
          )
  if op is ast.In and (peeled := _peel(left, is_call)):
    return Claim(relation='in', expected=right, **peeled)
  if op in _SYMMETRIC:
    for value, expected in ((left, right), (right, left)):
      peeled = _peel(value, is_call)
      if peeled:
        return Claim(relation=_SYMMETRIC[op], expected=expected, **peeled)
  return None


def _close(test: ast.Call, is_call) -> Claim | None:
  given = {word.arg: word.value for word in test.keywords}
  for value, expected in (test.args, test.args[::-1]):
    peeled = _peel(value, is_call)
    if peeled:
      return Claim(
        relation='close',
        expected=expected,
        tolerance=[
          given.get('rel_tol', ast.Constant(1e-9)),
          given.get('abs_tol', ast.Constant(0.0)),
        ],
        **peeled,
      )
  return None


def _peel(node: ast.expr, is_call) -> dict | None:
  """The call, and what it goes through: of `tuple(sorted(f(x)))` f(x), …"""
  through = []
  while not is_call(node):
    if not (
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Name)
      and node.func.id in THROUGH
      and node.args
      and not node.keywords
    ):
      return None
    through.insert(0, (node.func.id, node.args[1:]))
    node = node.args[0]
  return {'call': node, 'through': through}


def _named(node: ast.expr, name: str) -> bool:
  return isinstance(node, ast.Call) and ast.unparse(node.func) == name
