"""Arguments of jitted programs as shapes, dtypes and shardings."""

from collections.abc import Callable

import jax

from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.sharding import Layout
from r1jax.train import state as train_state
from r1jax.train.state import TrainState


def arrays(layout: Layout, rows: int, tokens: int) -> Callable:
  """Returns array(letters, dtype) for a batch of this shape.

  array('BT', dtype) has the whole shape, array('B', dtype) its rows alone.
  """

  def array(letters: str, dtype):
    return jax.ShapeDtypeStruct(
      (rows, tokens)[: len(letters)], dtype, sharding=layout.sharding(letters)
    )

  return array


def params_of(model: Transformer):
  """Returns a model's parameters as shapes and dtypes."""
  return jax.tree.map(
    lambda box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype),
    parameters.parameter_shapes(model),
    is_leaf=lambda x: hasattr(x, 'names'),
  )


def train_state_of(model: Transformer, tx) -> TrainState:
  """Returns the TrainState of a model and an optimizer, laid out."""
  return train_state.abstract(
    params_of(model), tx, train_state.shardings(model, tx)
  )
