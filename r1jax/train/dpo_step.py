"""The jitted functions of DPO: log-probabilities of responses, and the update.

Rows 2p and 2p + 1 of a PairBatch are pair p; the columns of x_P2 are its chosen
and its rejected response.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.algos import dpo as dpo_loss
from r1jax.config.schema.preferences import DPOLossConfig
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.preference_batches import PairBatch
from r1jax.model.transformer import Transformer, output_head, positions
from r1jax.records import Array
from r1jax.train import state as train_state
from r1jax.train.make_step import (
  LossOutput,
  constrain,
  make_update,
  num_rows,
  split_tree,
)
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


@chex.dataclass(frozen=True)
class DPOState:
  """The training state of a policy, and the weights of its groups.

  Attributes:
    train: Policy parameters and optimizer state.
    alpha_g: float32 group weights of group-robust DPO; None for plain DPO.
  """

  train: TrainState
  alpha_g: Array


def dpo_state(
  params, tx: Optimizer, group_robust: dpo_loss.GroupRobust | None
) -> DPOState:
  """Returns the state before the first step."""
  return DPOState(
    train=train_state.create(params, tx),
    alpha_g=jnp.asarray(group_robust.initial()) if group_robust else None,
  )


def dpo_shardings(
  model: Transformer, tx: Optimizer, group_robust: dpo_loss.GroupRobust | None
) -> DPOState:
  """Returns the shardings of a DPOState."""
  return DPOState(
    train=train_state.shardings(model, tx),
    alpha_g=model.layout.replicated() if group_robust else None,
  )


def response_logps(
  model: Transformer, gradient_accumulation_steps: int
) -> Callable:
  """Returns logp(params, PairBatch) → float32 [P, 2], jitted.

  Log-probabilities of whole responses are computed one microbatch at a time.
  """

  @jax.jit
  def logp(params, batch: PairBatch):
    batch = constrain(model, batch)
    return _logps(model, params, batch, gradient_accumulation_steps)

  return logp


def dpo(
  model: Transformer,
  tx: Optimizer,
  config: DPOLossConfig,
  group_robust: dpo_loss.GroupRobust | None,
  balancing: LoadBalancingConfig,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, PairBatch, ref_params) → (state, metrics), jitted.

  The reference's log-probabilities are computed once per batch. With group
  weights, those of the policy before the update are computed as well: first the
  weights are updated with the losses of the whole batch, then the policy with
  the new weights.
  """

  def loss_fn(params, inputs, totals) -> LossOutput:
    batch, ref_logp_P2, weight_P = inputs
    total_pairs, total_rows = totals
    logp_P2, out = _logp(model, params, batch)
    loss, metrics = dpo_loss.loss(
      config, logp_P2, ref_logp_P2, weight_P, batch.weight_P, total_pairs
    )
    share = num_rows(batch.valid_BT) / total_rows
    return LossOutput(loss, metrics, out.routing, share)

  logps = partial(_logps, parts=gradient_accumulation_steps)
  update = make_update(tx, loss_fn, balancing)

  @partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(
      dpo_shardings(model, tx, group_robust),
      model.layout.replicated(),
    ),
  )
  def step(state: DPOState, batch: PairBatch, ref_params):
    batch = constrain(model, batch)
    totals = jnp.maximum(jnp.sum(batch.weight_P), 1), num_rows(batch.valid_BT)
    params, alpha_g = state.train.params, state.alpha_g
    ref_logp_P2 = logps(model, ref_params, batch)
    weight_P = jnp.ones_like(batch.weight_P)
    if group_robust:
      log_ratio_P = dpo_loss.log_ratio(logps(model, params, batch), ref_logp_P2)
      alpha_g = group_robust.update(
        alpha_g,
        dpo_loss.per_pair(config, log_ratio_P),
        batch.group_P,
        batch.weight_P,
      )
      weight_P = group_robust.pair_weights(alpha_g, batch.group_P)
    inputs = batch, ref_logp_P2, weight_P
    micros = split_tree(inputs, gradient_accumulation_steps)
    train, metrics, _ = update(state.train, micros, totals)
    if group_robust:
      alpha_g = jnp.where(metrics['skipped_updates'], state.alpha_g, alpha_g)
    return DPOState(train=train, alpha_g=alpha_g), metrics

  return step


def _logps(model: Transformer, params, batch: PairBatch, parts: int):
  """Returns logp_P2 without gradients, computed in so many parts."""
  params = jax.lax.stop_gradient(params)
  if parts == 1:
    return _logp(model, params, batch)[0]
  micros = split_tree(batch, parts)
  logp = jax.lax.map(lambda micro: _logp(model, params, micro)[0], micros)
  return logp.reshape(-1, 2)


def _logp(model: Transformer, params, batch: PairBatch):
  """Returns logp_P2 of whole responses, and the model's output.

  Token t is predicted at t − 1, so the first token has no log-probability:
    tokens  = [a, b, c],  mask = [0, 1, 1]
    hidden  = [h(a), h(ab)]
    logp    = log p(b | a) + log p(c | ab)
  """
  out: Any = model.apply(
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
    mask_BT=batch.mask_BT[:, 1:],
  )
  logp_B = jnp.sum(logp_BT, 1)
  return logp_B.reshape(-1, 2), out
