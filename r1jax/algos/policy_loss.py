"""The policy loss of GRPO, its relatives and PPO.

  J = 1/Z Σ_i w_i Σ_t { min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A) − β KL }

with ρ = π(o_t) / π_old(o_t) (DeepSeekMath eq. 3, DeepSeek-R1 eq. 1). The papers
differ in the aggregation (Z and w_i), in what ρ is the ratio of, and in how it
is clipped; `PolicyLoss` holds these choices. Z is counted over the whole
minibatch, so the value does not depend on how a minibatch is split over
microbatches and devices.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax import registry
from r1jax.algos import common
from r1jax.config.schema.rl import PolicyLossConfig


@dataclasses.dataclass(frozen=True)
class PolicyLoss(PolicyLossConfig):
  """The loss of a policy update: config.rl's keys of it, and one number more.

  Attributes:
    max_tokens: Maximum number of completion tokens, the normalizer of
      loss_agg_mode = 'seq-mean-token-sum-norm'.
  """

  max_tokens: int = 0

  def conflicts(self):
    yield from super().conflicts()
    if self.loss_agg_mode == 'seq-mean-token-sum-norm' and self.max_tokens < 1:
      yield 'max_tokens', f'must be at least 1 with {self.loss_agg_mode!r}'


class Totals(NamedTuple):
  """Counts over a whole minibatch, by which the loss is normalized.

  Attributes:
    tokens: Number of tokens in the loss mask.
    samples: Number of samples, those without a token in the mask included.
    sequences: Number of samples that are computed, by which the balance loss of
      experts is averaged.
  """

  tokens: jax.Array
  samples: int
  sequences: jax.Array | int = 1


def loss(
  config: PolicyLoss,
  logp_BT,
  old_logp_BT,
  ref_logp_BT,
  adv_BT,
  mask_BT,
  totals: Totals,
  samples: common.Samples,
  weight_BT=None,
):
  """Returns one microbatch's share of −J, and metrics.

  Args:
    config: Parameters of the loss; static under jit.
    logp_BT: float32 log-probabilities under the policy in training.
    old_logp_BT: float32 log-probabilities under the policy that sampled.
    ref_logp_BT: float32 log-probabilities under the reference policy.
    adv_BT: float32 advantages.
    mask_BT: bool loss mask, True for completion tokens to train on.
    totals: Counts over the whole minibatch.
    samples: The sample of each token; a sample is in one microbatch alone.
    weight_BT: float32 weights from `rollout_is_weights`; None for 1.

  Returns:
    The loss and a dict of metrics. All of them add up over microbatches.
  """
  chex.assert_equal_shape((adv_BT, mask_BT))
  # Masked first: a NaN outside the mask would reach the gradient through any
  # mask that is applied later.
  logp_BT, old_logp_BT, ref_logp_BT, adv_BT = (
    jnp.where(mask_BT, x, 0.0)
    for x in (logp_BT, old_logp_BT, ref_logp_BT, adv_BT)
  )
  log_ratio_BT = logp_BT - old_logp_BT
  if config.importance_sampling_level == 'sequence':
    log_ratio_BT = samples.spread(samples.mean(log_ratio_BT, mask_BT))
  ratio_BT = jnp.exp(jnp.minimum(log_ratio_BT, common.MAX_LOG_RATIO))
  surrogate = registry.policy_loss.get(config.policy_loss, 'rl.policy_loss')
  objective_BT, clipped_BT = surrogate(ratio_BT, adv_BT, logp_BT, config)
  kl_BT = common.kl_estimate(config.kl_estimator, logp_BT, ref_logp_BT)
  kl_weight_BT = ratio_BT if config.kl_importance_weighted else 1.0
  kl_loss_BT = config.kl_coef * kl_BT * kl_weight_BT
  loss_BT = kl_loss_BT - objective_BT
  if weight_BT is not None:
    loss_BT *= weight_BT

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / jnp.maximum(totals.tokens, 1)

  value = _aggregate(config, loss_BT, mask_BT, totals, samples)
  return value, {
    'loss': value,
    'kl': mean(kl_BT),
    'pg_clipfrac': mean(clipped_BT.astype(jnp.float32)),
    'ratio/mean': mean(ratio_BT),
    'ppo_kl': mean(common.kl_estimate('k3', old_logp_BT, logp_BT)),
  }


@registry.policy_loss('clip')
def clip(ratio_BT, adv_BT, logp_BT, config: PolicyLossConfig):
  """Returns min{ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A} (PPO, GRPO, DAPO).

  Every registered policy loss has these arguments and results. What is outside
  of the loss mask is left out afterwards, and KL, aggregation and importance
  weights of the rollout are added by `loss`.

  Args:
    ratio_BT: float32 ρ, bounded above by exp(common.MAX_LOG_RATIO), with the
      gradient of logp_BT; of tokens, or of whole sequences with
      config.importance_sampling_level = 'sequence'.
    adv_BT: float32 advantages A, 0 outside of the mask.
    logp_BT: float32 log-probabilities under the policy in training.
    config: Keys of config.rl that belong to the loss.

  Returns:
    objective_BT, float32, each token's objective, whose negative is its loss;
    and clipped_BT, bool, whether its ratio was clipped, for 'pg_clipfrac'.
  """
  del logp_BT
  low, high = config.clip_ratio_low, config.clip_ratio_high
  bounded_BT = jnp.minimum(ratio_BT, config.delta) if config.delta else ratio_BT
  near_BT = jnp.clip(ratio_BT, 1 - low, 1 + high)
  objective_BT = jnp.minimum(bounded_BT * adv_BT, near_BT * adv_BT)
  return objective_BT, (ratio_BT < 1 - low) & (adv_BT < 0) | (
    ratio_BT > 1 + high
  ) & (adv_BT > 0)


@registry.policy_loss('cispo')
def cispo(ratio_BT, adv_BT, logp_BT, config: PolicyLossConfig):
  """Returns sg(min(ρ, 1 + ε_high)) A log π (CISPO, arXiv 2506.13585, eq. 4).

  The ratio is a clipped weight without a gradient, so that every token keeps
  one; see `clip` for arguments and results.
  """
  high = config.clip_ratio_high
  weight_BT = jax.lax.stop_gradient(jnp.minimum(ratio_BT, 1 + high))
  return weight_BT * adv_BT * logp_BT, (ratio_BT > 1 + high) & (adv_BT > 0)


def _aggregate(
  config: PolicyLoss, loss_BT, mask_BT, totals: Totals, samples: common.Samples
):
  """Reduces token losses to one number by config.loss_agg_mode."""
  if config.loss_agg_mode == 'token-mean':
    return common.masked_sum(loss_BT, mask_BT) / jnp.maximum(totals.tokens, 1)
  if config.loss_agg_mode == 'seq-mean-token-mean':
    return jnp.sum(samples.mean(loss_BT, mask_BT)) / totals.samples
  return common.masked_sum(loss_BT, mask_BT) / (
    totals.samples * config.max_tokens
  )


def rollout_is_weights(
  config: PolicyLoss,
  trainer_logp_BT,
  sampler_logp_BT,
  mask_BT,
  samples: common.Samples,
):
  """Returns the importance weights π_trainer / π_sampler, not differentiated.

  They are truncated at C = rollout_is_threshold, or replaced by 1 within
  [1/C, C] and by 0 outside it; see PolicyLoss.rollout_is.

  Args:
    config: Parameters of the loss; static under jit.
    trainer_logp_BT: float32 log-probabilities that the trainer computes.
    sampler_logp_BT: float32 log-probabilities that the sampler computed, with
      the same weights.
    mask_BT: bool loss mask; outside it the log-ratio counts as 0.
    samples: The sample of each token.
  """
  log_ratio_BT = jnp.where(mask_BT, trainer_logp_BT - sampler_logp_BT, 0.0)
  if config.rollout_is_level == 'sequence':
    log_ratio_BT = samples.spread(samples.sum(log_ratio_BT, mask_BT))
  weight_BT = jnp.exp(
    jnp.clip(log_ratio_BT, -common.MAX_LOG_RATIO, common.MAX_LOG_RATIO)
  )
  threshold = config.rollout_is_threshold
  if config.rollout_is == 'truncate':
    weight_BT = jnp.minimum(weight_BT, threshold)
  elif config.rollout_is == 'mask':
    weight_BT = (
      (weight_BT <= threshold) & (weight_BT >= 1 / threshold)
    ).astype(jnp.float32)
  else:
    weight_BT = jnp.ones_like(weight_BT)
  return jax.lax.stop_gradient(weight_BT)
