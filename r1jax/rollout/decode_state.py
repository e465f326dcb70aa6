"""Output and carry of the decode program's loop.

B counts sequences, and S the columns of a call: the cache slots of the tokens
that it feeds.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import cache
from r1jax.records import Array
from r1jax.rollout.sampling import SampledTokens
from r1jax.rollout.speculative import Draft


@chex.dataclass(frozen=True)
class DecodeOutput:
  """Tokens that one call of the decode program sampled.

  Attributes:
    tokens_BS: int32, the token that was sampled after each column.
    logp_BS, model_logp_BS: float32, see sampling.SampledTokens.
    valid_BS: bool, columns whose token belongs to the completion.
    top_token_BSO, top_logp_BSO: int32 and float32, see sampling.SampledTokens;
      or None.
    experts_BSLA: uint16, experts of the token that was fed in each column; or
      None.
    decode_steps_B: int32, forward passes that the sequence took part in.
    draft_tokens_B: int32, drafts that the MTP module proposed.
    accepted_tokens_B: int32, drafts that were accepted.
  """

  tokens_BS: Array
  logp_BS: Array
  model_logp_BS: Array
  valid_BS: Array
  top_token_BSO: Array
  top_logp_BSO: Array
  experts_BSLA: Array
  decode_steps_B: Array
  draft_tokens_B: Array
  accepted_tokens_B: Array

  def write(
    self,
    column,
    live_B,
    sampled: list[SampledTokens],
    emitted: list[jax.Array],
    experts_BTLA,
  ) -> 'DecodeOutput':
    """Returns the output with the T columns of one forward pass filled in.

    Args:
      column: int32, first of the T columns.
      live_B: bool, sequences that took part in the pass.
      sampled: The tokens sampled after each column.
      emitted: For each column bool [B], whether its token counts.
      experts_BTLA: Experts of the tokens that were fed.
    """

    def filled(x_BS, new: list):
      return jax.lax.dynamic_update_slice_in_dim(
        x_BS, jnp.stack(new, 1).astype(x_BS.dtype), column, 1
      )

    changes = dict(
      tokens_BS=filled(self.tokens_BS, [t.token_B for t in sampled]),
      logp_BS=filled(self.logp_BS, [t.logp_B for t in sampled]),
      model_logp_BS=filled(
        self.model_logp_BS, [t.model_logp_B for t in sampled]
      ),
      valid_BS=filled(self.valid_BS, emitted),
      decode_steps_B=self.decode_steps_B + live_B,
    )
    if self.top_token_BSO is not None:
      changes |= dict(
        top_token_BSO=filled(
          self.top_token_BSO, [t.top_token_BO for t in sampled]
        ),
        top_logp_BSO=filled(
          self.top_logp_BSO, [t.top_logp_BO for t in sampled]
        ),
      )
    if self.experts_BSLA is not None:
      experts = [experts_BTLA[:, t] for t in range(len(sampled))]
      changes |= dict(experts_BSLA=filled(self.experts_BSLA, experts))
    return dataclasses.replace(self, **changes)

  def count_drafts(self, draft: Draft | None, accepted_B) -> 'DecodeOutput':
    """Returns the output with the drafts of one pass counted, if it has any."""
    if draft is None:
      return self
    return dataclasses.replace(
      self,
      draft_tokens_B=self.draft_tokens_B + draft.live_B,
      accepted_tokens_B=self.accepted_tokens_B + accepted_B,
    )


def empty_output(
  B: int, S: int, num_top_logprobs: int, routing: ModelConfig | None
) -> DecodeOutput:
  """Returns the output before the first forward pass.

  Args:
    B, S: Sequences and columns.
    num_top_logprobs: O.
    routing: Config of a model whose experts are recorded; None for no record.
  """
  O = num_top_logprobs
  zeros_BS, zeros_B = jnp.zeros((B, S), jnp.float32), jnp.zeros(B, jnp.int32)
  experts_BSLA = None
  if routing:
    experts_BSLA = jnp.zeros(
      (B, S, routing.num_moe_layers, routing.num_experts_per_tok), jnp.uint16
    )
  return DecodeOutput(
    tokens_BS=zeros_BS.astype(jnp.int32),
    logp_BS=zeros_BS,
    model_logp_BS=zeros_BS,
    valid_BS=zeros_BS.astype(bool),
    top_token_BSO=jnp.zeros((B, S, O), jnp.int32) if O else None,
    top_logp_BSO=jnp.zeros((B, S, O)) if O else None,
    experts_BSLA=experts_BSLA,
    decode_steps_B=zeros_B,
    draft_tokens_B=zeros_B,
    accepted_tokens_B=zeros_B,
  )


class DecodeState(NamedTuple):
  """The carry of the decode loop.

  Attributes:
    step: int32, forward passes so far.
    live_B: bool, sequences that go on.
    token_B: int32, token that is fed next.
    columns: Cache entries of this call, by stack.
    hidden_BSD: The model's hidden state at each column, if speculative.
    seen_BV: See SamplingMetadata.
    mtp_input: Tokens that the MTP module has not read yet, if speculative:
      the accepted draft of the last pass, if any, and the last token.
    output: Tokens sampled so far.
  """

  step: jax.Array
  live_B: jax.Array
  token_B: jax.Array
  columns: dict[str, cache.KVCache]
  hidden_BSD: Any
  seen_BV: jax.Array | None
  mtp_input: Any
  output: DecodeOutput
