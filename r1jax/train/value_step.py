"""The jitted functions of a value function: prediction and training.

With a shared trunk, `shared_value_loss` adds the value loss to the policy's
loss. With a separate critic, `critic` returns its own jitted update.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.algos import gae, policy_loss
from r1jax.config.schema.rl import GAEConfig
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.model.scoring import last_valid
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch, Rollout
from r1jax.train.make_step import (
  LossOutput,
  constrain,
  make_minibatch_step,
  mean_over_updates,
)
from r1jax.train.optimizer import Optimizer
from r1jax.train.policy_step import rollout_inputs


def values(model: Transformer) -> Callable:
  """Returns value(params, Rollout) → value_BT and final_value_B, jitted.

  final_value_B is the value of the state after a row's last token. Experts that
  a rollout recorded are used again.
  """

  @jax.jit
  def value(params, rollout: Rollout):
    rollout = constrain(model, rollout)
    hidden_BTD = _forward(model, params, rollout).hidden_BTD
    return _values(model, params, hidden_BTD, rollout)

  return value


def shared_value_loss(
  model: Transformer, config: GAEConfig, vf_coef: float
) -> Callable:
  """Returns the value loss of a scalar head on the policy's trunk.

  It is the extra_loss of policy_step.policy, multiplied by vf_coef.
  """

  def extra_loss(
    params, hidden_BTD, batch: RLBatch, totals: policy_loss.Totals
  ):
    loss, metrics = _loss(model, params, hidden_BTD, config, batch, totals)
    return vf_coef * loss, metrics

  return extra_loss


def critic(
  model: Transformer,
  tx: Optimizer,
  config: GAEConfig,
  num_minibatches: int,
  gradient_accumulation_steps: int,
  balancing: LoadBalancingConfig,
) -> Callable:
  """Returns step(state, RLBatch, key) → (state, metrics), jitted.

  Rows are shuffled and split as in a policy update with the same key. The
  critic routes tokens itself, so recorded experts are dropped.
  """

  def loss_fn(params, batch: RLBatch, totals: policy_loss.Totals) -> LossOutput:
    rollout = dataclasses.replace(batch.rollout, experts_BTLA=None)
    out = _forward(model, params, rollout)
    loss, metrics = _loss(model, params, out.hidden_BTD, config, batch, totals)
    return LossOutput(
      loss, metrics, out.routing, 1 / gradient_accumulation_steps
    )

  return make_minibatch_step(
    model,
    tx,
    loss_fn,
    _summary,
    balancing,
    num_minibatches,
    gradient_accumulation_steps,
  )


def _summary(metrics, maxima):
  """Returns the metrics of a step, all of them under 'critic/'."""
  del maxima
  return {
    f'critic/{name.removeprefix("critic/")}': value
    for name, value in mean_over_updates(metrics).items()
  }


def _loss(
  model: Transformer,
  params,
  hidden_BTD,
  config: GAEConfig,
  batch: RLBatch,
  totals: policy_loss.Totals,
):
  """Returns the value loss of a microbatch, and metrics."""
  rollout = batch.rollout
  value_BT, _ = _values(model, params, hidden_BTD, rollout)
  return gae.value_loss(
    config,
    value_BT,
    batch.value_BT,
    batch.return_BT,
    rollout.mask_BT,
    totals.tokens,
  )


def _forward(model: Transformer, params, rollout: Rollout):
  return model.apply(
    {'params': params}, *rollout_inputs(rollout), rollout.experts_BTLA
  )


def _values(model: Transformer, params, hidden_BTD, rollout: Rollout):
  """Returns the value of each token's state, and of each row's final state.

  A token's state is everything before it. With one column of prompt, a:
    tokens        = [a, b, c]
    scalars       = [v(a), v(ab), v(abc)]
    value_BT      = [0, v(a), v(ab)]
    final_value_B = v(abc)
  """
  scalar_BT: Any = model.apply({'params': params}, hidden_BTD, method='scalars')
  before_BT = jnp.pad(scalar_BT[:, :-1], ((0, 0), (1, 0)))
  return (
    jnp.where(rollout.mask_BT, before_BT, 0.0),
    last_valid(scalar_BT, rollout.valid_BT),
  )
