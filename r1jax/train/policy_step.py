"""The policy update of GRPO and PPO, and scoring of rollouts by the trainer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.algos import common, policy_loss
from r1jax.config.schema.training import LoadBalancingConfig
from r1jax.model.mtp import shift
from r1jax.model.transformer import Transformer, output_head, positions
from r1jax.records import RLBatch, Rollout
from r1jax.train.make_step import (
  LossOutput,
  constrain,
  make_minibatch_step,
  mean_over_updates,
)
from r1jax.train.mtp_loss import mtp_loss
from r1jax.train.optimizer import Optimizer


def token_logps(
  model: Transformer, temperature: float, prompt_tokens: int
) -> Callable:
  """Returns logp(params, Rollout) → float32 [B, T], jitted.

  Log-probabilities are 0 outside the loss mask. Rollouts have `prompt_tokens`
  columns of prompt before their completions. Experts that a rollout recorded
  are used again.
  """

  @jax.jit
  def logp(params, rollout: Rollout):
    rollout = constrain(model, rollout)
    return _rollout_logp(model, params, rollout, temperature, prompt_tokens)[0]

  return logp


def policy(
  model: Transformer,
  tx: Optimizer,
  config: policy_loss.PolicyLoss,
  temperature: float,
  prompt_tokens: int,
  num_minibatches: int,
  gradient_accumulation_steps: int,
  balancing: LoadBalancingConfig,
  mtp_loss_weight: float = 0.0,
  extra_loss: Callable | None = None,
) -> Callable:
  """Returns step(state, RLBatch, key) → (state, metrics), jitted.

  The step makes one epoch over the rollout, in minibatches. The first update
  sees the policy that sampled, so its ratio is 1 except for rounding: the
  metrics 'rollout_logp_diff/mean' and '/max' are the absolute differences
  between the trainer's and the sampler's log-probabilities, over all tokens of
  the first minibatch that this policy sampled.

  Args:
    model, tx, balancing: The policy, its optimizer, and expert balancing.
    config: Parameters of the loss.
    temperature: The temperature of sampling.
    prompt_tokens: Columns of prompt before the completions.
    num_minibatches: Number of updates per rollout.
    gradient_accumulation_steps: Number of microbatches per update.
    mtp_loss_weight: λ; above 0 the MTP modules are trained on the completions.
      Their loss has no gradient in the rest of the model.
    extra_loss: (params, hidden_BTD, RLBatch, Totals) → a loss to add, and
      metrics that add up over microbatches; see value_step.shared_value_loss.
  """

  loss_fn = _loss_fn(
    model,
    config,
    temperature,
    prompt_tokens,
    1 / gradient_accumulation_steps,
    mtp_loss_weight,
    extra_loss,
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


def _loss_fn(
  model: Transformer,
  config: policy_loss.PolicyLoss,
  temperature: float,
  prompt_tokens: int,
  aux_loss_share: float,
  mtp_loss_weight: float,
  extra_loss: Callable | None,
) -> Callable:
  """Returns the loss function of `policy`, for make_minibatch_step."""

  def loss_fn(params, batch: RLBatch, totals: policy_loss.Totals) -> LossOutput:
    rollout = batch.rollout
    logp_BT, entropy_BT, out = _rollout_logp(
      model, params, rollout, temperature, prompt_tokens
    )
    loss, metrics = policy_loss.loss(
      config,
      logp_BT,
      batch.old_logp_BT,
      batch.ref_logp_BT,
      batch.adv_BT,
      rollout.mask_BT,
      totals,
      batch.rollout_is_weight_BT,
    )
    metrics['entropy'] = common.masked_sum(
      entropy_BT, rollout.mask_BT
    ) / jnp.maximum(totals.tokens, 1)
    if extra_loss:
      added, added_metrics = extra_loss(params, out.hidden_BTD, batch, totals)
      loss += added
      metrics |= added_metrics
    routing = out.routing
    if mtp_loss_weight:
      mtp, mtp_routing = _mtp_loss(model, params, out.hidden_BTD, batch, totals)
      loss += mtp_loss_weight * mtp
      metrics['mtp_loss'] = mtp
      routing = routing | mtp_routing
    fresh_BT = rollout.mask_BT & (rollout.staleness_BT == 0)
    diff_BT = jnp.where(fresh_BT, jnp.abs(logp_BT - rollout.logp_BT), 0.0)
    metrics['rollout_logp_diff'] = jnp.stack([diff_BT.sum(), fresh_BT.sum()])
    return LossOutput(
      loss,
      metrics,
      routing,
      aux_loss_share,
      {'rollout_logp_diff': diff_BT.max()},
    )

  return loss_fn


def _summary(metrics, maxima):
  """Returns the metrics of a step from those of its updates."""
  diff_sum, tokens = metrics.pop('rollout_logp_diff')[0]
  return mean_over_updates(metrics) | {
    'rollout_logp_diff/mean': diff_sum / jnp.maximum(tokens, 1),
    'rollout_logp_diff/max': maxima['rollout_logp_diff'][0],
  }


def _mtp_loss(
  model: Transformer,
  params,
  hidden_BTD,
  batch: RLBatch,
  totals: policy_loss.Totals,
):
  """Returns the MTP loss, whose gradient reaches only the MTP modules."""
  rollout = batch.rollout
  only_mtp = jax.lax.stop_gradient(params) | {'mtp': params['mtp']}
  return mtp_loss(
    model,
    only_mtp,
    jax.lax.stop_gradient(hidden_BTD),
    rollout_inputs(rollout),
    shift(rollout.tokens_BT, 1),
    shift(rollout.mask_BT, 1).astype(jnp.float32),
    totals.tokens,
  )


def _rollout_logp(
  model: Transformer,
  params,
  rollout: Rollout,
  temperature: float,
  prompt_tokens: int,
):
  """Returns logp_BT and entropy_BT of the tokens, and the model's output.

  Token t is predicted at t − 1, and logits are computed for completions only.
  With one column of prompt, a:
    tokens   = [a, b, c]
    hidden   = [h(a), h(ab), h(abc)]
    logp_BT  = [0, log p(b | a), log p(c | ab)]
  """
  out: Any = model.apply(
    {'params': params}, *rollout_inputs(rollout), rollout.experts_BTLA
  )
  logp, entropy = common.token_logp(
    out.hidden_BTD[:, prompt_tokens - 1 : -1],
    output_head(model, params),
    rollout.tokens_BT[:, prompt_tokens:],
    temperature,
    layout=model.layout,
  )

  def padded(x):
    x_BT = jnp.pad(x, ((0, 0), (prompt_tokens, 0)))
    return jnp.where(rollout.mask_BT, x_BT, 0.0)

  return padded(logp), padded(entropy), out


def rollout_inputs(rollout: Rollout):
  """Returns tokens_BT, position_BT and segment_BT, the model's inputs."""
  return (
    rollout.tokens_BT,
    positions(rollout.valid_BT),
    rollout.valid_BT.astype(jnp.int32),
  )
