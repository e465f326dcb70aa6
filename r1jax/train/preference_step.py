"""Jitted steps on preferences: reward models, and DPO.

Rows 2p and 2p + 1 of a PairBatch are one pair; x_P2 are its two values.
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax

from r1jax.algos import common, reward_model
from r1jax.algos import dpo as dpo_loss
from r1jax.model import moe, transformer
from r1jax.model.transformer import Transformer, output_head, positions
from r1jax.records import LabelledBatch, PairBatch
from r1jax.train import state as train_state
from r1jax.train import update
from r1jax.train.state import TrainState


def scores(model: Transformer) -> Callable:
  """Returns score(params, batch) → float32 [B], jitted: of a reward model."""

  @jax.jit
  def score(params, batch: PairBatch | LabelledBatch):
    batch = update.constrain(model, batch)
    return transformer.last_scalar(
      model, params, batch.tokens_BT, batch.valid_BT
    )[0]

  return score


def reward(
  model: Transformer,
  tx: optax.GradientTransformation,
  pairwise: reward_model.PairwiseLoss,
  balancing: moe.LoadBalancing,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, batch) → (state, metrics), jitted.

  A PairBatch is learnt from pairwise, a LabelledBatch point-wise.
  """

  def loss_of(score_B, batch, total):
    if isinstance(batch, LabelledBatch):
      return reward_model.pointwise(
        score_B, batch.safe_B, batch.weight_B, total
      )
    score_P2 = _pairs(score_B)
    return pairwise.loss(score_P2[:, 0], score_P2[:, 1], batch.weight_P, total)

  def loss_fn(params, batch, total, live):
    score_B, out = transformer.last_scalar(
      model, params, batch.tokens_BT, batch.valid_BT
    )
    loss, metrics = loss_of(score_B, batch, total)
    loss += update.balance(
      out.routing, balancing, update.live_rows(batch.valid_BT) / live
    )
    return loss, (metrics | {'routing': update.loads(out.routing)}, {})

  @partial(jax.jit, donate_argnums=0, out_shardings=update.outputs(model, tx))
  def step(state: TrainState, batch: PairBatch | LabelledBatch):
    batch = update.constrain(model, batch)
    total = jnp.maximum(jnp.sum(_weight(batch)), 1)
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


@chex.dataclass(frozen=True)
class DPOState:
  """A policy in training, and what its groups weigh.

  Attributes:
    train: Policy parameters and optimiser.
    alpha_g: float32 weights of the groups; None where DPO is plain.
  """

  train: TrainState
  alpha_g: chex.Array | None


def dpo_state(
  params,
  tx: optax.GradientTransformation,
  group_robust: dpo_loss.GroupRobust | None,
) -> DPOState:
  return DPOState(
    train=train_state.create(params, tx),
    alpha_g=jnp.asarray(group_robust.initial()) if group_robust else None,
  )


def dpo_shardings(
  model: Transformer, tx, group_robust: dpo_loss.GroupRobust | None
) -> DPOState:
  return DPOState(
    train=train_state.shardings(model, tx),
    alpha_g=model.layout.replicated() if group_robust else None,
  )


def logps(model: Transformer, gradient_accumulation_steps: int) -> Callable:
  """Returns logp(params, PairBatch) → float32 [P, G], jitted.

  Of whole responses, some pairs at a time.
  """

  @jax.jit
  def logp(params, batch: PairBatch):
    batch = update.constrain(model, batch)
    return _in_parts(model, params, batch, gradient_accumulation_steps)

  return logp


def dpo(
  model: Transformer,
  tx: optax.GradientTransformation,
  config: dpo_loss.DPOLoss,
  group_robust: dpo_loss.GroupRobust | None,
  balancing: moe.LoadBalancing,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, PairBatch, reference) → (state, metrics), jitted.

  The reference's parameters are asked once a batch. Where groups have weights,
  so is the policy before it moves: the weights move first, by the losses of
  the whole batch, and then the policy by the new weights.
  """

  def loss_fn(params, inputs, total, live):
    batch, ref_logp_P2, weight_P = inputs
    logp_P2, out = _logp(model, params, batch)
    loss, metrics = dpo_loss.loss(
      config, logp_P2, ref_logp_P2, weight_P, batch.weight_P, total
    )
    loss += update.balance(
      out.routing, balancing, update.live_rows(batch.valid_BT) / live
    )
    return loss, (metrics | {'routing': update.loads(out.routing)}, {})

  @partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(
      dpo_shardings(model, tx, group_robust),
      model.layout.replicated(),
    ),
  )
  def step(state: DPOState, batch: PairBatch, reference):
    batch = update.constrain(model, batch)
    total = jnp.maximum(jnp.sum(batch.weight_P), 1)
    params, alpha_g = state.train.params, state.alpha_g
    ref_logp_P2 = _in_parts(
      model, reference, batch, gradient_accumulation_steps
    )
    weight_P = jnp.ones_like(batch.weight_P)
    if group_robust:
      log_ratio_P = dpo_loss.log_ratio(
        _in_parts(model, params, batch, gradient_accumulation_steps),
        ref_logp_P2,
      )
      alpha_g = group_robust.update(
        alpha_g, config.per_pair(log_ratio_P), batch.group_P, batch.weight_P
      )
      weight_P = group_robust.pair_weights(alpha_g, batch.group_P)
    live = update.live_rows(batch.valid_BT)
    grads, metrics, _ = update.accumulate(
      lambda params, micro: loss_fn(params, micro, total, live),
      params,
      (batch, ref_logp_P2, weight_P),
      gradient_accumulation_steps,
    )
    routing = metrics.pop('routing')
    train, applied = update.apply(state.train, tx, grads, routing, balancing)
    if group_robust:
      alpha_g = jnp.where(applied['skipped_updates'], state.alpha_g, alpha_g)
    return DPOState(train=train, alpha_g=alpha_g), metrics | applied

  return step


def _weight(batch: PairBatch | LabelledBatch):
  return batch.weight_B if isinstance(batch, LabelledBatch) else batch.weight_P


def _pairs(x_B):
  """[B] → [P, 2]."""
  return x_B.reshape(-1, 2)


def _in_parts(model: Transformer, params, batch: PairBatch, parts: int):
  """logp_P2 without gradients, some pairs at a time."""
  params = jax.lax.stop_gradient(params)
  if parts == 1:
    return _logp(model, params, batch)[0]
  some = jax.tree.map(lambda x: update.split(x, parts), batch)
  found = jax.lax.map(lambda micro: _logp(model, params, micro)[0], some)
  return found.reshape(-1, 2)


def _logp(model: Transformer, params, batch: PairBatch):
  """logp_P2 of whole responses, and the forward pass's Output.

  Token t is predicted at t − 1, so the first token is never asked for:
    tokens  = [a, b, c],  mask = [0, 1, 1]
    hidden  = [h(a), h(ab)]
    logp    = log p(b | a) + log p(c | ab)
  """
  out = model.apply(
    {'params': params},
    batch.tokens_BT,
    positions(batch.valid_BT),
    batch.valid_BT.astype(jnp.int32),
  )
  logp_BT, _ = common.token_logp(
    out.hidden_BTD[:, :-1],
    output_head(model, params),
    batch.tokens_BT[:, 1:],
    layout=model.layout,
  )
  return _pairs(common.masked_sum(logp_BT, batch.mask_BT[:, 1:], 1)), out
