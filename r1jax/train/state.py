"""The training state and its layout over the mesh."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import Array
from r1jax.train.optimizer import Optimizer


@chex.dataclass(frozen=True)
class TrainState:
  """The parameters of a model and the state of its optimizer.

  Attributes:
    updates: int32 number of optimizer updates made.
    params: Nested dict of parameters.
    opt_state: State of the optimizer.
  """

  updates: Array
  params: Any
  opt_state: Any


def create(params, tx: Optimizer) -> TrainState:
  """Returns the state before the first update."""
  return TrainState(
    updates=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
  )


def shardings(model: Transformer, tx: Optimizer):
  """Returns a TrainState of NamedShardings; moments follow their weights."""
  layout = model.layout
  of_params = parameters.parameter_shardings(model, layout)
  params = jax.tree.map(
    lambda box: box.value,
    parameters.parameter_shapes(model),
    is_leaf=lambda x: hasattr(x, 'names'),
  )
  abstract = jax.eval_shape(lambda p: create(p, tx), params)
  opt_state = optax.tree.map_params(
    tx,
    lambda x, sharding: x if _is_masked(x) else sharding,
    abstract.opt_state,
    of_params,
    transform_non_params=lambda _: layout.replicated(),
    is_leaf=_is_masked,  # One of several optimizers leaves this weight to others.
  )
  return TrainState(
    updates=layout.replicated(), params=of_params, opt_state=opt_state
  )


def _is_masked(x) -> bool:
  return isinstance(x, optax.MaskedNode)


def abstract(params, tx: Optimizer, layout_of):
  """Returns a TrainState of ShapeDtypeStructs, the target of a restore.

  Args:
    params: Parameters, or their shapes and dtypes.
    tx: The optimizer.
    layout_of: A TrainState of shardings.
  """
  shapes = jax.eval_shape(lambda p: create(p, tx), params)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    layout_of,
  )
