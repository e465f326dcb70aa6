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

from r1jax.algos import common
from r1jax.errors import UserError

_CHOICES = {
  'policy_loss': ('clip', 'cispo'),
  'importance_sampling_level': ('token', 'sequence'),
  'loss_agg_mode': (
    'token-mean',
    'seq-mean-token-mean',
    'seq-mean-token-sum-norm',
  ),
  'kl_estimator': ('k1', 'k2', 'k3'),
  'rollout_is': ('none', 'truncate', 'mask'),
  'rollout_is_level': ('token', 'sequence'),
}


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
  """The parameters of a policy loss.

  Attributes:
    policy_loss: 'clip', as in the formula of the module; or 'cispo' (arXiv
      2506.13585, eq. 4): log π weighted by a ratio that is clipped at
      1 + ε_high and not differentiated, so that no token loses its gradient.
    importance_sampling_level: 'token' gives each token its own ratio;
      'sequence' gives all tokens of a sequence the geometric mean of their
      ratios (GSPO, arXiv 2507.18071, eq. 7).
    clip_ratio_low: ε_low, at least 0.
    clip_ratio_high: ε_high, at least 0.
    delta: Upper bound of the ratio whatever the sign of A (two-sided clipping,
      INTELLECT-2, arXiv 2505.07291, section 3.4). It must be above
      1 + clip_ratio_high; 0 sets no bound. Only 'clip' uses it.
    loss_agg_mode: How token losses become one number. 'token-mean': w = 1 and
      Z is the number of tokens (DAPO, arXiv 2503.14476, eq. 8; BNPO).
      'seq-mean-token-mean': w = 1/|o_i| and Z is the number of sequences
      (GRPO). 'seq-mean-token-sum-norm': w = 1 and Z is the number of sequences
      times max_tokens (Dr. GRPO, arXiv 2503.20783).
    max_tokens: Maximum number of completion tokens, the normalizer of
      'seq-mean-token-sum-norm'.
    kl_coef: β, the coefficient of the KL term; at least 0.
    kl_estimator: 'k1', 'k2' or 'k3'; see common.kl_estimate.
    kl_importance_weighted: Multiplies the KL estimate by ρ, so that its
      gradient is that of the KL of the policy in training (DeepSeek-V3.2,
      section 3.1).
    rollout_is: Importance-sampling correction for the difference between the
      probabilities of the sampler and of the trainer. 'none': no correction.
      'truncate': each token's loss is multiplied by w = π_trainer / π_sampler,
      at most C and not differentiated. 'mask': w is 1 for ratios within
      [1/C, C] and 0 outside. Both probabilities are computed with the weights
      of the policy that sampled.
    rollout_is_level: 'token', or 'sequence' for the product over a sequence.
    rollout_is_threshold: C, at least 1.
  """

  policy_loss: str = 'clip'
  importance_sampling_level: str = 'token'
  clip_ratio_low: float = 0.2
  clip_ratio_high: float = 0.2
  delta: float = 0.0
  loss_agg_mode: str = 'token-mean'
  max_tokens: int = 0
  kl_coef: float = 0.0
  kl_estimator: str = 'k3'
  kl_importance_weighted: bool = False
  rollout_is: str = 'none'
  rollout_is_level: str = 'token'
  rollout_is_threshold: float = 2.0

  def __post_init__(self):
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise UserError(
          f'rl: {field} must be one of {choices}, got {getattr(self, field)!r}'
        )
    for field in ('clip_ratio_low', 'clip_ratio_high', 'delta', 'kl_coef'):
      if getattr(self, field) < 0:
        raise UserError(
          f'rl: {field} must not be below 0, got {getattr(self, field)}'
        )
    if 0 < self.delta <= 1 + self.clip_ratio_high:
      raise UserError(
        f'rl: delta = {self.delta} must be above 1 + '
        f'clip_ratio_high = {1 + self.clip_ratio_high}, or 0 for no bound'
      )
    if self.rollout_is != 'none' and self.rollout_is_threshold < 1:
      raise UserError(
        'rl: rollout_is_threshold must be at least 1, got '
        f'{self.rollout_is_threshold}'
      )
    if self.loss_agg_mode == 'seq-mean-token-sum-norm' and self.max_tokens < 1:
      raise UserError(
        "rl: loss_agg_mode = 'seq-mean-token-sum-norm' needs max_tokens above 0"
      )


class Totals(NamedTuple):
  """Counts over a whole minibatch, by which the loss is normalized.

  Attributes:
    tokens: Number of tokens in the loss mask.
    rows: Number of sequences.
  """

  tokens: jax.Array
  rows: jax.Array


def loss(
  config: PolicyLoss,
  logp_BT,
  old_logp_BT,
  ref_logp_BT,
  adv_BT,
  mask_BT,
  totals: Totals,
  weight_BT=None,
):
  """Returns one microbatch's share of −J, and metrics.

  Args:
    config: Parameters of the loss; static under jit.
    logp_BT: float32 log-probabilities under the policy in training.
    old_logp_BT: float32 log-probabilities under the policy that sampled.
    ref_logp_BT: float32 log-probabilities under the reference policy.
    adv_BT: float32 advantages; [B, 1] where all tokens of a row share one.
    mask_BT: bool loss mask, True for completion tokens to train on.
    totals: Counts over the whole minibatch.
    weight_BT: float32 weights from `rollout_is_weights`; None for 1.

  Returns:
    The loss and a dict of metrics. All of them add up over microbatches.
  """
  chex.assert_rank(adv_BT, 2)  # [B] would broadcast as [T].
  # Masked first: a NaN outside the mask would reach the gradient through any
  # mask that is applied later.
  logp_BT, old_logp_BT, ref_logp_BT, adv_BT = (
    jnp.where(mask_BT, x, 0.0)
    for x in (logp_BT, old_logp_BT, ref_logp_BT, adv_BT)
  )
  log_ratio_BT = logp_BT - old_logp_BT
  if config.importance_sampling_level == 'sequence':
    log_ratio_BT = _row_mean(log_ratio_BT, mask_BT)[:, None] + 0 * log_ratio_BT
  ratio_BT = jnp.exp(jnp.minimum(log_ratio_BT, common.MAX_LOG_RATIO))
  objective_BT, clipped_BT = _clipped(config, ratio_BT, adv_BT, logp_BT)
  kl_BT = common.kl_estimate(config.kl_estimator, logp_BT, ref_logp_BT)
  kl_weight_BT = ratio_BT if config.kl_importance_weighted else 1.0
  kl_loss_BT = config.kl_coef * kl_BT * kl_weight_BT
  loss_BT = kl_loss_BT - objective_BT
  if weight_BT is not None:
    loss_BT *= weight_BT

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / jnp.maximum(totals.tokens, 1)

  value = _aggregate(config, loss_BT, mask_BT, totals)
  return value, {
    'loss': value,
    'kl': mean(kl_BT),
    'pg_clipfrac': mean(clipped_BT.astype(jnp.float32)),
    'ratio/mean': mean(ratio_BT),
    'ppo_kl': mean(common.kl_estimate('k3', old_logp_BT, logp_BT)),
  }


def _clipped(config: PolicyLoss, ratio_BT, adv_BT, logp_BT):
  """Returns each token's surrogate objective, and whether it was clipped."""
  low, high = config.clip_ratio_low, config.clip_ratio_high
  if config.policy_loss == 'cispo':
    weight_BT = jax.lax.stop_gradient(jnp.minimum(ratio_BT, 1 + high))
    return weight_BT * adv_BT * logp_BT, (ratio_BT > 1 + high) & (adv_BT > 0)
  bounded_BT = jnp.minimum(ratio_BT, config.delta) if config.delta else ratio_BT
  near_BT = jnp.clip(ratio_BT, 1 - low, 1 + high)
  objective_BT = jnp.minimum(bounded_BT * adv_BT, near_BT * adv_BT)
  return objective_BT, (ratio_BT < 1 - low) & (adv_BT < 0) | (
    ratio_BT > 1 + high
  ) & (adv_BT > 0)


def _aggregate(config: PolicyLoss, loss_BT, mask_BT, totals: Totals):
  """Reduces token losses to one number by config.loss_agg_mode."""
  if config.loss_agg_mode == 'token-mean':
    return common.masked_sum(loss_BT, mask_BT) / jnp.maximum(totals.tokens, 1)
  if config.loss_agg_mode == 'seq-mean-token-mean':
    return jnp.sum(_row_mean(loss_BT, mask_BT)) / totals.rows
  return common.masked_sum(loss_BT, mask_BT) / (totals.rows * config.max_tokens)


def rollout_is_weights(
  config: PolicyLoss, trainer_logp_BT, sampler_logp_BT, mask_BT
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
  """
  log_ratio_BT = jnp.where(mask_BT, trainer_logp_BT - sampler_logp_BT, 0.0)
  if config.rollout_is_level == 'sequence':
    total_BT = jnp.sum(log_ratio_BT, -1, keepdims=True)
    log_ratio_BT = total_BT + 0 * log_ratio_BT
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


def _row_mean(x_BT, mask_BT):
  """Returns each row's mean over its mask; 0 for a row without any token."""
  count_B = jnp.maximum(jnp.sum(mask_BT, -1), 1)
  return jnp.sum(jnp.where(mask_BT, x_BT, 0.0), -1) / count_B
