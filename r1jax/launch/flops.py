"""Counts the FLOPs of a program from its jaxpr.

XLA's own count includes a scanned layer once. Here the body of a scan counts
once an iteration, and a shard_map once a device. The length of a while loop is
known to the data alone: its body counts as often as its name scope says
(`jax.named_scope('loop_4.5')` → 4.5 times; 'upto_8' → the given share of 8
times), else the most iterations that its condition states; if it states none,
as the loop over the microbatches of an RL update, it counts once. Only matrix products are counted; everything else is
small beside them.
"""

import math
import re
from typing import Any

from jax.extend import core
import numpy as np

_FILLED = re.compile(r'\bfilled_(\d\.\d+)')
_LOOP = re.compile(r'\b(loop|upto)_(\d+(?:\.\d+)?)')


def count(jaxpr: core.Jaxpr, fill: float = 1.0) -> dict[str, float]:
  """Returns the FLOPs of all devices together, by kind.

  Args:
    jaxpr: The program.
    fill: The share of its iterations that a loop of at most so many runs.

  Returns:
    A dict of 'dense', ordinary matrix products; 'grouped', ragged products over
    the rows that even loads fill, as their name scope says (`filled_0.8`); and 'kernel', products in Pallas kernels over their
    whole grid, blocks that a causal mask skips included.
  """
  total = {'dense': 0.0, 'grouped': 0.0, 'kernel': 0.0}
  for eqn in jaxpr.eqns:
    name, times, kind = eqn.primitive.name, 1.0, None
    if name == 'dot_general':
      total['dense'] += _dot(eqn)
    elif name.startswith('ragged_dot'):
      filled = _FILLED.search(str(eqn.source_info.name_stack))
      total['grouped'] += _ragged(eqn) * (float(filled[1]) if filled else 1)
    elif name == 'scan':
      times = eqn.params['length']
    elif name == 'while':
      scope = _LOOP.search(str(eqn.source_info.name_stack))
      times = (
        float(scope[2]) * (fill if scope[1] == 'upto' else 1)
        if scope
        else _max_iterations(eqn.params['cond_jaxpr'].jaxpr)
      )
    elif name == 'shard_map':
      times = eqn.params['mesh'].size
    elif name == 'pallas_call':
      times, kind = math.prod(eqn.params['grid_mapping'].grid), 'kernel'
    for inner in _inner(eqn.params):
      for key, flops in count(inner, fill).items():
        total[kind or key] += times * flops
  return total


def _inner(params: dict):
  """Yields the jaxprs in an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _max_iterations(condition: core.Jaxpr) -> int:
  """Returns the integer below which a loop's condition keeps a number, or 1."""
  bounds = [
    int(eqn.invars[1].val)
    for eqn in condition.eqns
    if eqn.primitive.name == 'lt'
    and isinstance(eqn.invars[1], core.Literal)
    and np.asarray(eqn.invars[1].val).dtype.kind in 'iu'
  ]
  return min(bounds, default=1)


def _dot(eqn) -> float:
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
  return (
    2.0
    * math.prod(out.shape)
    * math.prod(lhs.shape[axis] for axis in contracted)
  )


def _ragged(eqn) -> float:
  """FLOPs of a ragged product: each row meets one group's matrix.

  [S, D] × [E, D, F] → [S, F], and for the weights' gradient
  [S, D] × [S, F] → [E, D, F]: 2 · S · D · F both times.
  """
  lhs, rhs, out = (v.aval.shape for v in (*eqn.invars[:2], eqn.outvars[0]))
  if len(out) == 3:
    return 2.0 * lhs[0] * out[1] * out[2]
  return 2.0 * math.prod(lhs) * out[-1] if len(rhs) == 3 else math.nan


def of(function: Any, *args) -> dict[str, float]:
  """Counts the FLOPs of a jitted function at these (abstract) arguments."""
  return count(function.trace(*args).jaxpr.jaxpr)
