"""Arguments of jitted programs as shapes, dtypes and shardings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.data.sample_packing import RowShape
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import PackedRows
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


def packed_rows(
  layout: Layout, shape: RowShape, labelled: bool = False
) -> PackedRows:
  """Returns the rows of the largest batch as shapes and shardings.

  Args:
    layout: The mesh.
    shape: Shape of the rows, of one update.
    labelled: Whether they have labels of steps.
  """
  num_rows = shape.max_microbatches * shape.microbatch_rows
  array = arrays(layout, num_rows, shape.row_tokens)
  return PackedRows(
    tokens_BT=array('BT', jnp.int32),
    position_BT=array('BT', jnp.int32),
    segment_BT=array('BT', jnp.int32),
    sample_BT=array('BT', jnp.int32),
    mask_BT=array('BT', bool),
    num_microbatches_u=jax.ShapeDtypeStruct(
      (1,), jnp.int32, sharding=layout.replicated()
    ),
    label_BT=array('BT', jnp.float32) if labelled else None,
  )


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
