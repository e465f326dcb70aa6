"""Jitted steps of process reward models: a number after each step of a
thought."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from r1jax.algos import prm as process
from r1jax.model import moe, transformer
from r1jax.model.transformer import Transformer
from r1jax.records import StepLabelBatch
from r1jax.train import update
from r1jax.train.state import TrainState


def chances(model: Transformer) -> Callable:
  """Returns chance(params, tokens_BT, valid_BT) → float32 [B, T], jitted: that
  what stands there until each token ends well."""

  @jax.jit
  def chance(params, tokens_BT, valid_BT):
    return jax.nn.sigmoid(
      transformer.all_scalars(model, params, tokens_BT, valid_BT)[0]
    )

  return chance


def learn(
  model: Transformer,
  tx: optax.GradientTransformation,
  balancing: moe.LoadBalancing,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, StepLabelBatch) → (state, metrics), jitted."""

  def loss_fn(params, batch: StepLabelBatch, total, live):
    score_BT, out = transformer.all_scalars(
      model, params, batch.tokens_BT, batch.valid_BT
    )
    loss, metrics = process.loss(
      score_BT, batch.label_BT, batch.weight_BT, total
    )
    loss += update.balance(
      out.routing, balancing, update.live_rows(batch.valid_BT) / live
    )
    return loss, (metrics | {'routing': update.loads(out.routing)}, {})

  @partial(jax.jit, donate_argnums=0, out_shardings=update.outputs(model, tx))
  def step(state: TrainState, batch: StepLabelBatch):
    batch = update.constrain(model, batch)
    total = jnp.maximum(jnp.sum(batch.weight_BT), 1)
    live = update.live_rows(batch.valid_BT)
    grads, metrics, _ = update.accumulate(
      lambda params, micro: loss_fn(params, micro, total, live),
      state.params,
      batch,
      gradient_accumulation_steps,
    )
    routing = metrics.pop('routing')
    state, applied = update.apply(state, tx, grads, routing, balancing)
    return state, metrics | applied

  return step
