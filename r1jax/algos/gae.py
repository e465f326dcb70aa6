"""What PPO has that GRPO has not: a value of every state, and advantages of
every token from it.

The policy's own loss is the same (algos/grpo.py). The state that a token is
drawn in is all that stands before it, so value_BT[b, t] is of the tokens before
t, as logp_BT[b, t] is.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.algos import common
from r1jax.errors import UserError

_LEAST_STD = 1e-4  # Below it differences are rounding, and stay small.


@dataclasses.dataclass(frozen=True)
class Estimator:
  """How rewards become advantages, and what a value is to learn.

  Attributes:
    gamma: γ, by which a later reward counts less.
    lam: λ of generalised advantage estimation (arXiv 1506.02438, eq. 16): 1,
      what was earned from a token on, without bias; 0, what the next value
      says of it, with the least variance.
    truncated: What follows a completion that was cut off: nothing ('end'), or
      the value of the state that it was left in ('bootstrap').
    whiten: Advantages of all tokens get mean 0 and deviation 1.
    value_clip: How far a value may move from the one that the advantages were
      made with before its error counts unclipped; 0 for no bound.
  """

  gamma: float = 1.0
  lam: float = 1.0
  truncated: str = 'end'
  whiten: bool = True
  value_clip: float = 0.2

  def __post_init__(self):
    for field in ('gamma', 'lam'):
      if not 0 <= getattr(self, field) <= 1:
        raise UserError(
          f'rl.ppo: {field} must lie within [0, 1], got {getattr(self, field)}'
        )
    if self.truncated not in ('end', 'bootstrap'):
      raise UserError(
        "rl.ppo: truncated must be 'end' or 'bootstrap', got "
        f'{self.truncated!r}'
      )
    if self.value_clip < 0:
      raise UserError(
        f'rl.ppo: value_clip must not be below 0, got {self.value_clip}'
      )


class Estimate(NamedTuple):
  """Of every token: its advantage, and the return that a value learns."""

  adv_BT: jax.Array
  return_BT: jax.Array
  metrics: Mapping[str, jax.Array]


def token_rewards(reward_B, mask_BT, penalty_BT=None):
  """A completion's reward stands at its last token; each pays its penalty.

  Example, a reward of 1, three tokens after a column of prompt, 0.1 each:
    mask_BT   = [0,    1,    1,    1,   0]
    reward_BT = [0, −0.1, −0.1,  0.9,   0]
  """
  reward_BT = jnp.where(_last(mask_BT), reward_B[:, None], 0.0)
  if penalty_BT is not None:
    reward_BT -= jnp.where(mask_BT, penalty_BT, 0.0)
  return reward_BT


def estimate(
  how: Estimator, reward_BT, value_BT, after_B, cut_B, mask_BT
) -> Estimate:
  """Generalised advantage estimation and what is told of it.

  Args:
    how: Static.
    reward_BT: See token_rewards.
    value_BT: float32, of the state that each token was drawn in.
    after_B: Value of the state that a row was left in.
    cut_B: bool, rows that were cut off and might have gone on.
    mask_BT: bool, live tokens; a row's lie side by side.
  """
  goes_on_B = cut_B & (how.truncated == 'bootstrap')
  adv_BT = gae(
    how.gamma,
    how.lam,
    reward_BT,
    value_BT,
    jnp.where(goes_on_B, after_B, 0.0),
    mask_BT,
  )
  return_BT = adv_BT + jnp.where(mask_BT, value_BT, 0.0)
  _, std = _moments(adv_BT, mask_BT)
  metrics = {
    'value/mean': _moments(value_BT, mask_BT)[0],
    'value/explained_variance': explained_variance(
      value_BT, return_BT, mask_BT
    ),
    'return/mean': _moments(return_BT, mask_BT)[0],
    'advantage/std': std,
  }  # Before it becomes 1.
  if how.whiten:
    adv_BT = whiten(adv_BT, mask_BT)
  return Estimate(adv_BT, return_BT, metrics)


def gae(gamma: float, lam: float, reward_BT, value_BT, end_B, mask_BT):
  """A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t, from the end back.

  Example, γ = λ = 1, two tokens after a column of prompt, a reward of 1 at the
  last, nothing after it:
    mask_BT   = [0,   1,   1, 0]
    reward_BT = [0,   0,   1, 0]
    value_BT  = [0, 0.5, 0.7, 0]
    δ         = [0, 0.2, 0.3, 0]
    adv_BT    = [0, 0.5, 0.3, 0]

  Args:
    gamma, lam: See Estimator.
    reward_BT, value_BT: float32.
    end_B: V after a row's last token.
    mask_BT: bool, live tokens; a row's lie side by side.

  Returns:
    adv_BT, 0 outside the mask. Columns without a live token change no bit.
  """
  reward_BT, value_BT = (
    jnp.where(mask_BT, x, 0.0) for x in (reward_BT, value_BT)
  )
  next_BT = jnp.where(_last(mask_BT), end_B[:, None], _from_right(value_BT))
  delta_BT = jnp.where(mask_BT, reward_BT + gamma * next_BT - value_BT, 0.0)

  def back(adv_B, column):
    delta_B, live_B = column
    adv_B = jnp.where(live_B, delta_B + gamma * lam * adv_B, 0.0)
    return adv_B, adv_B

  _, adv_TB = jax.lax.scan(
    back, jnp.zeros_like(delta_BT[:, 0]), (delta_BT.T, mask_BT.T), reverse=True
  )
  return adv_TB.T


def value_loss(
  how: Estimator, value_BT, old_value_BT, return_BT, mask_BT, live_tokens
):
  """½ max{(V − R)², (clip(V, V_old ± ε) − R)²}, a mean over live tokens.

  Args:
    how: Static.
    value_BT: float32, what is trained.
    old_value_BT: What the advantages were made with.
    return_BT: R.
    mask_BT: bool, live tokens.
    live_tokens: Of the WHOLE minibatch, so that the value does not depend on
      how it is split.

  Returns:
    The loss and a dict of metrics; all of them sum over microbatches.
  """
  value_BT, old_value_BT, return_BT = (
    jnp.where(mask_BT, x, 0.0) for x in (value_BT, old_value_BT, return_BT)
  )
  error_BT = (value_BT - return_BT) ** 2
  bound_BT = jnp.zeros_like(mask_BT)
  if how.value_clip:
    near_BT = old_value_BT + jnp.clip(
      value_BT - old_value_BT, -how.value_clip, how.value_clip
    )
    clipped_BT = (near_BT - return_BT) ** 2
    bound_BT = clipped_BT > error_BT
    error_BT = jnp.maximum(error_BT, clipped_BT)

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / jnp.maximum(live_tokens, 1)

  value = 0.5 * mean(error_BT)
  return value, {
    'value/loss': value,
    'value/clip_fraction': mean(bound_BT.astype(jnp.float32)),
  }


def whiten(x_BT, mask_BT):
  """Mean 0 and deviation 1 over the live entries; 0 elsewhere."""
  mean, std = _moments(x_BT, mask_BT)
  return jnp.where(mask_BT, (x_BT - mean) / (std + _LEAST_STD), 0.0)


def explained_variance(value_BT, return_BT, mask_BT):
  """1 − Var(R − V) / Var(R): 1 for a perfect value, 0 for a constant one, NaN
  where all returns are one."""
  _, std = _moments(return_BT, mask_BT)
  _, left = _moments(return_BT - value_BT, mask_BT)
  return jnp.where(std > 0, 1 - left**2 / std**2, jnp.nan)


def _moments(x_BT, mask_BT):
  """Mean and deviation of the live entries."""
  count = jnp.maximum(jnp.sum(mask_BT), 1)
  mean = common.masked_sum(x_BT, mask_BT) / count
  return mean, jnp.sqrt(common.masked_sum((x_BT - mean) ** 2, mask_BT) / count)


def _last(mask_BT):
  """True at the last live token of each row."""
  return mask_BT & ~_from_right(mask_BT)


def _from_right(x_BT):
  """Each column's right neighbour: [1, 2, 3] → [2, 3, 0]."""
  return jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))
