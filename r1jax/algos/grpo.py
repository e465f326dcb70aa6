"""Group relative policy optimisation (DeepSeekMath eq. 3, DeepSeek-R1 eq. 1).

  J = 1/Σ|o| Σ_i Σ_t { min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A) − β KL }

with ρ = π(o_t) / π_old(o_t), the sum over every live token of the batch and
the norm their global count, so that the value does not depend on how a batch
is split over microbatches and devices.
"""

import jax.numpy as jnp

from r1jax.algos import common


def loss(logp_BT, old_logp_BT, ref_logp_BT, adv_B, mask_BT, live_tokens,
         clip_low: float, clip_high: float, kl_coef: float):
  """One microbatch's share of −J.

  Args:
    logp_BT: float32 log-probabilities under the policy that is trained.
    old_logp_BT: Under the policy that sampled.
    ref_logp_BT: Under the reference policy.
    adv_B: Advantages.
    mask_BT: bool, live tokens.
    live_tokens: Scalar, live tokens of the WHOLE minibatch.
    clip_low: ε_low.
    clip_high: ε_high.
    kl_coef: β.

  Returns:
    The loss and a dict of metrics; all of them sum over microbatches.
  """
  # Masked first: a NaN outside would reach the gradient through any mask that
  # comes after it.
  logp_BT, old_logp_BT, ref_logp_BT = (
      jnp.where(mask_BT, x, 0.0) for x in (logp_BT, old_logp_BT, ref_logp_BT))
  ratio_BT = jnp.exp(logp_BT - old_logp_BT)
  clipped_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
  adv_B1 = adv_B[:, None]
  gain_BT = jnp.minimum(ratio_BT * adv_B1, clipped_BT * adv_B1)
  kl_BT = common.kl('k3', logp_BT, ref_logp_BT)

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / jnp.maximum(live_tokens, 1)

  bound_BT = ((ratio_BT < 1 - clip_low) & (adv_B1 < 0)
              | (ratio_BT > 1 + clip_high) & (adv_B1 > 0))
  value = mean(kl_coef * kl_BT - gain_BT)
  return value, {
      'loss': value,
      'kl': mean(kl_BT),
      'clip_fraction': mean(bound_BT.astype(jnp.float32)),
      'ratio/mean': mean(ratio_BT),
      'approx_kl': mean(common.kl('k3', old_logp_BT, logp_BT)),
  }
