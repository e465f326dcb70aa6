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
from r1jax.rollout.speculative import DraftControl, Drafts


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
    draft_tokens_BK: int32, how often the MTP module drafted at each of the K
      positions after the last token; K = 0 without speculative decoding.
    accepted_tokens_BK: int32, how many of these drafts were accepted.
    control: Control of the drafts after the call, speculative.DraftControl; or
      None.
  """

  tokens_BS: Array
  logp_BS: Array
  model_logp_BS: Array
  valid_BS: Array
  top_token_BSO: Array
  top_logp_BSO: Array
  experts_BSLA: Array
  decode_steps_B: Array
  draft_tokens_BK: Array
  accepted_tokens_BK: Array
  control: DraftControl | None

  def write(
    self, column, live_B, sampled: SampledTokens, emitted_BT, experts_BTLA
  ) -> 'DecodeOutput':
    """Returns the output with the T columns of one forward pass filled in.

    Args:
      column: int32, first of the T columns.
      live_B: bool, sequences that took part in the pass.
      sampled: The tokens sampled after each column, with arrays [B, T].
      emitted_BT: bool, columns whose token counts.
      experts_BTLA: Experts of the tokens that were fed.
    """

    def filled(x_BS, new_BT):
      return jax.lax.dynamic_update_slice_in_dim(
        x_BS, new_BT.astype(x_BS.dtype), column, 1
      )

    changes = dict(
      tokens_BS=filled(self.tokens_BS, sampled.token_B),
      logp_BS=filled(self.logp_BS, sampled.logp_B),
      model_logp_BS=filled(self.model_logp_BS, sampled.model_logp_B),
      valid_BS=filled(self.valid_BS, emitted_BT),
      decode_steps_B=self.decode_steps_B + live_B,
    )
    if self.top_token_BSO is not None:
      changes |= dict(
        top_token_BSO=filled(self.top_token_BSO, sampled.top_token_BO),
        top_logp_BSO=filled(self.top_logp_BSO, sampled.top_logp_BO),
      )
    if self.experts_BSLA is not None:
      changes |= dict(experts_BSLA=filled(self.experts_BSLA, experts_BTLA))
    return dataclasses.replace(self, **changes)

  def count_drafts(self, drafts: Drafts, num_accepted_B) -> 'DecodeOutput':
    """Returns the output with the drafts of one pass counted."""
    number_K = jnp.arange(self.draft_tokens_BK.shape[1])
    return dataclasses.replace(
      self,
      draft_tokens_BK=self.draft_tokens_BK
      + (number_K < drafts.count_B[:, None]),
      accepted_tokens_BK=self.accepted_tokens_BK
      + (number_K < num_accepted_B[:, None]),
    )


def empty_output(
  B: int, S: int, K: int, num_top_logprobs: int, routing: ModelConfig | None
) -> DecodeOutput:
  """Returns the output before the first forward pass.

  Args:
    B, S, K: Sequences, columns, and the maximum number of drafts of a pass.
    num_top_logprobs: O.
    routing: Config of a model whose experts are recorded; None for no record.
  """
  O = num_top_logprobs
  zeros_BS, zeros_BK = jnp.zeros((B, S)), jnp.zeros((B, K), jnp.int32)
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
    decode_steps_B=jnp.zeros(B, jnp.int32),
    draft_tokens_BK=zeros_BK,
    accepted_tokens_BK=zeros_BK,
    control=None,
  )


class DecodeState(NamedTuple):
  """The carry of the decode loop.

  All from hidden_BSD to control are None without speculative decoding.

  Attributes:
    step: int32, forward passes so far.
    column: int32, the first column that the next pass fills.
    live_B: bool, sequences that go on.
    token_B: int32, token that is fed next.
    columns: Cache entries of this call, by stack.
    seen_BV: See SamplingMetadata.
    hidden_BSD: The model's hidden state at each column.
    mtp_hidden_BD: The MTP module's hidden state at the last token.
    can_draft_B: bool, sequences whose last token the module could read.
    control: See speculative.DraftControl.
    output: Tokens sampled so far.
  """

  step: jax.Array
  column: jax.Array
  live_B: jax.Array
  token_B: jax.Array
  columns: dict[str, cache.KVCache]
  seen_BV: jax.Array | None
  hidden_BSD: Any
  mtp_hidden_BD: Any
  can_draft_B: Any
  control: Any
  output: DecodeOutput
