"""Builds jitted training steps from loss functions.

A step sums gradients over microbatches, applies one optimizer update, and
adjusts the routing bias of the experts. Every stage's step is built here; the
*_step.py modules only supply loss functions.
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.algos import policy_loss
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model import moe
from r1jax.model.transformer import Transformer
from r1jax.records import PackedRows, RLBatch
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
  update = make_update(tx, loss_fn, balancing)

  @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings(model, tx))
  def step(state: TrainState, batch, *context):
    batch = constrain(model, batch)
    totals = totals_fn(state, batch, *context)
    micros = split_tree(batch, gradient_accumulation_steps)
    state, metrics, _ = update(state, micros, totals)
    return state, metrics

  return step


def make_packed_step(
  model: Transformer,
  tx: Optimizer,
  loss_fn: Callable,
  summary_fn: Callable,
  balancing: LoadBalancingConfig,
  shape: RowShape,
) -> Callable:
  """Returns step(state, RLBatch) → (state, metrics), jitted.

  It makes one update for each of the batch's minibatches, which is one epoch
  over the batch. Microbatches without tokens are not computed. A minibatch
  without a token in the loss leaves the state as it is, and is counted in
  'empty_updates'.

  Args:
    model, tx, balancing: See make_step.
    loss_fn: (params, RLBatch, Totals) → LossOutput.
    summary_fn: (metrics, maxima) → the metrics of the step; both are stacked
      over the updates.
    shape: The shape of the batch.
  """
  update = make_update(tx, loss_fn, balancing)
  rows = shape.num_samples // shape.num_updates

  def update_on_minibatch(state: TrainState, minibatch):
    micros, count = minibatch
    totals = policy_loss.Totals(
      jnp.sum(micros.mask_BT),
      rows,
      num_sequences(micros.segment_BT, micros.prefix_BT),
    )
    learns = totals.tokens > 0
    state, metrics, maxima = update(state, micros, totals, count, learns)
    metrics['empty_updates'] = 1.0 - learns.astype(jnp.float32)
    return state, (metrics, maxima)

  @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings(model, tx))
  def step(state: TrainState, batch: RLBatch):
    micros, count_u = split_packed(model, batch, shape)
    state, (metrics, maxima) = jax.lax.scan(
      update_on_minibatch, state, (micros, count_u)
    )
    return state, summary_fn(metrics, maxima)

  return step


def map_packed(
  model: Transformer, shape: RowShape, function: Callable
) -> Callable:
  """Returns f(batch, *args) → token arrays of the whole batch, to be jitted.

  Args:
    model: The model, whose layout the batch follows.
    shape: The shape of the batch.
    function: (microbatch, *args) → pytree of arrays [rows, T]; the result is
      0 in microbatches without tokens, which are not computed.
  """

  function = traced_once(function)

  def of_batch(batch: RLBatch | PackedRows, *args):
    micros, count_u = split_packed(model, batch, shape)
    micro = lambda u, i: jax.tree.map(lambda x: x[u, i], micros)
    like = jax.eval_shape(function, micro(0, 0), *args)
    empty = jax.tree.map(
      lambda x: jnp.zeros((*micros.mask_BT.shape[:2], *x.shape), x.dtype), like
    )

    def one(u, i, outputs):
      return jax.tree.map(
        lambda whole, part: whole.at[u, i].set(part),
        outputs,
        function(micro(u, i), *args),
      )

    def update(u, outputs):
      return jax.lax.fori_loop(0, count_u[u], partial(one, u), outputs)

    outputs = jax.lax.fori_loop(0, shape.num_updates, update, empty)
    return jax.tree.map(
      lambda x: model.layout.constrain(x.reshape(-1, *x.shape[3:]), 'BT'),
      outputs,
    )

  return of_batch


def split_packed(
  model: Transformer, batch: RLBatch | PackedRows, shape: RowShape
):
  """Returns token arrays [updates, microbatches, rows, T], and the counts.

  The counts are num_microbatches_u of the batch.
  """
  tokens = dataclasses.replace(batch, num_microbatches_u=None)
  rows = shape.rows_of(batch.tokens_BT.shape[1])

  def pieces(x):
    x = x.reshape(shape.num_updates, -1, rows, *x.shape[1:])
    return model.layout.constrain(x, '__BTLA'[: x.ndim])

  return (
    jax.tree.map(pieces, constrain(model, tokens)),
    batch.num_microbatches_u,
  )


def make_update(
  tx: Optimizer, loss_fn: Callable, balancing: LoadBalancingConfig
) -> Callable:
  """Returns update(state, micros, totals, count, learns), for all steps.

  It is to be called under jit, and returns the state, metrics and maxima. The
  leaves of `micros` are stacked over microbatches, of which the first `count`
  are computed, or all if it is None. The state stays as it was unless `learns`.

  Args:
    tx, loss_fn, balancing: See make_step.
  """

  def update(state: TrainState, micros, totals, count=None, learns=True):
    def micro_loss(params, micro, totals):
      out = loss_fn(params, micro, totals)
      loss = out.loss + router_aux_loss(
        out.routing, balancing, out.aux_loss_share
      )
      metrics = out.metrics | {'routing': _summable(out.routing)}
      return loss, (metrics, out.maxima)

    grads, metrics, maxima = _accumulate(
      micro_loss, state.params, micros, totals, count
    )
    routing = metrics.pop('routing')
    state, applied = _apply(state, tx, grads, routing, balancing, learns)
    return state, metrics | applied, maxima

  return update


def mean_over_updates(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Reduces metrics that are stacked over the updates of a step.

  Returns:
    Means; but the sums of 'skipped_updates' and 'empty_updates', and the last
    value of 'lr'.
  """
  means = jax.tree.map(lambda x: jnp.mean(x, 0), metrics)
  return means | {
    'skipped_updates': metrics['skipped_updates'].sum(),
    'empty_updates': metrics['empty_updates'].sum(),
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


def num_sequences(segment_BT, prefix_BT=None):
  """Returns the number of samples in rows of any leading axes, at least 1.

  Segments of a row are counted from 1; shared prompts are no samples. See
  RLBatch and PackedRows.
  """
  count = jnp.sum(segment_BT.max(-1))
  if prefix_BT is not None:
    before = jnp.pad(
      segment_BT[..., :-1], [(0, 0)] * (segment_BT.ndim - 1) + [(1, 0)]
    )
    count -= jnp.sum((segment_BT != before) & (prefix_BT < 0))
  return jnp.maximum(count, 1)


def constrain(model: Transformer, batch):
  """Lays the arrays of a batch out over the mesh, rows first."""

  def pin(x):
    return model.layout.constrain(x, 'BTLA'[: x.ndim])

  return jax.tree.map(pin, batch)


def out_shardings(model: Transformer, tx: Optimizer):
  """Returns the shardings of a step's outputs: the state's, and replicated."""
  return train_state.shardings(model, tx), model.layout.replicated()


def traced_once(function: Callable) -> Callable:
  """Returns the function, which JAX traces once for all arguments of one type.

  The shapes of a loop's carry are known only when its body was traced, and then
  the loop traces it again. Tracing a model takes seconds.
  """
  return jax.jit(function, inline=True)


def split_tree(tree, parts: int):
  """Reshapes each array of a pytree from [B, …] to [parts, B / parts, …]."""
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def _summable(routing: dict[str, moe.Routing]):
  """Drops the assignment of tokens to experts, which does not add up."""
  unassigned: dict[str, Any] = {'expert_BTA': None}
  return {
    stack: routed._replace(**unassigned) for stack, routed in routing.items()
  }


def _accumulate(loss_fn, params, micros, totals, count):
  """Sums gradients and metrics over microbatches.

  Args:
    loss_fn: (params, microbatch, totals) → loss, (metrics, maxima).
    params: Parameters.
    micros: Arrays that are stacked over microbatches.
    totals: Counts of the whole batch that loss_fn needs, such as its tokens.
    count: Number of microbatches that are computed; None for all.

  Returns:
    Gradients, metrics, maxima.
  """

  @traced_once
  def one(params, micro, totals):
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (_, (metrics, maxima)), grads = grad_fn(params, micro, totals)
    return grads, metrics, maxima

  def add(total, micro):
    grads, metrics, maxima = one(params, micro, totals)
    summed = jax.tree.map(jnp.add, total[:2], (grads, metrics))
    return *summed, jax.tree.map(jnp.maximum, total[2], maxima)

  micro = lambda i: jax.tree.map(lambda x: x[i], micros)
  num = jax.tree.leaves(micros)[0].shape[0]
  if num == 1:
    return one(params, micro(0), totals)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(one, params, micro(0), totals),
  )
  if count is None:
    return jax.lax.scan(lambda total, x: (add(total, x), None), zeros, micros)[
      0
    ]
  return jax.lax.fori_loop(
    0, count, lambda i, total: add(total, micro(i)), zeros
  )


def _apply(
  state: TrainState,
  tx: Optimizer,
  grads,
  routing: dict[str, moe.Routing],
  balancing: LoadBalancingConfig,
  learns,
):
  """Applies one optimizer update and one update of the routing bias.

  Unless `learns` the state stays as it was. It does too if the gradient is not
  finite, and then the update is counted in 'skipped_updates'.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)

  def applied() -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(
      updates=state.updates + 1,
      params=_with_balanced_bias(params, routing, balancing),
      opt_state=opt_state,
    )

  metrics = {
    'grad_norm': norm,
    'lr': jnp.float32(tx.learning_rate(state.updates)),
    'skipped_updates': 1.0 - finite.astype(jnp.float32),
  }
  if routing:
    metrics |= moe.load_metrics(
      jnp.concatenate([routed.load_E for routed in routing.values()])
    )
    metrics['moe/dropped'] = sum(
      routed.dropped.sum() for routed in routing.values()
    )
  return jax.lax.cond(finite & learns, applied, lambda: state), metrics


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
