"""Speculative decoding: draft tokens and their verification.

A draft model, here the first MTP module, proposes a token; the model accepts
or replaces it so that samples keep the model's distribution.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.rollout import sampling
from r1jax.rollout.sampling import SampledTokens, SamplingMetadata

_PROPOSE, _ACCEPT = 1, 2  # Further uses of a token's key, beside sampling it.


class Draft(NamedTuple):
  """A draft token per sequence, and the logits that it was sampled from.

  Attributes:
    token_B: int32.
    logits_BV: float32 processed logits of the draft model.
    live_B: bool, sequences that have a draft.
  """

  token_B: jax.Array
  logits_BV: jax.Array
  live_B: jax.Array


def propose_draft(
  logits_BV, metadata: SamplingMetadata, offset_B, live_B
) -> Draft:
  """Samples a draft token from the draft model's logits.

  `verify_draft`, called with the same `metadata` and `offset_B`, accepts or
  replaces it.
  """
  processed_BV = sampling.process_logits(logits_BV, metadata)
  token_B = sampling.sample_categorical(
    sampling.token_keys(metadata, offset_B, _PROPOSE), processed_BV
  )
  token_B = jnp.where(
    metadata.temperature_B == 0, sampling.argmax(processed_BV), token_B
  )
  return Draft(token_B, processed_BV, live_B)


def verify_draft(
  logits_BV,
  metadata: SamplingMetadata,
  offset_B,
  draft: Draft,
  num_top_logprobs: int = 0,
) -> tuple[SampledTokens, jax.Array]:
  """Accepts the draft or samples a replacement, by rejection sampling.

  The result has the distribution p of `sample_tokens`: a draft that was
  sampled from q is accepted with probability min(1, p / q); otherwise a token
  of max(p − q, 0) replaces it (Leviathan et al. 2023, section 2.3). A greedy
  sequence accepts a draft that is the most likely token.

  Returns:
    The sampled tokens, and bool [B], whether the draft was accepted.
  """
  processed_BV = sampling.process_logits(logits_BV, metadata)
  p_BV = jax.nn.softmax(processed_BV)
  q_BV = jax.nn.softmax(draft.logits_BV) * draft.live_B[:, None]
  p_B, q_B = (sampling.take_token(x_BV, draft.token_B) for x_BV in (p_BV, q_BV))
  uniform_B = jax.vmap(jax.random.uniform)(
    sampling.token_keys(metadata, offset_B, _ACCEPT)
  )
  accepted_B = draft.live_B & (uniform_B * q_B < p_B)
  residual_BV = jnp.maximum(p_BV - q_BV, 0)
  # The residual is zero if p = q to the last bit; every draft is accepted then.
  residual_BV = jnp.where(
    residual_BV.sum(-1, keepdims=True) > 0, residual_BV, p_BV
  )
  other_B = sampling.sample_categorical(
    sampling.token_keys(metadata, offset_B), jnp.log(residual_BV)
  )
  greedy_B, top_B = metadata.temperature_B == 0, sampling.argmax(processed_BV)
  accepted_B = jnp.where(
    greedy_B, draft.live_B & (draft.token_B == top_B), accepted_B
  )
  token_B = jnp.where(
    accepted_B, draft.token_B, jnp.where(greedy_B, top_B, other_B)
  )
  sampled = sampling.with_logprobs(
    logits_BV, processed_BV, token_B, metadata, num_top_logprobs
  )
  return sampled, accepted_B
