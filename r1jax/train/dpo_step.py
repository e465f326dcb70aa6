"""The jitted functions of DPO: log-probabilities of responses, and the update.

Sequences 2p and 2p + 1 of a PairBatch are pair p; the columns of x_P2 are its
chosen and its rejected response.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.algos import dpo as dpo_loss
from r1jax.config.schema.preferences import DPOLossConfig
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.preference_batches import PairBatch
from r1jax.data.sample_packing import RowShape
from r1jax.model.transformer import Transformer
from r1jax.records import Array, PackedRows
from r1jax.train import make_step, packed_step
from r1jax.train import state as train_state
from r1jax.train.make_step import LossOutput, num_sequences
from r1jax.train.optimizer import Optimizer
from r1jax.train.policy_step import next_token_logp
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


class _Totals(NamedTuple):
  """What the loss of a microbatch needs to know of the whole batch.

  Attributes:
    ref_logp_P2: float32 log-probabilities of responses under the reference.
    weight_P: float32, the weight of each pair's loss.
    pairs: Number of pairs, at least 1.
    sequences: Number of sequences, by which the balance loss is averaged.
  """

  ref_logp_P2: Array
  weight_P: Array
  pairs: Array
  sequences: Array


def response_logps(
  model: Transformer, shape: RowShape, num_policies: int = 1
) -> Callable:
  """Returns logp(params, …, PairBatch) → float32 [P, 2] of each, jitted.

  Several policies are computed in one pass over the batch.

  Args:
    model: The architecture of all policies.
    shape: The shape of the batch's rows.
    num_policies: Number of policies, whose parameters come before the batch.
  """
  logps = _logps(model, shape)

  @jax.jit
  def logp(*args):
    *policies, batch = args
    assert len(policies) == num_policies
    return logps(batch.rows, *policies)

  return logp


def dpo(
  model: Transformer,
  tx: Optimizer,
  config: DPOLossConfig,
  group_robust: dpo_loss.GroupRobust | None,
  balancing: LoadBalancingConfig,
  shape: RowShape,
) -> Callable:
  """Returns step(state, PairBatch, ref_params) → (state, metrics), jitted.

  The reference's log-probabilities are computed once per batch. With group
  weights, those of the policy before the update are computed as well: first the
  weights are updated with the losses of the whole batch, then the policy with
  the new weights.
  """
  update = packed_step.packed_update(
    model, tx, _loss_fn(model, config, balancing, shape), balancing, shape
  )
  logps = _logps(model, shape)

  @partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(
      dpo_shardings(model, tx, group_robust),
      model.layout.replicated(),
    ),
  )
  def step(state: DPOState, batch: PairBatch, ref_params):
    params, alpha_g = state.train.params, state.alpha_g
    ref_logp_P2, *before = logps(
      batch.rows, ref_params, *([params] if group_robust else [])
    )
    weight_P = jnp.ones_like(batch.weight_P)
    if group_robust:
      log_ratio_P = dpo_loss.log_ratio(before[0], ref_logp_P2)
      alpha_g = group_robust.update(
        alpha_g,
        dpo_loss.per_pair(config, log_ratio_P),
        batch.group_P,
        batch.weight_P,
      )
      weight_P = group_robust.pair_weights(alpha_g, batch.group_P)
    totals = _Totals(
      ref_logp_P2,
      weight_P,
      jnp.maximum(jnp.sum(batch.weight_P), 1),
      num_sequences(batch.rows.segment_BT),
    )
    train, metrics = update(state.train, batch.rows, totals)
    if group_robust:
      alpha_g = jnp.where(metrics['skipped_updates'], state.alpha_g, alpha_g)
    return DPOState(train=train, alpha_g=alpha_g), metrics

  return step


def _loss_fn(
  model: Transformer,
  config: DPOLossConfig,
  balancing: LoadBalancingConfig,
  shape: RowShape,
) -> Callable:
  """Returns the loss function of `dpo`, for packed_update."""
  balances = bool(balancing.router_aux_loss_coef)

  def loss_fn(params, rows: PackedRows, totals: _Totals) -> LossOutput:
    out = packed_step.forward(model, params, rows, balances)
    logp_BT, _ = next_token_logp(model, params, out.hidden_BTD, rows)
    samples, present = packed_step.sequences(rows, 2 * shape.num_samples)
    loss, metrics = dpo_loss.loss(
      config,
      samples.sum(logp_BT, rows.mask_BT).reshape(-1, 2),
      totals.ref_logp_P2,
      totals.weight_P,
      present[0::2],
      totals.pairs,
    )
    share = num_sequences(rows.segment_BT) / totals.sequences
    return LossOutput(loss, metrics, out.routing, share)

  return loss_fn


def _logps(model: Transformer, shape: RowShape) -> Callable:
  """Returns f(PackedRows, params, …) → logp_P2 of each policy, for jit.

  Log-probabilities are of whole responses, and without gradients.
  """

  def of_microbatch(rows: PackedRows, *policies):
    return [
      next_token_logp(
        model, params, packed_step.forward(model, params, rows).hidden_BTD, rows
      )[0]
      for params in policies
    ]

  of_rows = make_step.map_packed(model, shape, of_microbatch)

  def logps(rows: PackedRows, *policies):
    samples, _ = packed_step.sequences(rows, 2 * shape.num_samples)
    return [
      samples.sum(logp_BT, rows.mask_BT).reshape(-1, 2)
      for logp_BT in of_rows(rows, *policies)
    ]

  return logps
