"""Shared by all losses: chunked log-probabilities, masked sums, KL estimators."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.sharding import Layout

MAX_CHUNK_LOGITS = 1 << 26  # Per device: 256 MiB of float32.


def token_logp(
  hidden_BTD,
  head_DV,
  target_BT,
  temperature: float = 1.0,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
):
  """Returns each target's log-probability and the entropy of its distribution.

  Logits exist for one chunk of columns at a time, in the forward and in the
  backward pass: [B, T, V] is never stored.

  Args:
    hidden_BTD: The model's hidden states after its final norm.
    head_DV: The output projection.
    target_BT: int32; target_BT[b, t] is predicted from hidden_BTD[b, t].
    temperature: Divides the logits, as in sampling.
    chunk_tokens: Tokens per chunk, rounded down to whole columns of B tokens; T
      is padded to a multiple of the chunk's columns. None takes as many as keep
      the logits of a device within MAX_CHUNK_LOGITS numbers.
    layout: The mesh layout; None for one device.

  Returns:
    logp_BT and entropy_BT, float32, in nats. No gradient flows to the entropy.
  """

  def chunk(hidden, target):
    logits = (
      jnp.matmul(hidden, head_DV, preferred_element_type=jnp.float32)
      / temperature
    )
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
    chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    return chosen, jax.lax.stop_gradient(entropy)

  return map_token_chunks(
    chunk, (hidden_BTD, target_BT), head_DV.shape[1], chunk_tokens, layout
  )


def map_token_chunks(
  function,
  arrays,
  vocab_size: int,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
):
  """Maps a function over arrays [B, T, …], some columns of T at a time.

  Args:
    function: Takes arrays [n, …] and returns a tuple of arrays [n], one number
      per token. It is computed again in the backward pass.
    arrays: Arrays of shape [B, T] or [B, T, D].
    vocab_size: Intermediate numbers per token, by which the chunk is sized.
    chunk_tokens, layout: See token_logp.

  Returns:
    A tuple of arrays [B, T].
  """
  B, T = arrays[0].shape[:2]
  devices = layout.mesh.size if layout else 1
  if chunk_tokens is None:
    chunk_tokens = MAX_CHUNK_LOGITS // vocab_size * devices
  columns = min(max(chunk_tokens // B, 1), T)
  if layout and devices > 1:
    arrays = [layout.constrain(x, 'BTD') if x.ndim == 3 else x for x in arrays]

  def apply(chunks):
    if devices == 1:  # One product, whose gradient contracts one axis.
      chunks = [x.reshape(-1, *x.shape[2:]) for x in chunks]
    return tuple(x.reshape(B, -1) for x in function(*chunks))

  if columns == T:
    return apply(arrays)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, -T % columns)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, -1, columns, *x.shape[2:]).swapaxes(0, 1)

  outputs = jax.lax.map(jax.checkpoint(apply), [split(x) for x in arrays])
  return tuple(x.swapaxes(0, 1).reshape(B, -1)[:, :T] for x in outputs)


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
