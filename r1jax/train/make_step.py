"""Builds jitted training steps from loss functions.

A step sums gradients over microbatches, applies one optimizer update, and
adjusts the routing bias of the experts. Every stage's step is built here; the
*_step.py modules only supply loss functions.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from r1jax.algos import policy_loss
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.model import moe
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch
from r1jax.train import state as train_state
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


class LossOutput(NamedTuple):
  """The output of a loss function for one microbatch.

  Attributes:
    loss: The microbatch's share of the loss of the whole batch, without the
      balance loss of the experts.
    metrics: Metrics that add up over microbatches.
    routing: The routing of each stack of MoE layers.
    aux_loss_share: The microbatch's share of the batch's balance loss, in
      [0, 1].
    maxima: Metrics whose maximum over microbatches is taken.
  """

  loss: jax.Array
  metrics: dict[str, Any]
  routing: dict[str, moe.Routing]
  aux_loss_share: Any
  maxima: Mapping[str, jax.Array] = {}


def make_step(
  model: Transformer,
  tx: Optimizer,
  loss_fn: Callable,
  totals_fn: Callable,
  balancing: LoadBalancingConfig,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, batch, *context) → (state, metrics), jitted.

  Args:
    model: The model in training, whose layout the batch follows.
    tx: Its optimizer.
    loss_fn: (params, microbatch, totals) → LossOutput.
    totals_fn: (state, batch, *context) → whatever loss_fn needs to know of the
      whole batch, such as the number of its tokens.
    balancing: Coefficients of expert load balancing.
    gradient_accumulation_steps: Number of microbatches.
  """
  update = make_update(tx, loss_fn, balancing, gradient_accumulation_steps)

  @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings(model, tx))
  def step(state: TrainState, batch, *context):
    batch = constrain(model, batch)
    totals = totals_fn(state, batch, *context)
    state, metrics, _ = update(state, batch, totals)
    return state, metrics

  return step


def make_minibatch_step(
  model: Transformer,
  tx: Optimizer,
  loss_fn: Callable,
  summary_fn: Callable,
  balancing: LoadBalancingConfig,
  num_minibatches: int,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns step(state, RLBatch, key) → (state, metrics), jitted.

  The rows of the batch are shuffled and split into minibatches, each of which
  makes one optimizer update. It is one epoch over the batch.

  Args:
    model, tx, balancing, gradient_accumulation_steps: See make_step.
    loss_fn: (params, RLBatch, Totals) → LossOutput.
    summary_fn: (metrics, maxima) → the metrics of the step; both are stacked
      over the updates.
    num_minibatches: Number of updates.
  """
  update = make_update(tx, loss_fn, balancing, gradient_accumulation_steps)

  def update_on_minibatch(state: TrainState, batch: RLBatch):
    mask_BT = batch.rollout.mask_BT
    totals = policy_loss.Totals(jnp.sum(mask_BT), mask_BT.shape[0])
    state, metrics, maxima = update(state, batch, totals)
    return state, (metrics, maxima)

  @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings(model, tx))
  def step(state: TrainState, batch: RLBatch, key: jax.Array):
    batch = constrain(model, batch)
    order_B = jax.random.permutation(key, batch.adv_BT.shape[0])
    minibatches = jax.tree.map(
      lambda x: split(x[order_B], num_minibatches), batch
    )
    state, (metrics, maxima) = jax.lax.scan(
      update_on_minibatch, state, minibatches
    )
    return state, summary_fn(metrics, maxima)

  return step


def make_update(
  tx: Optimizer,
  loss_fn: Callable,
  balancing: LoadBalancingConfig,
  gradient_accumulation_steps: int,
) -> Callable:
  """Returns update(state, inputs, totals) → (state, metrics, maxima).

  It is the part that all steps share, to be called under jit.

  Args:
    tx, loss_fn, balancing, gradient_accumulation_steps: See make_step. The
      leaves of `inputs` are split over microbatches along their first axis.
  """

  def update(state: TrainState, inputs, totals):
    def micro_loss(params, micro):
      out = loss_fn(params, micro, totals)
      loss = out.loss + router_aux_loss(
        out.routing, balancing, out.aux_loss_share
      )
      metrics = out.metrics | {'routing': _summable(out.routing)}
      return loss, (metrics, out.maxima)

    grads, metrics, maxima = _accumulate(
      micro_loss, state.params, inputs, gradient_accumulation_steps
    )
    routing = metrics.pop('routing')
    state, applied = _apply(state, tx, grads, routing, balancing)
    return state, metrics | applied, maxima

  return update


def mean_over_updates(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Reduces metrics that are stacked over the updates of a step.

  Returns:
    Means; but the sum of 'skipped_updates', and the last value of 'lr'.
  """
  means = jax.tree.map(lambda x: jnp.mean(x, 0), metrics)
  return means | {
    'skipped_updates': metrics['skipped_updates'].sum(),
    'lr': metrics['lr'][-1],
  }


def router_aux_loss(
  routing: dict[str, moe.Routing], balancing: LoadBalancingConfig, share
):
  """Returns a microbatch's share of α times the balance loss of all layers."""
  if not balancing.router_aux_loss_coef:
    return 0.0
  layers = sum(routed.aux_loss.sum() for routed in routing.values())
  return balancing.router_aux_loss_coef * layers * share


def num_rows(valid_BT):
  """Returns the number of rows that are not empty, at least 1."""
  return jnp.maximum(jnp.sum(valid_BT.any(1)), 1)


def constrain(model: Transformer, batch):
  """Lays the arrays of a batch out over the mesh, rows first."""

  def pin(x):
    return model.layout.constrain(x, 'BTLA'[: x.ndim])

  return jax.tree.map(pin, batch)


def out_shardings(model: Transformer, tx: Optimizer):
  """Returns the shardings of a step's outputs: the state's, and replicated."""
  return train_state.shardings(model, tx), model.layout.replicated()


def split(x, parts: int):
  """Reshapes [B, …] to [parts, B / parts, …]."""
  return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])


def _summable(routing: dict[str, moe.Routing]):
  """Drops the assignment of tokens to experts, which does not add up."""
  unassigned: dict[str, Any] = {'expert_BTA': None}
  return {
    stack: routed._replace(**unassigned) for stack, routed in routing.items()
  }


def _accumulate(loss_fn, params, inputs, gradient_accumulation_steps: int):
  """Sums gradients and metrics over microbatches.

  Args:
    loss_fn: (params, microbatch) → loss, (metrics, maxima).
    params: Parameters.
    inputs: Arrays that are split along their first axis.
    gradient_accumulation_steps: Number of microbatches.

  Returns:
    Gradients, metrics, maxima.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def one(micro):
    (_, (metrics, maxima)), grads = grad_fn(params, micro)
    return grads, metrics, maxima

  if gradient_accumulation_steps == 1:
    return one(inputs)
  micros = jax.tree.map(lambda x: split(x, gradient_accumulation_steps), inputs)
  first = jax.tree.map(lambda x: x[0], micros)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first)
  )

  def add(total, micro):
    grads, metrics, maxima = one(micro)
    summed = jax.tree.map(jnp.add, total[:2], (grads, metrics))
    return (*summed, jax.tree.map(jnp.maximum, total[2], maxima)), None

  return jax.lax.scan(add, zeros, micros)[0]


def _apply(
  state: TrainState,
  tx: Optimizer,
  grads,
  routing: dict[str, moe.Routing],
  balancing: LoadBalancingConfig,
):
  """Applies one optimizer update and one update of the routing bias.

  If the gradient is not finite the state stays as it was, and the update is
  counted in 'skipped_updates'.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    'grad_norm': norm,
    'lr': jnp.float32(tx.learning_rate(state.updates)),
    'skipped_updates': 1.0 - finite.astype(jnp.float32),
  }
  params = _with_balanced_bias(params, routing, balancing)
  if routing:
    metrics |= moe.load_metrics(
      jnp.concatenate([routed.load_E for routed in routing.values()])
    )
    metrics['moe/dropped'] = sum(
      routed.dropped.sum() for routed in routing.values()
    )
  new = TrainState(
    updates=state.updates + 1, params=params, opt_state=opt_state
  )
  chex.assert_trees_all_equal_structs(new, state)
  kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
  return kept, metrics


def _with_balanced_bias(
  params: dict, routing: dict[str, moe.Routing], balancing: LoadBalancingConfig
) -> dict:
  """Returns the parameters with the routing bias moved towards even loads."""
  for stack, routed in routing.items():
    path = moe.BIAS_PATHS[stack]
    bias_LE = moe.updated_bias(
      _leaf(params, path), routed.load_E, balancing.routed_bias_update_rate
    )
    params = _replace(params, path, bias_LE)
  return params


def _leaf(tree: dict, path: tuple[str, ...]):
  for key in path:
    tree = tree[key]
  return tree


def _replace(tree: dict, path: tuple[str, ...], value) -> dict:
  head, *rest = path
  inner = _replace(tree[head], tuple(rest), value) if rest else value
  return {**tree, head: inner}
