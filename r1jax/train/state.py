"""What training carries from step to step, and how it is laid out."""

import chex
import jax
import jax.numpy as jnp
import optax

from r1jax.model import transformer
from r1jax.model.transformer import Transformer


@chex.dataclass(frozen=True)
class TrainState:
  """Parameters and optimiser.

  Attributes:
    updates: int32, optimiser updates made.
    params: Nested dict.
    opt_state: Optax's.
  """

  updates: chex.Array
  params: chex.ArrayTree
  opt_state: chex.ArrayTree


def create(params, tx: optax.GradientTransformation) -> TrainState:
  return TrainState(
    updates=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
  )


def shardings(model: Transformer, tx: optax.GradientTransformation):
  """A TrainState of NamedShardings: moments lie where their weights lie."""
  layout = model.layout
  of_params = transformer.parameter_shardings(model, layout)
  params = jax.tree.map(
    lambda box: box.value,
    transformer.parameter_shapes(model),
    is_leaf=lambda x: hasattr(x, 'names'),
  )
  abstract = jax.eval_shape(lambda p: create(p, tx), params)
  opt_state = optax.tree.map_params(
    tx,
    lambda _, sharding: sharding,
    abstract.opt_state,
    of_params,
    transform_non_params=lambda _: layout.replicated(),
  )
  return TrainState(
    updates=layout.replicated(), params=of_params, opt_state=opt_state
  )


def abstract(params, tx: optax.GradientTransformation, layout_of):
  """Shapes, dtypes and shardings of a state: what a restore aims at."""
  shapes = jax.eval_shape(lambda p: create(p, tx), params)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    layout_of,
  )
