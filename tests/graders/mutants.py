"""Programs with one operator, comparison or number changed."""

import ast
from collections.abc import Iterator
import copy

_SWAPS = {
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Add,
  ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult,
  ast.Mod: ast.FloorDiv,
  ast.Lt: ast.LtE,
  ast.LtE: ast.Lt,
  ast.Gt: ast.GtE,
  ast.GtE: ast.Gt,
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.And: ast.Or,
  ast.Or: ast.And,
  ast.In: ast.NotIn,
  ast.NotIn: ast.In,
}


def of(source: str) -> Iterator[str]:
  """Each of a program's mutants, in the order of its text."""
  tree = ast.parse(source)
  for index, node in enumerate(ast.walk(tree)):
    changed = copy.deepcopy(tree)
    twin = next(
      other for i, other in enumerate(ast.walk(changed)) if i == index
    )
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
      if type(node.op) not in _SWAPS:
        continue
      twin.op = _SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
      twin.ops[0] = _SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.Constant) and type(node.value) is int:
      twin.value += 1
    else:
      continue
    yield ast.unparse(changed)
