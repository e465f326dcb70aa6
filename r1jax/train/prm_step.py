"""The jitted functions of a process reward model: prediction and training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.algos import prm
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.model import scoring
from r1jax.model.transformer import Transformer
from r1jax.records import StepLabelBatch
from r1jax.train.make_step import LossOutput, make_step, num_rows
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


def probabilities(model: Transformer) -> Callable:
  """Returns probability(params, tokens_BT, valid_BT) → float32 [B, T], jitted.

  An entry is the probability that the thought up to this token ends well.
  """

  @jax.jit
  def probability(params, tokens_BT, valid_BT):
    return jax.nn.sigmoid(
      scoring.token_scores(model, params, tokens_BT, valid_BT)[0]
    )

  return probability


def process_reward_model(
  model: Transformer,
  tx: Optimizer,
  balancing: LoadBalancingConfig,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, StepLabelBatch) → (state, metrics), jitted."""

  def loss_fn(params, batch: StepLabelBatch, totals) -> LossOutput:
    total_weight, total_rows = totals
    score_BT, out = scoring.token_scores(
      model, params, batch.tokens_BT, batch.valid_BT
    )
    loss, metrics = prm.loss(
      score_BT, batch.label_BT, batch.weight_BT, total_weight
    )
    share = num_rows(batch.valid_BT) / total_rows
    return LossOutput(loss, metrics, out.routing, share)

  def totals_fn(state: TrainState, batch: StepLabelBatch):
    del state
    return jnp.maximum(jnp.sum(batch.weight_BT), 1), num_rows(batch.valid_BT)

  return make_step(
    model, tx, loss_fn, totals_fn, balancing, gradient_accumulation_steps
  )
