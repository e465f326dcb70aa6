"""What every objective shares: log-probabilities in chunks, KL estimators."""

import jax
import jax.numpy as jnp


MAX_CHUNK_LOGITS = 1 << 26  # 256 MiB of float32.


def token_logp(hidden_BTD, head_DV, target_BT, temperature: float = 1.0,
               chunk_tokens: int | None = None):
  """Log-probability of each target and entropy of its distribution.

  Logits exist for one chunk of tokens at a time, in the forward and in the
  backward pass: [B, T, V] is never stored.

  Args:
    hidden_BTD: The model's output after its final norm.
    head_DV: The output projection.
    target_BT: int32; target_BT[b, t] is predicted from hidden_BTD[b, t].
    temperature: Divides the logits, as the sampler did.
    chunk_tokens: Tokens a chunk; B·T is padded up to a multiple of it. None:
      as many as keep a chunk's logits within MAX_CHUNK_LOGITS numbers.

  Returns:
    logp_BT and entropy_BT, float32, in nats. No gradient flows to the entropy.
  """
  B, T, D = hidden_BTD.shape
  rows = B * T
  if chunk_tokens is None:
    chunk_tokens = max(MAX_CHUNK_LOGITS // head_DV.shape[1], 1)

  def chunk(args):
    hidden, target = args
    logits = jnp.matmul(
        hidden, head_DV, preferred_element_type=jnp.float32) / temperature
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
    chosen = jnp.take_along_axis(logp, target[:, None], -1)[:, 0]
    return chosen, jax.lax.stop_gradient(entropy)

  hidden, target = hidden_BTD.reshape(rows, D), target_BT.reshape(rows)
  if rows <= chunk_tokens:
    logp, entropy = chunk((hidden, target))
  else:
    spare = -rows % chunk_tokens
    hidden = jnp.pad(hidden, ((0, spare), (0, 0)))
    target = jnp.pad(target, (0, spare))
    logp, entropy = jax.lax.map(
        jax.checkpoint(chunk), (hidden.reshape(-1, chunk_tokens, D),
                                target.reshape(-1, chunk_tokens)))
    logp, entropy = (x.reshape(-1)[:rows] for x in (logp, entropy))
  return logp.reshape(B, T), entropy.reshape(B, T)


def masked_sum(x, mask):
  """Sum where mask, without letting a NaN outside it through."""
  return jnp.sum(jnp.where(mask, x, 0))


_MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: beyond it the estimate says nothing.


def kl(kind: str, logp, ref_logp):
  """Per-token estimate of KL(policy ‖ reference) from the policy's samples.

  With r = ref_logp − logp (Schulman, 'Approximating KL divergence'; k3 is
  DeepSeekMath eq. 4):
    k1 = −r            unbiased, may be negative
    k2 = r² / 2        biased, low variance
    k3 = eʳ − r − 1    unbiased, never negative
  """
  r = jnp.clip(jnp.float32(ref_logp) - jnp.float32(logp),
               -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  if kind == 'k1':
    return -r
  if kind == 'k2':
    return 0.5 * r * r
  if kind == 'k3':
    return jnp.expm1(r) - r
  raise ValueError(f'kl: unknown estimator {kind!r}; there are k1, k2, k3')
