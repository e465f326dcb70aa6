"""The parts that steps on packed sequences share: forward pass and update."""

from collections.abc import Callable
from typing import Any

import jax

from r1jax.algos import common
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model.transformer import Transformer
from r1jax.records import PackedRows
from r1jax.train import make_step
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


def forward(
  model: Transformer, params, rows: PackedRows, balances: bool = False
) -> Any:
  """Returns the model's output; sequences of a row do not see each other.

  Args:
    model, params: The model.
    rows: The rows, or a microbatch of them.
    balances: Whether the experts' balance loss is computed for each sequence.
  """
  return model.apply(
    {'params': params},
    rows.tokens_BT,
    rows.position_BT,
    rows.segment_BT,
    None,
    rows.segment_BT if balances else None,
  )


def token_scores(
  model: Transformer, params, rows: PackedRows, balances: bool = False
):
  """Returns the scalar head's output, float32 [B, T], and the model's output.

  Args:
    model, params: A model with a scalar head.
    rows, balances: See forward.
  """
  out = forward(model, params, rows, balances)
  return model.apply({'params': params}, out.hidden_BTD, method='scalars'), out


def sequences(rows: PackedRows, num: int):
  """Returns the sequences that tokens belong to, and which of them are read.

  Args:
    rows: The rows, or a microbatch of them.
    num: Number of sequences of the whole batch; static under jit.

  Returns:
    common.Samples, and float32 [num]: 1 for a sequence with a token in the mask
    of these rows, 0 for one that is not among them.
  """
  samples = common.Samples(rows.sample_BT, num)
  return samples, (samples.sum(1.0, rows.mask_BT) > 0).astype('float32')


def packed_update(
  model: Transformer,
  tx: Optimizer,
  loss_fn: Callable,
  balancing: LoadBalancingConfig,
  shape: RowShape,
) -> Callable:
  """Returns update(state, PackedRows, totals) → (state, metrics), for jit.

  The gradients of as many microbatches are summed as hold tokens: one program
  serves batches of all lengths.

  Args:
    model: The model in training, whose layout the rows follow.
    tx: Its optimizer.
    loss_fn: (params, microbatch of rows, totals) → LossOutput.
    balancing: Coefficients of expert load balancing.
    shape: The shape of the rows, of one update.
  """
  update = make_step.make_update(tx, loss_fn, balancing)

  def update_on(state: TrainState, rows: PackedRows, totals):
    micros, (count,) = make_step.split_packed(model, rows, shape)
    micros = jax.tree.map(lambda x: x[0], micros)
    state, metrics, _ = update(state, micros, totals, count)
    return state, metrics

  return update_on
