"""Generalized advantage estimation (GAEConfig) and the value loss of PPO.

The policy loss is that of algos/policy_loss.py. The state in which a token is
sampled consists of all tokens before it, so value_BT[b, t] is the value of the
tokens before t, as logp_BT[b, t] is conditioned on them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.config.schema.rl import GAEConfig

_MIN_STD = 1e-4  # Keeps differences that are only rounding small.


class Estimate(NamedTuple):
  """Advantages, the returns that a value function learns, and metrics."""

  adv_BT: jax.Array
  return_BT: jax.Array
  metrics: Mapping[str, jax.Array]


def token_rewards(reward_BT, mask_BT, segment_BT, penalty_BT=None):
  """Returns token rewards: a completion's reward is given at its last token.

  A penalty, such as a KL estimate, is subtracted at every token.

  Example with a reward of 1, three tokens after one column of prompt, and a
  penalty of 0.1 per token:
    mask_BT   = [0,    1,    1,    1,   0]
    returned  = [0, −0.1, −0.1,  0.9,   0]

  Args:
    reward_BT: float32, the reward of the sample that each token belongs to.
    mask_BT: bool loss mask.
    segment_BT: int32, the sample within its row that each token belongs to.
    penalty_BT: float32 penalties, or None.
  """
  reward_BT = jnp.where(_last(mask_BT, segment_BT), reward_BT, 0.0)
  if penalty_BT is not None:
    reward_BT -= jnp.where(mask_BT, penalty_BT, 0.0)
  return reward_BT


def estimate(
  config: GAEConfig,
  reward_BT,
  value_BT,
  after_BT,
  truncated_BT,
  mask_BT,
  segment_BT,
) -> Estimate:
  """Returns advantages by generalized advantage estimation, and returns.

  Args:
    config: Parameters; static under jit.
    reward_BT: float32 token rewards, see token_rewards.
    value_BT: float32 value of the state in which each token was sampled.
    after_BT: float32 value of the state after each token, which counts at the
      last token of a sample.
    truncated_BT: bool, True for tokens of completions that were truncated.
    mask_BT: bool loss mask; the tokens of a sample are contiguous.
    segment_BT: int32, the sample within its row that each token belongs to.
  """
  bootstrap_BT = truncated_BT & (config.truncated_value == 'bootstrap')
  adv_BT = gae(
    config.gamma,
    config.lam,
    reward_BT,
    value_BT,
    jnp.where(bootstrap_BT, after_BT, 0.0),
    mask_BT,
    segment_BT,
  )
  return_BT = adv_BT + jnp.where(mask_BT, value_BT, 0.0)
  _, std = _moments(adv_BT, mask_BT)
  metrics = {
    'critic/values/mean': _moments(value_BT, mask_BT)[0],
    'critic/vf_explained_var': explained_variance(value_BT, return_BT, mask_BT),
    'critic/returns/mean': _moments(return_BT, mask_BT)[0],
    'critic/advantages/std': std,  # Before whitening.
  }
  if config.whiten_advantages:
    adv_BT = whiten(adv_BT, mask_BT)
  return Estimate(adv_BT, return_BT, metrics)


def gae(
  gamma: float, lam: float, reward_BT, value_BT, end_BT, mask_BT, segment_BT
):
  """Returns A_t = δ_t + γλ A_{t+1}, where δ_t = r_t + γ V_{t+1} − V_t.

  Example with γ = λ = 1, two tokens after one column of prompt, a reward of 1
  at the last token, and the value 0 after it:
    mask_BT   = [0,   1,   1, 0]
    reward_BT = [0,   0,   1, 0]
    value_BT  = [0, 0.5, 0.7, 0]
    δ         = [0, 0.2, 0.3, 0]
    adv_BT    = [0, 0.5, 0.3, 0]

  Args:
    gamma, lam: See GAEConfig.
    reward_BT, value_BT: float32.
    end_BT: V after the last token of a sample, read there alone.
    mask_BT: bool loss mask; the tokens of a sample are contiguous.
    segment_BT: int32, the sample within its row that each token belongs to.

  Returns:
    adv_BT, 0 outside the mask. Columns without tokens change no bit.
  """
  reward_BT, value_BT = (
    jnp.where(mask_BT, x, 0.0) for x in (reward_BT, value_BT)
  )
  last_BT = _last(mask_BT, segment_BT)
  next_BT = jnp.where(last_BT, end_BT, _from_right(value_BT))
  delta_BT = jnp.where(mask_BT, reward_BT + gamma * next_BT - value_BT, 0.0)

  def back(adv_B, column):
    delta_B, live_B, last_B = column
    later_B = jnp.where(last_B, 0.0, adv_B)
    adv_B = jnp.where(live_B, delta_B + gamma * lam * later_B, 0.0)
    return adv_B, adv_B

  _, adv_TB = jax.lax.scan(
    back,
    jnp.zeros_like(delta_BT[:, 0]),
    (delta_BT.T, mask_BT.T, last_BT.T),
    reverse=True,
  )
  return adv_TB.T


def value_loss(
  config: GAEConfig, value_BT, old_value_BT, return_BT, mask_BT, num_tokens
):
  """Returns the mean of ½ max{(V − R)², (clip(V, V_old ± ε) − R)²}.

  Args:
    config: Parameters; static under jit.
    value_BT: float32 V, the values in training.
    old_value_BT: float32 V_old, the values that the advantages came from.
    return_BT: float32 R.
    mask_BT: bool loss mask.
    num_tokens: Number of tokens in the mask of the whole minibatch, so that
      the loss does not depend on how a minibatch is split.

  Returns:
    The loss and a dict of metrics. All of them add up over microbatches.
  """
  value_BT, old_value_BT, return_BT = (
    jnp.where(mask_BT, x, 0.0) for x in (value_BT, old_value_BT, return_BT)
  )
  error_BT = (value_BT - return_BT) ** 2
  clipped_BT = jnp.zeros_like(mask_BT)
  if config.cliprange_value:
    near_BT = old_value_BT + jnp.clip(
      value_BT - old_value_BT, -config.cliprange_value, config.cliprange_value
    )
    near_error_BT = (near_BT - return_BT) ** 2
    clipped_BT = near_error_BT > error_BT
    error_BT = jnp.maximum(error_BT, near_error_BT)

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / jnp.maximum(num_tokens, 1)

  vf_loss = 0.5 * mean(error_BT)
  return vf_loss, {
    'critic/vf_loss': vf_loss,
    'critic/vf_clipfrac': mean(clipped_BT.astype(jnp.float32)),
  }


def whiten(x_BT, mask_BT):
  """Scales the masked entries to mean 0 and deviation 1; others become 0."""
  mean, std = _moments(x_BT, mask_BT)
  return jnp.where(mask_BT, (x_BT - mean) / (std + _MIN_STD), 0.0)


def explained_variance(value_BT, return_BT, mask_BT):
  """Returns 1 − Var(R − V) / Var(R).

  It is 1 for a perfect value function, 0 for a constant one, and NaN where all
  returns are equal.
  """
  _, std = _moments(return_BT, mask_BT)
  _, residual_std = _moments(return_BT - value_BT, mask_BT)
  return jnp.where(std > 0, 1 - residual_std**2 / std**2, jnp.nan)


def _moments(x_BT, mask_BT):
  """Returns mean and standard deviation of the masked entries."""
  count = jnp.maximum(jnp.sum(mask_BT), 1)
  mean = common.masked_sum(x_BT, mask_BT) / count
  return mean, jnp.sqrt(common.masked_sum((x_BT - mean) ** 2, mask_BT) / count)


def _last(mask_BT, segment_BT):
  """Returns True at the last masked token of each sample."""
  same_BT = _from_right(segment_BT) == segment_BT
  return mask_BT & ~(_from_right(mask_BT) & same_BT)


def _from_right(x_BT):
  """Shifts columns to the left by one: [1, 2, 3] → [2, 3, 0]."""
  return jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))
