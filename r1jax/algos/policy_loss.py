"""Group relative policy optimisation and its family, one loss.

  J = 1/Z Σ_i w_i Σ_t { min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A) − β KL }

with ρ = π(o_t) / π_old(o_t) (DeepSeekMath eq. 3, DeepSeek-R1 eq. 1). What Z and
w_i are, what ρ is the ratio of, and how it is cut, differ from paper to paper;
an `Objective` says. Z counts the WHOLE minibatch, so that the value does not
depend on how a batch is split over microbatches and devices.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.errors import UserError

_CHOICES = {
  'surrogate': ('clip', 'cispo'),
  'ratio': ('token', 'sequence'),
  'norm': ('token', 'sequence', 'constant'),
  'kl': ('k1', 'k2', 'k3'),
  'mismatch': ('none', 'truncate', 'mask'),
  'mismatch_level': ('token', 'sequence'),
}


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is maximised.

  Attributes:
    surrogate: 'clip', as above; or 'cispo' (arXiv 2506.13585, eq. 4): log π
      weighted by a ratio that is cut at 1 + ε_high and not differentiated, so
      that no token loses its gradient.
    ratio: Of each 'token'; or of the 'sequence', the geometric mean of its
      tokens' (GSPO, arXiv 2507.18071, eq. 7).
    clip_low: ε_low.
    clip_high: ε_high.
    clip_most: δ, the largest ratio whatever the sign of A (two-sided clipping,
      arXiv 2505.07291, section 3.4); 0 for none.
    norm: 'token': w = 1, Z the tokens (DAPO, arXiv 2503.14476, eq. 8; BNPO).
      'sequence': w = 1/|o_i|, Z the sequences (GRPO). 'constant': w = 1, Z the
      sequences times max_tokens (Dr. GRPO, arXiv 2503.20783).
    max_tokens: Of a completion, for 'constant'.
    kl_coef: β.
    kl: The estimator, see common.kl.
    kl_corrected: KL is weighted by ρ, which makes its gradient that of the
      policy's own KL (DeepSeek-V3.2, section 3.1).
    mismatch: What is done where the sampler's probabilities are not the
      trainer's: nothing; w = π_trainer / π_sampler, held fixed, 'truncate'd at
      mismatch_cap; or what is beyond the cap, or below its inverse, is 'mask'ed
      out. Both of the policy that sampled.
    mismatch_level: Of a token or of a whole sequence.
    mismatch_cap: C.
  """

  surrogate: str = 'clip'
  ratio: str = 'token'
  clip_low: float = 0.2
  clip_high: float = 0.2
  clip_most: float = 0.0
  norm: str = 'token'
  max_tokens: int = 0
  kl_coef: float = 0.0
  kl: str = 'k3'
  kl_corrected: bool = False
  mismatch: str = 'none'
  mismatch_level: str = 'token'
  mismatch_cap: float = 2.0

  def __post_init__(self):
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise UserError(
          f'rl: {field} must be one of {choices}, got {getattr(self, field)!r}'
        )
    for field in ('clip_low', 'clip_high', 'clip_most', 'kl_coef'):
      if getattr(self, field) < 0:
        raise UserError(
          f'rl: {field} must not be below 0, got {getattr(self, field)}'
        )
    if 0 < self.clip_most <= 1 + self.clip_high:
      raise UserError(
        f'rl: clip_most = {self.clip_most} must be above 1 + '
        f'clip_high = {1 + self.clip_high}, or 0 for none'
      )
    if self.mismatch != 'none' and self.mismatch_cap < 1:
      raise UserError(
        f'rl: mismatch_cap must be at least 1, got {self.mismatch_cap}'
      )
    if self.norm == 'constant' and self.max_tokens < 1:
      raise UserError("rl: norm = 'constant' needs max_tokens above 0")


class Totals(NamedTuple):
  """Of the WHOLE minibatch: live tokens, and rows."""

  tokens: jax.Array
  rows: jax.Array


def loss(
  objective: Objective,
  logp_BT,
  old_logp_BT,
  ref_logp_BT,
  adv_BT,
  mask_BT,
  totals: Totals,
  weight_BT=None,
):
  """One microbatch's share of −J.

  Args:
    objective: Static.
    logp_BT: float32 log-probabilities under the policy that is trained.
    old_logp_BT: Under the policy that sampled.
    ref_logp_BT: Under the reference policy.
    adv_BT: Advantages; [B, 1] where a row's tokens share one.
    mask_BT: bool, live tokens.
    totals: See Totals.
    weight_BT: See `mismatch_weight`; None for 1.

  Returns:
    The loss and a dict of metrics; all of them sum over microbatches.
  """
  chex.assert_rank(adv_BT, 2)  # [B] would be taken for [T].
  o = objective
  # Masked first: a NaN outside would reach the gradient through any mask that
  # comes after it.
  logp_BT, old_logp_BT, ref_logp_BT, adv_BT = (
    jnp.where(mask_BT, x, 0.0)
    for x in (logp_BT, old_logp_BT, ref_logp_BT, adv_BT)
  )
  log_ratio_BT = logp_BT - old_logp_BT
  if o.ratio == 'sequence':
    log_ratio_BT = _row_mean(log_ratio_BT, mask_BT)[:, None] + 0 * log_ratio_BT
  ratio_BT = jnp.exp(jnp.minimum(log_ratio_BT, common.MAX_LOG_RATIO))
  if o.surrogate == 'cispo':
    fixed_BT = jax.lax.stop_gradient(jnp.minimum(ratio_BT, 1 + o.clip_high))
    gain_BT = fixed_BT * adv_BT * logp_BT
    bound_BT = (ratio_BT > 1 + o.clip_high) & (adv_BT > 0)
  else:
    most_BT = jnp.minimum(ratio_BT, o.clip_most) if o.clip_most else ratio_BT
    clipped_BT = jnp.clip(ratio_BT, 1 - o.clip_low, 1 + o.clip_high)
    gain_BT = jnp.minimum(most_BT * adv_BT, clipped_BT * adv_BT)
    bound_BT = (ratio_BT < 1 - o.clip_low) & (adv_BT < 0) | (
      ratio_BT > 1 + o.clip_high
    ) & (adv_BT > 0)
  kl_BT = common.kl(o.kl, logp_BT, ref_logp_BT)
  lost_BT = o.kl_coef * kl_BT * (ratio_BT if o.kl_corrected else 1.0) - gain_BT
  if weight_BT is not None:
    lost_BT *= weight_BT

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / jnp.maximum(totals.tokens, 1)

  if o.norm == 'token':
    value = mean(lost_BT)
  elif o.norm == 'sequence':
    value = jnp.sum(_row_mean(lost_BT, mask_BT)) / totals.rows
  else:
    value = common.masked_sum(lost_BT, mask_BT) / (totals.rows * o.max_tokens)
  return value, {
    'loss': value,
    'kl': mean(kl_BT),
    'clip_fraction': mean(bound_BT.astype(jnp.float32)),
    'ratio/mean': mean(ratio_BT),
    'approx_kl': mean(common.kl('k3', old_logp_BT, logp_BT)),
  }


def mismatch_weight(
  objective: Objective, trainer_logp_BT, sampler_logp_BT, mask_BT
):
  """w_BT by which the sampler's tokens stand for the trainer's; fixed.

  Truncated importance sampling at the cap; or 1 within [1/C, C] and 0 beyond.
  """
  o = objective
  gap_BT = jnp.where(mask_BT, trainer_logp_BT - sampler_logp_BT, 0.0)
  if o.mismatch_level == 'sequence':
    gap_BT = jnp.sum(gap_BT, -1, keepdims=True) + 0 * gap_BT
  weight_BT = jnp.exp(
    jnp.clip(gap_BT, -common.MAX_LOG_RATIO, common.MAX_LOG_RATIO)
  )
  if o.mismatch == 'truncate':
    weight_BT = jnp.minimum(weight_BT, o.mismatch_cap)
  elif o.mismatch == 'mask':
    weight_BT = (
      (weight_BT <= o.mismatch_cap) & (weight_BT >= 1 / o.mismatch_cap)
    ).astype(jnp.float32)
  else:
    weight_BT = jnp.ones_like(weight_BT)
  return jax.lax.stop_gradient(weight_BT)


def _row_mean(x_BT, mask_BT):
  """Mean over a row's live tokens; 0 where there is none."""
  count_B = jnp.maximum(jnp.sum(mask_BT, -1), 1)
  return jnp.sum(jnp.where(mask_BT, x_BT, 0.0), -1) / count_B
