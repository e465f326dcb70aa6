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
from r1jax.data.sample_packing import RowShape
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch
from r1jax.train import make_step
from r1jax.train.make_step import LossOutput
from r1jax.train.optimizer import Optimizer
from r1jax.train.policy_step import sequence_inputs, token_inputs


def values(model: Transformer, shape: RowShape) -> Callable:
  """Returns value(params, RLBatch) → value_BT and after_BT, jitted.

  value_BT is the value of the state in which each token was sampled, after_BT
  that of the state after it. Experts that a batch recorded are used again.
  """

  def of_microbatch(micro: RLBatch, params):
    hidden_BTD = _forward(model, params, micro).hidden_BTD
    return _values(model, params, hidden_BTD, micro)

  of_batch = make_step.map_packed(model, shape, of_microbatch)
  return jax.jit(lambda params, batch: of_batch(batch, params))


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
  shape: RowShape,
  balancing: LoadBalancingConfig,
) -> Callable:
  """Returns step(state, RLBatch) → (state, metrics), jitted.

  The critic routes tokens itself, so recorded experts are dropped.
  """

  def loss_fn(params, batch: RLBatch, totals: policy_loss.Totals) -> LossOutput:
    batch = dataclasses.replace(batch, experts_BTLA=None)
    balances = bool(balancing.router_aux_loss_coef)
    out = _forward(model, params, batch, balances)
    loss, metrics = _loss(model, params, out.hidden_BTD, config, batch, totals)
    return LossOutput(
      loss,
      metrics,
      out.routing,
      make_step.num_sequences(batch.segment_BT, batch.prefix_BT)
      / totals.sequences,
    )

  return make_step.make_packed_step(
    model, tx, loss_fn, _summary, balancing, shape
  )


def _summary(metrics, maxima):
  """Returns the metrics of a step, all of them under 'critic/'."""
  del maxima
  return {
    f'critic/{name.removeprefix("critic/")}': value
    for name, value in make_step.mean_over_updates(metrics).items()
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
  value_BT, _ = _values(model, params, hidden_BTD, batch)
  return gae.value_loss(
    config,
    value_BT,
    batch.value_BT,
    batch.return_BT,
    batch.mask_BT,
    totals.tokens,
  )


def _forward(
  model: Transformer, params, batch: RLBatch, balances: bool = False
):
  return model.apply(
    {'params': params},
    *token_inputs(batch),
    batch.experts_BTLA,
    *sequence_inputs(batch, balances),
  )


def _values(model: Transformer, params, hidden_BTD, batch: RLBatch):
  """Returns the values of the states before and after each token.

  With one sample of the prompt a:
    tokens   = [a, b, c]
    after_BT = [v(a), v(ab), v(abc)]
    value_BT = [0, v(a), v(ab)]
  """
  after_BT: Any = model.apply({'params': params}, hidden_BTD, method='scalars')
  before_BT = jnp.pad(after_BT[:, :-1], ((0, 0), (1, 0)))
  return jnp.where(batch.mask_BT, before_BT, 0.0), after_BT
