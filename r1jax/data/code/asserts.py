"""Parses asserts into a call, transforms of its value, and a relation."""

import ast
import builtins
from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

TUPLES_TO_LISTS = 'tuples as lists'  # No built-in, so no assert can name it.


def _tuples_to_lists(value):
  """Converts tuples to lists, since tests in JSON cannot tell them apart."""
  if isinstance(value, (list, tuple)):
    return [_tuples_to_lists(item) for item in value]
  return value


# Functions that may be applied to a returned value before it is compared. They
# run outside the sandbox, so each must be linear in the value's size (sorted,
# nearly).
TRANSFORMS = {
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
} | {TUPLES_TO_LISTS: _tuples_to_lists}


class UnsupportedAssertion(Exception):
  """Raised for an assert that cannot be converted."""


@dataclasses.dataclass(frozen=True)
class Assertion:
  """One assertion about a call, as nodes of the syntax tree.

  Attributes:
    call: The call under test.
    relation: One of cases.RELATIONS.
    expected: The expected value, or None.
    tolerance: The tolerances of the relation; see cases.RELATIONS.
    transforms: Names of TRANSFORMS to apply to the call's value, in order,
      each with the nodes of its further arguments.
    test: The whole asserted expression, for the relation 'checker'.
  """

  call: ast.expr
  relation: str
  expected: ast.expr | None = None
  tolerance: Sequence[ast.expr] = ()
  transforms: Sequence[tuple[str, Sequence[ast.expr]]] = ()
  test: ast.expr | None = None


def parse_assertions(
  test: ast.expr, is_call: Callable[[ast.AST], bool]
) -> list[Assertion]:
  """Parses an asserted expression; `and` joins several assertions.

  Args:
    test: The expression.
    is_call: Returns whether a node is the call under test.

  Raises:
    UnsupportedAssertion: an assertion does not have exactly one call.
  """
  if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
    return [
      one for part in test.values for one in parse_assertions(part, is_call)
    ]
  return [_parse_one(test, is_call)]


def _parse_one(test: ast.expr, is_call) -> Assertion:
  calls = _outermost(test, is_call)
  if len(calls) != 1:
    raise UnsupportedAssertion(
      f'{len(calls)} calls of the program in one assertion, which needs one'
    )
  peeled = _peel(test, is_call)
  if peeled:
    return Assertion(relation='true', **peeled)
  if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
    peeled = _peel(test.operand, is_call)
    if peeled:
      return Assertion(relation='false', **peeled)
  found = None
  if isinstance(test, ast.Compare) and len(test.ops) == 1:
    found = _comparison(test, is_call)
  if (
    isinstance(test, ast.Call)
    and _named(test, 'math.isclose')
    and len(test.args) == 2
  ):
    found = _close(test, is_call)
  return found or Assertion(call=calls[0], relation='checker', test=test)


def _outermost(node: Any, is_call) -> list[ast.expr]:
  """Returns the outermost calls, as f but not Pair in f([Pair(5, 24)])."""
  if is_call(node):
    return [node]
  return [
    call
    for child in ast.iter_child_nodes(node)
    for call in _outermost(child, is_call)
  ]


_SYMMETRIC = {ast.Eq: 'equal', ast.NotEq: 'unequal', ast.Is: 'same'}


def _comparison(test: ast.Compare, is_call) -> Assertion | None:
  """Parses a comparison with an expected value; None if it is another."""
  op, left, right = type(test.ops[0]), test.left, test.comparators[0]
  if (
    op in (ast.Lt, ast.LtE)
    and isinstance(left, ast.Call)
    and (_named(left, 'abs') or _named(left, 'math.fabs'))
  ):
    inner = left.args[0]
    if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub):
      for value, expected in (
        (inner.left, inner.right),
        (inner.right, inner.left),
      ):
        peeled = _peel(value, is_call)
        if peeled:
          return Assertion(
            relation='near' if op is ast.Lt else 'at_most',
            expected=expected,
            tolerance=[right],
            **peeled,
          )
  if op is ast.In and (peeled := _peel(left, is_call)):
    return Assertion(relation='in', expected=right, **peeled)
  if op in _SYMMETRIC:
    for value, expected in ((left, right), (right, left)):
      peeled = _peel(value, is_call)
      if peeled:
        return Assertion(relation=_SYMMETRIC[op], expected=expected, **peeled)
  return None


def _close(test: ast.Call, is_call) -> Assertion | None:
  """Parses a call of math.isclose; None if neither argument is the call."""
  given = {word.arg: word.value for word in test.keywords}
  for value, expected in (test.args, test.args[::-1]):
    peeled = _peel(value, is_call)
    if peeled:
      return Assertion(
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
  """Splits transforms from a call: tuple(sorted(f(x))) → f(x), sorted, tuple.

  Returns:
    The attributes call and transforms of an Assertion; None if the node is not
    a call with known transforms.
  """
  transforms: list = []
  while not is_call(node):
    if not (
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Name)
      and node.func.id in TRANSFORMS
      and node.args
      and not node.keywords
    ):
      return None
    transforms.insert(0, (node.func.id, node.args[1:]))
    node = node.args[0]
  return {'call': node, 'transforms': transforms}


def _named(node: ast.expr, name: str) -> bool:
  """Returns whether a node is a call of the function of a name."""
  return isinstance(node, ast.Call) and ast.unparse(node.func) == name
