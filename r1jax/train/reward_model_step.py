"""The jitted functions of an outcome reward model: scoring and training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.algos import reward_model as losses
from r1jax.config.schema.preferences import PairwiseLossConfig
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.preference_batches import LabelledBatch, PairBatch
from r1jax.model import scoring
from r1jax.model.transformer import Transformer
from r1jax.train.make_step import LossOutput, constrain, make_step, num_rows
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


def scores(model: Transformer) -> Callable:
  """Returns score(params, batch) → float32 [B], jitted: a score per row."""

  @jax.jit
  def score(params, batch: PairBatch | LabelledBatch):
    batch = constrain(model, batch)
    return scoring.sequence_scores(
      model, params, batch.tokens_BT, batch.valid_BT
    )[0]

  return score


def reward_model(
  model: Transformer,
  tx: Optimizer,
  pairwise: PairwiseLossConfig,
  balancing: LoadBalancingConfig,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, batch) → (state, metrics), jitted.

  A PairBatch is trained with the pairwise loss, a LabelledBatch with the
  pointwise loss. Rows 2p and 2p + 1 of a PairBatch are pair p.
  """

  def score_loss(score_B, batch, total_weight):
    if isinstance(batch, LabelledBatch):
      return losses.pointwise(
        score_B, batch.safe_B, batch.weight_B, total_weight
      )
    score_P2 = score_B.reshape(-1, 2)
    return losses.pairwise(
      pairwise, score_P2[:, 0], score_P2[:, 1], batch.weight_P, total_weight
    )

  def loss_fn(params, batch, totals) -> LossOutput:
    total_weight, total_rows = totals
    score_B, out = scoring.sequence_scores(
      model, params, batch.tokens_BT, batch.valid_BT
    )
    loss, metrics = score_loss(score_B, batch, total_weight)
    share = num_rows(batch.valid_BT) / total_rows
    return LossOutput(loss, metrics, out.routing, share)

  def totals_fn(state: TrainState, batch: PairBatch | LabelledBatch):
    del state
    weight = (
      batch.weight_B if isinstance(batch, LabelledBatch) else batch.weight_P
    )
    return jnp.maximum(jnp.sum(weight), 1), num_rows(batch.valid_BT)

  return make_step(
    model, tx, loss_fn, totals_fn, balancing, gradient_accumulation_steps
  )
