"""How a loss becomes updates: gradient_accumulation_steps, minibatches, and the optimiser."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from r1jax.algos import policy_loss
from r1jax.model import moe
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch
from r1jax.train import state as train_state
from r1jax.train.state import TrainState


def epoch(
  model: Transformer,
  tx: optax.GradientTransformation,
  loss_fn: Callable,
  num_minibatches: int,
  gradient_accumulation_steps: int,
  balancing: moe.LoadBalancing,
) -> Callable:
  """Returns run(state, RLBatch, key) → (state, sums, largest), to be jitted.

  The rows are shuffled and cut into `minibatches`, each an optimiser update,
  each summed over `microbatches`. What is told of the updates is stacked.

  Args:
    model, tx, balancing: Of what is trained.
    loss_fn: (params, RLBatch, Totals) → loss, (sums, largest), see accumulate;
      'routing' is among the sums.
    minibatches, gradient_accumulation_steps: How rows are split.
  """

  def one(state: TrainState, batch: RLBatch):
    mask_BT = batch.rollout.mask_BT
    totals = policy_loss.Totals(jnp.sum(mask_BT), mask_BT.shape[0])
    grads, metrics, largest = accumulate(
      lambda params, micro: loss_fn(params, micro, totals),
      state.params,
      batch,
      gradient_accumulation_steps,
    )
    routing = metrics.pop('routing')
    state, applied = apply(state, tx, grads, routing, balancing)
    return state, (metrics | applied, largest)

  def run(state: TrainState, batch: RLBatch, key: jax.Array):
    batch = constrain(model, batch)
    order_B = jax.random.permutation(key, batch.adv_BT.shape[0])
    batch = jax.tree.map(lambda x: split(x[order_B], num_minibatches), batch)
    state, (metrics, largest) = jax.lax.scan(one, state, batch)
    return state, metrics, largest

  return run


def told(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Means over the updates of a step; what was skipped is counted."""
  means = jax.tree.map(lambda x: jnp.mean(x, 0), metrics)
  return means | {'skipped_updates': metrics['skipped_updates'].sum()}


def loads(routing: dict[str, moe.Routing]):
  """What adds up over gradient_accumulation_steps: not which expert was whose."""
  return {
    stack: routed._replace(expert_BTA=None) for stack, routed in routing.items()
  }


def balance(
  routing: dict[str, moe.Routing], balancing: moe.LoadBalancing, share
):
  """α times the balance loss of all layers, times a microbatch's share."""
  if not balancing.router_aux_loss_coef:
    return 0.0
  layers = sum(routed.aux_loss.sum() for routed in routing.values())
  return balancing.router_aux_loss_coef * layers * share


def live_rows(valid_BT):
  """How many rows are not empty: what the balance loss is a mean over."""
  return jnp.maximum(jnp.sum(valid_BT.any(1)), 1)


def constrain(model: Transformer, batch):
  def pin(x):
    return model.layout.constrain(x, 'BTLA'[: x.ndim])

  return jax.tree.map(pin, batch)


def outputs(model: Transformer, tx):
  """The state leaves a step laid out as it came; metrics are whole."""
  return train_state.shardings(model, tx), model.layout.replicated()


def split(x, parts: int):
  return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])


def accumulate(loss_fn, params, batch, gradient_accumulation_steps: int):
  """Gradients over microbatches of the rows.

  loss_fn(params, micro) → loss, (sums, largest): dicts of what adds up over
  gradient_accumulation_steps, and of what is the largest of theirs.

  Returns:
    Gradients, sums, largest.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def one(micro):
    (_, (sums, largest)), grads = grad_fn(params, micro)
    return grads, sums, largest

  if gradient_accumulation_steps == 1:
    return one(batch)
  micros = jax.tree.map(lambda x: split(x, gradient_accumulation_steps), batch)
  first = jax.tree.map(lambda x: x[0], micros)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first)
  )

  def add(acc, micro):
    grads, sums, largest = one(micro)
    summed = jax.tree.map(jnp.add, acc[:2], (grads, sums))
    return (*summed, jax.tree.map(jnp.maximum, acc[2], largest)), None

  return jax.lax.scan(add, zeros, micros)[0]


def apply(
  state: TrainState,
  tx,
  grads,
  routing: dict[str, moe.Routing],
  balancing: moe.LoadBalancing,
):
  """One optimiser update and one step of expert balancing.

  A gradient that is not finite leaves everything as it was, and is counted.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    'grad_norm': norm,
    'skipped_updates': 1.0 - finite.astype(jnp.float32),
  }
  for stack, routed in routing.items():
    path = moe.BIAS_PATHS[stack]
    bias_LE = moe.updated_bias(
      _leaf(params, path), routed.load_E, balancing.routed_bias_update_rate
    )
    params = _replace(params, path, bias_LE)
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


def _leaf(tree: dict, path: tuple[str, ...]):
  for key in path:
    tree = tree[key]
  return tree


def _replace(tree: dict, path: tuple[str, ...], value) -> dict:
  head, *rest = path
  inner = _replace(tree[head], tuple(rest), value) if rest else value
  return {**tree, head: inner}
