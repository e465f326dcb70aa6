"""The policy update of GRPO and PPO, and scoring of samples by the trainer."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.algos import common, policy_loss
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model.mtp import shift
from r1jax.model.transformer import Transformer, output_head
from r1jax.records import PackedRows, RLBatch
from r1jax.train import make_step
from r1jax.train.make_step import LossOutput
from r1jax.train.mtp_loss import mtp_loss
from r1jax.train.optimizer import Optimizer


def token_logps(
  model: Transformer, temperature: float, shape: RowShape, num_policies: int = 1
) -> Callable:
  """Returns logp(params, …, batch) → float32 [B, T] for each policy, jitted.

  Log-probabilities are 0 outside the loss mask. Several policies, such as the
  one in training and its reference, are computed in one pass over the batch.
  The first one uses the experts again that a batch recorded; the others route
  tokens themselves.

  Args:
    model: The architecture of all policies.
    temperature: The temperature of sampling.
    shape: The shape of the batch.
    num_policies: Number of policies, whose parameters come before the batch.
  """

  def of_microbatch(micro: RLBatch, *policies):
    own_routing = dataclasses.replace(micro, experts_BTLA=None)
    return [
      _batch_logp(model, params, own_routing if i else micro, temperature)[0]
      for i, params in enumerate(policies)
    ]

  of_batch = make_step.map_packed(model, shape, of_microbatch)

  @jax.jit
  def logp(*args):
    *policies, batch = args
    assert len(policies) == num_policies
    return of_batch(batch, *policies)

  return logp


def policy(
  model: Transformer,
  tx: Optimizer,
  config: policy_loss.PolicyLoss,
  temperature: float,
  shape: RowShape,
  balancing: LoadBalancingConfig,
  mtp_loss_weight: float = 0.0,
  extra_loss: Callable | None = None,
) -> Callable:
  """Returns step(state, RLBatch) → (state, metrics), jitted.

  The step makes one epoch over the batch, in minibatches. The first update
  sees the policy that sampled, so its ratio is 1 except for rounding: the
  metrics 'rollout_logp_diff/mean' and '/max' are the absolute differences
  between the trainer's and the sampler's log-probabilities, over all tokens of
  the first minibatch that this policy sampled.

  Args:
    model, tx, balancing: The policy, its optimizer, and expert balancing.
    config: Parameters of the loss.
    temperature: The temperature of sampling.
    shape: The shape of the batch, and its number of updates.
    mtp_loss_weight: λ; above 0 the MTP modules are trained on the completions.
      Their loss has no gradient in the rest of the model.
    extra_loss: (params, hidden_BTD, RLBatch, Totals) → a loss to add, and
      metrics that add up over microbatches; see value_step.shared_value_loss.
  """

  loss_fn = _loss_fn(
    model,
    config,
    temperature,
    shape.num_samples,
    bool(balancing.router_aux_loss_coef),
    mtp_loss_weight,
    extra_loss,
  )
  return make_step.make_packed_step(
    model, tx, loss_fn, _summary, balancing, shape
  )


def _loss_fn(
  model: Transformer,
  config: policy_loss.PolicyLoss,
  temperature: float,
  num_samples: int,
  balances: bool,
  mtp_loss_weight: float,
  extra_loss: Callable | None,
) -> Callable:
  """Returns the loss function of `policy`, for make_packed_step."""

  def loss_fn(params, batch: RLBatch, totals: policy_loss.Totals) -> LossOutput:
    logp_BT, entropy_BT, out = _batch_logp(
      model, params, batch, temperature, balances
    )
    loss, metrics = policy_loss.loss(
      config,
      logp_BT,
      batch.old_logp_BT,
      batch.ref_logp_BT,
      batch.adv_BT,
      batch.mask_BT,
      totals,
      common.Samples(batch.sample_BT, num_samples),
      batch.rollout_is_weight_BT,
    )
    metrics['entropy'] = common.masked_sum(
      entropy_BT, batch.mask_BT
    ) / jnp.maximum(totals.tokens, 1)
    if extra_loss:
      added, added_metrics = extra_loss(params, out.hidden_BTD, batch, totals)
      loss += added
      metrics |= added_metrics
    routing = out.routing
    if mtp_loss_weight:
      mtp, mtp_routing = _mtp_loss(
        model, params, out.hidden_BTD, batch, totals, balances
      )
      loss += mtp_loss_weight * mtp
      metrics['mtp_loss'] = mtp
      routing = routing | mtp_routing
    fresh_BT = batch.mask_BT & (batch.staleness_BT == 0)
    diff_BT = jnp.where(fresh_BT, jnp.abs(logp_BT - batch.logp_BT), 0.0)
    metrics['rollout_logp_diff'] = jnp.stack([diff_BT.sum(), fresh_BT.sum()])
    return LossOutput(
      loss,
      metrics,
      routing,
      make_step.num_sequences(batch.segment_BT, batch.prefix_BT)
      / totals.sequences,
      {'rollout_logp_diff': diff_BT.max()},
    )

  return loss_fn


def _summary(metrics, maxima):
  """Returns the metrics of a step from those of its updates."""
  diff_sum, tokens = metrics.pop('rollout_logp_diff')[0]
  return make_step.mean_over_updates(metrics) | {
    'rollout_logp_diff/mean': diff_sum / jnp.maximum(tokens, 1),
    'rollout_logp_diff/max': maxima['rollout_logp_diff'][0],
  }


def _mtp_loss(
  model: Transformer,
  params,
  hidden_BTD,
  batch: RLBatch,
  totals: policy_loss.Totals,
  balances: bool,
):
  """Returns the MTP loss, whose gradient reaches only the MTP modules."""
  only_mtp = jax.lax.stop_gradient(params) | {'mtp': params['mtp']}
  return mtp_loss(
    model,
    only_mtp,
    jax.lax.stop_gradient(hidden_BTD),
    token_inputs(batch),
    shift(batch.tokens_BT, 1),
    shift(batch.mask_BT, 1).astype(jnp.float32),
    totals.tokens,
    *sequence_inputs(batch, balances),
  )


def _batch_logp(
  model: Transformer,
  params,
  batch: RLBatch,
  temperature: float,
  balances: bool = False,
):
  """Returns logp_BT and entropy_BT of the tokens, and the model's output.

  With `balances` the experts' balance loss is the mean over samples.

  Token t is predicted at t − 1. With one sample of the prompt a, and padding:
    tokens   = [a, b, c, _]
    hidden   = [h(a), h(ab), h(abc), _]
    logp_BT  = [0, log p(b | a), log p(c | ab), 0]
  """
  out: Any = model.apply(
    {'params': params},
    *token_inputs(batch),
    batch.experts_BTLA,
    *sequence_inputs(batch, balances),
  )
  return *next_token_logp(
    model, params, out.hidden_BTD, batch, temperature
  ), out


def next_token_logp(
  model: Transformer,
  params,
  hidden_BTD,
  batch: RLBatch | PackedRows,
  temperature: float = 1.0,
):
  """Returns logp_BT and entropy_BT of tokens, each predicted at the one before.

  Both are float32, in nats, and 0 outside the batch's mask.
  """
  # Tokens are shifted, and not hidden states: rows keep their length, which the
  # mesh divides.
  logp_BT, entropy_BT = common.token_logp(
    hidden_BTD,
    output_head(model, params),
    shift(batch.tokens_BT, 1),
    temperature,
    layout=model.layout,
    mask_BT=shift(batch.mask_BT, 1),
  )

  def shift_back(x_BT):
    return jnp.pad(x_BT[:, :-1], ((0, 0), (1, 0)))

  return shift_back(logp_BT), shift_back(entropy_BT)


def token_inputs(batch: RLBatch):
  """Returns tokens_BT, position_BT and segment_BT, the model's inputs."""
  return batch.tokens_BT, batch.position_BT, batch.segment_BT


def sequence_inputs(batch: RLBatch, balances: bool):
  """Returns balance_BT and prefix_BT, the model's inputs of packed rows.

  Args:
    batch: The packed samples.
    balances: Whether the balance loss of the experts counts.
  """
  # A shared prompt counts in the experts' loads once for each of its samples.
  by_sequence = balances or batch.prefix_BT is not None
  return batch.segment_BT if by_sequence else None, batch.prefix_BT
