"""The training step of next-token prediction: pre-training, SFT, distillation."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import common, distill
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.model.transformer import Transformer, output_head
from r1jax.records import TokenBatch
from r1jax.train.make_step import LossOutput, make_step, num_rows
from r1jax.train.mtp_loss import MTPLoss, mtp_loss
from r1jax.train.optimizer import Optimizer
from r1jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Distillation:
  """Distillation from a teacher's distributions.

  Attributes:
    soft: Weight and temperature of the teacher's distributions.
    teacher: The teacher model; None if batches hold its distributions.
    shared_ids: int32 ids of the tokens that both models have; None for all.
  """

  soft: distill.SoftTargets
  teacher: Transformer | None = None
  shared_ids: np.ndarray | None = None


class _Totals(NamedTuple):
  """Quantities of the whole batch that the loss of a microbatch needs.

  Attributes:
    tokens: Number of tokens with a weight.
    rows: Number of rows that are not empty.
    updates: Optimizer updates made before this one.
    teacher_params: Parameters of the teacher model, or None.
    teacher_head_DV: Its output projection, or None.
  """

  tokens: jax.Array
  rows: jax.Array
  updates: jax.Array
  teacher_params: Any
  teacher_head_DV: jax.Array | None


def supervised(
  model: Transformer,
  tx: Optimizer,
  balancing: LoadBalancingConfig,
  mtp_schedule: MTPLoss,
  gradient_accumulation_steps: int,
  distillation: Distillation | None = None,
) -> Callable:
  """Returns step(state, TokenBatch, teacher_params) → (state, metrics), jitted.

  The loss is the weighted sum over tokens, divided by the number of tokens that
  have a weight. Without a teacher model, teacher_params may be left out.
  """

  def loss_fn(params, batch: TokenBatch, totals: _Totals) -> LossOutput:
    inputs = batch.tokens_BT, batch.position_BT, batch.segment_BT
    out: Any = model.apply({'params': params}, *inputs)

    def mean(x_BT):
      return jnp.sum(x_BT * batch.weight_BT) / totals.tokens

    loss, metrics = _token_loss(
      model, params, out.hidden_BTD, batch, distillation, totals, mean
    )
    routing = out.routing
    if model.config.num_nextn_predict_layers:
      mtp, mtp_routing = mtp_loss(
        model,
        params,
        out.hidden_BTD,
        inputs,
        batch.target_BT,
        batch.weight_BT,
        totals.tokens,
      )
      loss += mtp_schedule.at(totals.updates) * mtp
      metrics['mtp_loss'] = mtp
      routing = routing | mtp_routing
    share = num_rows(batch.segment_BT > 0) / totals.rows
    return LossOutput(loss, metrics, routing, share)

  def totals_fn(state: TrainState, batch: TokenBatch, teacher_params=None):
    head = None
    if distillation and distillation.teacher:
      head = output_head(distillation.teacher, teacher_params)
    return _Totals(
      tokens=jnp.maximum(jnp.sum(batch.weight_BT > 0), 1),
      rows=num_rows(batch.segment_BT > 0),
      updates=state.updates,
      teacher_params=teacher_params,
      teacher_head_DV=head,
    )

  return make_step(
    model, tx, loss_fn, totals_fn, balancing, gradient_accumulation_steps
  )


def _token_loss(
  model: Transformer,
  params,
  hidden_BTD,
  batch: TokenBatch,
  distillation: Distillation | None,
  totals: _Totals,
  mean: Callable,
):
  """Returns the loss of the next tokens, and metrics."""
  head = output_head(model, params)
  if distillation:
    logp_BT, entropy_BT, kl_BT = _distilled(
      model, distillation, hidden_BTD, head, batch, totals
    )
    loss = mean(distillation.soft.mix(-logp_BT, kl_BT))
    metrics = {'loss': loss, 'nll': mean(-logp_BT), 'kl': mean(kl_BT)}
  else:
    logp_BT, entropy_BT = common.token_logp(
      hidden_BTD,
      head,
      batch.target_BT,
      layout=model.layout,
      mask_BT=batch.weight_BT != 0,
    )
    loss = mean(-logp_BT)
    metrics = {'loss': loss}
  return loss, metrics | {'entropy': mean(entropy_BT)}


def _distilled(
  model: Transformer,
  distillation: Distillation,
  hidden_BTD,
  head_DV,
  batch: TokenBatch,
  totals: _Totals,
):
  """Returns logp_BT, entropy_BT and kl_BT against the teacher."""
  temperature, layout = distillation.soft.temperature, model.layout
  mask_BT = batch.weight_BT != 0
  if distillation.teacher is not None:
    teacher_BTD = _hidden(distillation.teacher, totals.teacher_params, batch)
    return distill.full_kl(
      hidden_BTD,
      head_DV,
      teacher_BTD,
      totals.teacher_head_DV,
      batch.target_BT,
      temperature,
      layout=layout,
      shared_ids=distillation.shared_ids,
      mask_BT=mask_BT,
    )
  return distill.top_k_kl(
    hidden_BTD,
    head_DV,
    batch.top_ids_BTO,
    batch.top_logp_BTO,
    batch.target_BT,
    temperature,
    layout=layout,
    mask_BT=mask_BT,
  )


def _hidden(teacher: Transformer, params, batch: TokenBatch):
  """Returns the teacher's hidden states, without a gradient."""
  out: Any = teacher.apply(
    {'params': params}, batch.tokens_BT, batch.position_BT, batch.segment_BT
  )
  return jax.lax.stop_gradient(out.hidden_BTD)
