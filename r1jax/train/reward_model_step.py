"""The jitted functions of an outcome reward model: scoring and training."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.algos import reward_model as losses
from r1jax.config.schema.preferences import PairwiseLossConfig
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.preference_batches import LabelledBatch, PairBatch
from r1jax.data.sample_packing import RowShape
from r1jax.model.transformer import Transformer
from r1jax.records import Array, PackedRows
from r1jax.train import make_step, packed_step
from r1jax.train.make_step import LossOutput, num_sequences, out_shardings
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


class _Totals(NamedTuple):
  """What the loss of a microbatch needs to know of the whole batch.

  Attributes:
    safe_B: float32 labels of single responses; None for pairs.
    weight: float32 weight of each pair or response.
    sequences: Number of sequences, by which the balance loss is averaged.
  """

  safe_B: Array | None
  weight: Array
  sequences: Array

  @property
  def weights(self):
    """The sum of the weights, at least 1."""
    return jnp.maximum(jnp.sum(self.weight), 1)


def scores(model: Transformer, shape: RowShape) -> Callable:
  """Returns score(params, batch) → float32 scores of its sequences, jitted.

  There are 2·P of a PairBatch, chosen and rejected in turn, and B of a
  LabelledBatch; 0 for one that only fills the batch.
  """
  of_rows = make_step.map_packed(
    model,
    shape,
    lambda rows, params: packed_step.token_scores(model, params, rows)[0],
  )

  @jax.jit
  def score(params, batch: PairBatch | LabelledBatch):
    num = shape.num_samples * (2 if isinstance(batch, PairBatch) else 1)
    samples, _ = packed_step.sequences(batch.rows, num)
    return samples.sum(of_rows(batch.rows, params), batch.rows.mask_BT)

  return score


def reward_model(
  model: Transformer,
  tx: Optimizer,
  pairwise: PairwiseLossConfig,
  balancing: LoadBalancingConfig,
  shape: RowShape,
) -> Callable:
  """Returns step(state, batch) → (state, metrics), jitted.

  A PairBatch is trained with the pairwise loss, a LabelledBatch with the
  pointwise loss. Sequences 2p and 2p + 1 of a PairBatch are pair p.
  """
  balances = bool(balancing.router_aux_loss_coef)

  def loss_fn(params, rows: PackedRows, totals: _Totals) -> LossOutput:
    score_BT, out = packed_step.token_scores(model, params, rows, balances)
    width = 2 if totals.safe_B is None else 1
    samples, present = packed_step.sequences(rows, width * shape.num_samples)
    score = samples.sum(score_BT, rows.mask_BT)
    weight = totals.weight * present[::width]
    if totals.safe_B is None:
      loss, metrics = losses.pairwise(
        pairwise, score[0::2], score[1::2], weight, totals.weights
      )
    else:
      loss, metrics = losses.pointwise(
        score, totals.safe_B, weight, totals.weights
      )
    share = num_sequences(rows.segment_BT) / totals.sequences
    return LossOutput(loss, metrics, out.routing, share)

  update = packed_step.packed_update(model, tx, loss_fn, balancing, shape)

  @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings(model, tx))
  def step(state: TrainState, batch: PairBatch | LabelledBatch):
    sequences = num_sequences(batch.rows.segment_BT)
    totals = (
      _Totals(batch.safe_B, batch.weight_B, sequences)
      if isinstance(batch, LabelledBatch)
      else _Totals(None, batch.weight_P, sequences)
    )
    return update(state, batch.rows, totals)

  return step
