"""The jitted functions of a process reward model: prediction and training."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.algos import prm
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model.transformer import Transformer
from r1jax.records import Array, PackedRows
from r1jax.train import make_step, packed_step
from r1jax.train.make_step import LossOutput, num_sequences, out_shardings
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


class _Totals(NamedTuple):
  """Counts over the whole batch: its steps, at least 1, and its thoughts."""

  steps: Array
  sequences: Array


def probabilities(model: Transformer, shape: RowShape) -> Callable:
  """Returns probability(params, PackedRows) → float32 [B, T], jitted.

  An entry is the probability that the thought up to this token ends well; every
  process of a run has all of them.
  """
  of_rows = make_step.map_packed(
    model,
    shape,
    lambda rows, params: jax.nn.sigmoid(
      packed_step.token_scores(model, params, rows)[0]
    ),
  )
  return jax.jit(
    lambda params, rows: of_rows(rows, params),
    out_shardings=model.layout.replicated(),
  )


def process_reward_model(
  model: Transformer,
  tx: Optimizer,
  balancing: LoadBalancingConfig,
  shape: RowShape,
) -> Callable:
  """Returns step(state, PackedRows) → (state, metrics), jitted."""
  balances = bool(balancing.router_aux_loss_coef)

  def loss_fn(params, rows: PackedRows, totals: _Totals) -> LossOutput:
    score_BT, out = packed_step.token_scores(model, params, rows, balances)
    loss, metrics = prm.loss(
      score_BT, rows.label_BT, rows.mask_BT, totals.steps
    )
    share = num_sequences(rows.segment_BT) / totals.sequences
    return LossOutput(loss, metrics, out.routing, share)

  update = packed_step.packed_update(model, tx, loss_fn, balancing, shape)

  @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings(model, tx))
  def step(state: TrainState, rows: PackedRows):
    totals = _Totals(
      jnp.maximum(jnp.sum(rows.mask_BT), 1), num_sequences(rows.segment_BT)
    )
    return update(state, rows, totals)

  return step
