"""The jitted steps of a value function: what states are worth, and learning it.

It shares the policy's trunk, then `shared` is what policy updates learn of it;
or it is a transformer of its own, which `critic` updates.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from r1jax.algos import gae, policy_loss
from r1jax.model import moe
from r1jax.model.transformer import Transformer, last_of
from r1jax.records import RLBatch, Rollout
from r1jax.train import update
from r1jax.train.state import TrainState
from r1jax.train.step import rollout_inputs


def values(model: Transformer) -> Callable:
  """Returns value(params, rollout) → value_BT and after_B, jitted.

  after_B is of the state that a row was left in. Where a rollout holds its
  experts, these are used again.
  """

  @jax.jit
  def value(params, rollout: Rollout):
    rollout = update.constrain(model, rollout)
    hidden_BTD = _pass(model, params, rollout).hidden_BTD
    return _values(model, params, hidden_BTD, rollout)

  return value


def shared(model: Transformer, config: gae.GAE, coef: float) -> Callable:
  """What a policy update learns besides, see step.policy: its scalar head is
  the value, and `coef` times its loss is added to the policy's."""

  def also(params, hidden_BTD, batch: RLBatch, totals: policy_loss.Totals):
    loss, metrics = _loss(model, params, hidden_BTD, config, batch, totals)
    return coef * loss, metrics

  return also


def critic(
  model: Transformer,
  tx: optax.GradientTransformation,
  config: gae.GAE,
  num_minibatches: int,
  gradient_accumulation_steps: int,
  balancing: moe.LoadBalancing,
) -> Callable:
  """Returns step(state, RLBatch, key) → (state, metrics), jitted.

  Rows are shuffled and split as a policy update with this key does it; experts
  are the critic's own.
  """

  def loss_fn(params, batch: RLBatch, totals: policy_loss.Totals):
    out = _pass(model, params, batch.rollout)
    loss, metrics = _loss(model, params, out.hidden_BTD, config, batch, totals)
    loss += update.balance(
      out.routing, balancing, 1 / gradient_accumulation_steps
    )
    return loss, (metrics | {'routing': update.loads(out.routing)}, {})

  epoch = update.epoch(
    model, tx, loss_fn, num_minibatches, gradient_accumulation_steps, balancing
  )

  @partial(jax.jit, donate_argnums=0, out_shardings=update.outputs(model, tx))
  def step(state: TrainState, batch: RLBatch, key: jax.Array):
    own = batch.replace(rollout=batch.rollout.replace(experts_BTLA=None))
    state, metrics, _ = epoch(state, own, key)
    return state, {
      f'critic/{name.removeprefix("critic/")}': value
      for name, value in update.told(metrics).items()
    }

  return step


def _loss(
  model: Transformer,
  params,
  hidden_BTD,
  config: gae.GAE,
  batch: RLBatch,
  totals: policy_loss.Totals,
):
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


def _pass(model: Transformer, params, rollout: Rollout):
  return model.apply(
    {'params': params}, *rollout_inputs(rollout), rollout.experts_BTLA
  )


def _values(model: Transformer, params, hidden_BTD, rollout: Rollout):
  """Of the state that each token was drawn in, and that its row was left in.

  With one column of prompt, a:
    tokens   = [a, b, c]
    scalars  = [v(a), v(ab), v(abc)]
    value_BT = [0, v(a), v(ab)]      after_B = v(abc)
  """
  scalar_BT = model.apply({'params': params}, hidden_BTD, method='scalars')
  before_BT = jnp.pad(scalar_BT[:, :-1], ((0, 0), (1, 0)))
  return (
    jnp.where(rollout.mask_BT, before_BT, 0.0),
    last_of(scalar_BT, rollout.valid_BT),
  )
