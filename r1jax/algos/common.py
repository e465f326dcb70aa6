"""What every objective shares: log-probabilities in chunks, KL estimators."""

import jax
import jax.numpy as jnp

from r1jax.sharding import Layout

MAX_CHUNK_LOGITS = 1 << 26  # On one device: 256 MiB of float32.


def token_logp(
  hidden_BTD,
  head_DV,
  target_BT,
  temperature: float = 1.0,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
):
  """Log-probability of each target and entropy of its distribution.

  Logits exist for one chunk of columns at a time, in the forward and in the
  backward pass: [B, T, V] is never stored.

  Args:
    hidden_BTD: The model's output after its final norm.
    head_DV: The output projection.
    target_BT: int32; target_BT[b, t] is predicted from hidden_BTD[b, t].
    temperature: Divides the logits, as the sampler did.
    chunk_tokens: Tokens a chunk, in whole columns of B; T is padded up to a
      multiple. None: as many as keep a device's logits within
      MAX_CHUNK_LOGITS numbers.
    layout: Of a mesh; None for one device.

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

  return over_tokens(
    chunk, (hidden_BTD, target_BT), head_DV.shape[1], chunk_tokens, layout
  )


def over_tokens(
  chunk,
  arrays,
  vocab_size: int,
  chunk_tokens: int | None = None,
  layout: Layout | None = None,
):
  """Maps `chunk` over arrays [B, T, …], some columns of T at a time.

  Args:
    chunk: (array [n, …], …) → a tuple of [n], one number a token. It is run
      again in the backward pass.
    arrays: [B, T] or [B, T, D] each.
    vocab_size: Numbers that it makes of a token on the way.
    chunk_tokens, layout: See token_logp.

  Returns:
    A tuple of [B, T].
  """
  B, T = arrays[0].shape[:2]
  devices = layout.mesh.size if layout else 1
  if chunk_tokens is None:
    chunk_tokens = MAX_CHUNK_LOGITS // vocab_size * devices
  columns = min(max(chunk_tokens // B, 1), T)
  if devices > 1:
    arrays = [layout.constrain(x, 'BTD') if x.ndim == 3 else x for x in arrays]

  def shaped(some):
    if devices == 1:  # One product, whose gradient contracts one axis.
      some = [x.reshape(-1, *x.shape[2:]) for x in some]
    return tuple(x.reshape(B, -1) for x in chunk(*some))

  if columns == T:
    return shaped(arrays)

  def split(x):
    x = jnp.pad(x, ((0, 0), (0, -T % columns)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, -1, columns, *x.shape[2:]).swapaxes(0, 1)

  found = jax.lax.map(jax.checkpoint(shaped), [split(x) for x in arrays])
  return tuple(x.swapaxes(0, 1).reshape(B, -1)[:, :T] for x in found)


def masked_sum(x, mask, axis: int | None = None):
  """Sum where mask, without letting a NaN outside it through."""
  return jnp.sum(jnp.where(mask, x, 0), axis)


def won(gap):
  """1 where the right one is ahead, a half where neither is."""
  return (1 + jnp.sign(gap)) / 2


MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: beyond it the estimate says nothing.


def kl(kind: str, logp, ref_logp):
  """Per-token estimate of KL(policy ‖ reference) from the policy's samples.

  With r = ref_logp − logp (Schulman, 'Approximating KL divergence'; k3 is
  DeepSeekMath eq. 4):
    k1 = −r            unbiased, may be negative
    k2 = r² / 2        biased, low variance
    k3 = eʳ − r − 1    unbiased, never negative
  """
  r = jnp.clip(
    jnp.float32(ref_logp) - jnp.float32(logp), -MAX_LOG_RATIO, MAX_LOG_RATIO
  )
  if kind == 'k1':
    return -r
  if kind == 'k2':
    return 0.5 * r * r
  if kind == 'k3':
    return jnp.expm1(r) - r
  raise ValueError(f'kl: unknown estimator {kind!r}; there are k1, k2, k3')
