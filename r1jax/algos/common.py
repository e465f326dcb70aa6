"""Shared by all losses: log-probabilities, masked sums, KL estimators."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.algos.token_chunks import map_token_chunks
from r1jax.sharding import Layout


def token_logp(
  hidden_BTD,
  head_DV,
  target_BT,
  temperature: float = 1.0,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
  mask_BT=None,
):
  """Returns each target's log-probability and the entropy of its distribution.

  Logits are computed only for the tokens that count, and no more than a chunk
  of them exists at a time; see token_chunks.

  Args:
    hidden_BTD: The model's hidden states after its final norm.
    head_DV: The output projection.
    target_BT: int32; target_BT[b, t] is predicted from hidden_BTD[b, t].
    temperature: Divides the logits, as in sampling.
    chunk_tokens, layout, mask_BT: See token_chunks.map_token_chunks.

  Returns:
    logp_BT and entropy_BT, float32, in nats, 0 where mask_BT is False. No
    gradient flows to the entropy.
  """
  return map_token_chunks(
    lambda logits, target: target_logp(logits / temperature, target),
    [(hidden_BTD, head_DV)],
    [target_BT],
    chunk_tokens,
    layout,
    mask_BT,
  )


def target_logp(logits, target):
  """Returns log-probabilities [...] of targets [...], and entropies.

  The logits are [..., V]. No gradient flows to the entropies.
  """
  logp = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
  entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
  # The same numbers as log_softmax's, but its gradient of a single logit takes
  # another pass over all of them.
  top = jax.lax.stop_gradient(jnp.max(logits, -1))
  log_sum = jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), -1))
  chosen = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
  return chosen - top - log_sum, entropy


def masked_sum(x, mask, axis: int | None = None):
  """Returns the sum over a mask; a NaN outside the mask does not reach it."""
  return jnp.sum(jnp.where(mask, x, 0), axis)


class Samples(NamedTuple):
  """The sample that each token of a batch belongs to.

  Attributes:
    id_BT: int32 in [0, num); any of them where a mask is False.
    num: Number of samples; static under jit.
  """

  id_BT: jax.Array
  num: int

  @classmethod
  def one_a_row(cls, like_BT) -> 'Samples':
    """Returns the samples of an array whose every row is one sample."""
    B, T = like_BT.shape
    return cls(jnp.repeat(jnp.arange(B)[:, None], T, 1), B)

  def sum(self, x_BT, mask_BT):
    """Returns the sum of each sample over the mask, float32 [num]."""
    return jax.ops.segment_sum(
      jnp.where(mask_BT, x_BT, 0).ravel(), self.id_BT.ravel(), self.num
    )

  def mean(self, x_BT, mask_BT):
    """Returns the mean of each sample over the mask; 0 without any token."""
    count = self.sum(jnp.ones_like(x_BT), mask_BT)
    return self.sum(x_BT, mask_BT) / jnp.maximum(count, 1)

  def spread(self, x):
    """Returns each token's entry of an array [num]."""
    return x[self.id_BT]


def pairwise_accuracy(margin):
  """Returns 1 for a positive margin, 0 for a negative one, 1/2 for a tie."""
  return (1 + jnp.sign(margin)) / 2


MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: a larger ratio carries no information.


def kl_estimate(estimator: str, logp, ref_logp):
  """Returns a per-token estimate of KL(policy ‖ reference).

  The tokens must be samples of the policy. With r = ref_logp − logp (Schulman,
  'Approximating KL divergence'; k3 is DeepSeekMath eq. 4):
    k1 = −r            unbiased, may be negative
    k2 = r² / 2        biased, low variance
    k3 = eʳ − r − 1    unbiased, never negative
  """
  r = jnp.clip(
    jnp.float32(ref_logp) - jnp.float32(logp), -MAX_LOG_RATIO, MAX_LOG_RATIO
  )
  if estimator == 'k1':
    return -r
  if estimator == 'k2':
    return 0.5 * r * r
  if estimator == 'k3':
    return jnp.expm1(r) - r
  raise ValueError(
    f'kl_estimator: unknown {estimator!r}; there are k1, k2 and k3'
  )
