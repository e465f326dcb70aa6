"""The two programs that sampling runs on the device: prefill and decode.

Decode is a loop of forward passes. Each pass feeds every sequence its last
token and samples the next one. With speculative decoding (DeepSeek-V3,
sections 2.2 and 5.4.3) the model's first MTP module drafts the token after
that, and the pass feeds both: if the draft is accepted, the sequence has two
new tokens for one pass.

In this file T counts the tokens that one pass feeds a sequence, and S the
columns of a call: the cache slots of the tokens that it feeds.
"""

import dataclasses

import jax
import jax.numpy as jnp

from r1jax.model import cache
from r1jax.rollout import sampling, speculative
from r1jax.rollout.cached_model import CachedModel, MTPInput, num_cached
from r1jax.rollout.decode_state import DecodeState, empty_output
from r1jax.rollout.sampling import SampledTokens, SamplingMetadata
from r1jax.rollout.speculative import Draft


@dataclasses.dataclass(frozen=True)
class Programs(CachedModel):
  """The prefill and the decode program, as functions to be jitted.

  Attributes:
    decode_steps: Forward passes of one call of the decode program.
  """

  decode_steps: int

  @property
  def tokens_per_step(self) -> int:
    """T, tokens that one forward pass feeds a sequence."""
    return 2 if self.speculative else 1

  @property
  def tokens_per_call(self) -> int:
    """S, the maximum number of tokens that one call decodes per sequence."""
    return self.decode_steps * self.tokens_per_step

  def prefill(
    self, params, kv_cache, block_tables: cache.BlockTables, tokens_BT, count_B
  ):
    """Computes the cache entries of prompt tokens and writes them to blocks.

    Args:
      params: Parameters in the decoding layout.
      kv_cache: The KV cache of each stack, cache.KVCache.
      block_tables: Block tables of the rows, cache.BlockTables.
      tokens_BT: int32 tokens.
      count_B: int32, number of leading tokens of each row that count.

    Returns:
      The block pools, and the experts, uint16 [B, T, L, A], or None.
    """
    B, T = tokens_BT.shape
    live_BT = jnp.arange(T) < count_B[:, None]
    position_BT = num_cached(block_tables)[:, None] + jnp.arange(T)
    see_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    columns = self.init_columns(B, T)
    hidden_BTD, columns, experts_BTLA = self.apply(
      params,
      tokens_BT,
      position_BT,
      live_BT,
      see_BTS,
      columns,
      0,
      kv_cache,
      block_tables,
      method='extend',
    )
    if self.speculative:
      before_BD = cache.last_hidden(
        kv_cache['mtp'], block_tables, self.model.layout
      )
      before_BTD = jnp.concatenate([before_BD[:, None], hidden_BTD[:, :-1]], 1)
      # The very first token has no hidden state before it.
      has_state_BT = position_BT > 0
      _, columns['mtp'] = self.apply_mtp(
        params,
        kv_cache,
        block_tables,
        MTPInput(tokens_BT, before_BTD, live_BT & has_state_BT),
        position_BT - 1,
        see_BTS & has_state_BT[:, None] | jnp.eye(T, dtype=bool),
        columns['mtp'],
        0,
      )
    kv_cache = self.flush(kv_cache, block_tables, columns, live_BT, hidden_BTD)
    if not self.record_routing:
      return kv_cache, None
    return kv_cache, experts_BTLA.astype(jnp.uint16)

  def decode(
    self,
    params,
    kv_cache,
    block_tables: cache.BlockTables,
    metadata: SamplingMetadata,
    token_B,
    num_top_logprobs: int,
  ):
    """Samples up to S tokens per sequence.

    Args:
      params: Parameters in the decoding layout.
      kv_cache: The KV cache of each stack, cache.KVCache.
      block_tables: Block tables of the rows, cache.BlockTables.
      metadata: Sampling parameters.
      token_B: int32, last token of each sequence, which is fed first.
      num_top_logprobs: O, see sampling.sample_tokens.

    Returns:
      The block pools, and a DecodeOutput.
    """

    def unfinished(state: DecodeState):
      return (state.step < self.decode_steps) & jnp.any(state.live_B)

    def step(state: DecodeState):
      return self._decode_step(
        params, kv_cache, block_tables, metadata, num_top_logprobs, state
      )

    state = jax.lax.while_loop(
      unfinished,
      step,
      self._initial_state(
        kv_cache, block_tables, metadata, token_B, num_top_logprobs
      ),
    )
    columns = state.columns
    if self.speculative:  # The MTP module reads what the last pass accepted.
      _, mtp_columns = self._draft_logits(params, kv_cache, block_tables, state)
      columns = columns | {
        'mtp': jax.tree.map(lambda x: x[..., 1:-1, :], mtp_columns)
      }
    kv_cache = self.flush(
      kv_cache, block_tables, columns, state.output.valid_BS, state.hidden_BSD
    )
    return kv_cache, state.output

  def _initial_state(
    self,
    kv_cache,
    block_tables,
    metadata: SamplingMetadata,
    token_B,
    num_top: int,
  ) -> DecodeState:
    B, S = token_B.shape[0], self.tokens_per_call
    state = DecodeState(
      step=jnp.int32(0),
      live_B=metadata.remaining_B > 0,
      token_B=token_B,
      columns=self.init_columns(B, S),
      hidden_BSD=None,
      seen_BV=metadata.seen_BV,
      mtp_input=None,
      output=empty_output(
        B, S, num_top, self.model.config if self.record_routing else None
      ),
    )
    if not self.speculative:
      return state
    D, dtype = self.model.config.hidden_size, self.model.config.compute_dtype
    last_BD = cache.last_hidden(
      kv_cache['mtp'], block_tables, self.model.layout
    )
    has_state_B, none_B = num_cached(block_tables) > 0, jnp.zeros(B, bool)
    return state._replace(
      columns=state.columns | {'mtp': self.init_cache('mtp', B, S + 2)},
      hidden_BSD=jnp.zeros((B, S, D), dtype),
      mtp_input=MTPInput(  # The last token alone; no draft was accepted yet.
        jnp.stack([none_B * token_B, token_B], 1),
        jnp.stack([0 * last_BD, last_BD], 1),
        jnp.stack([none_B, has_state_B], 1),
      ),
    )

  def _decode_step(
    self,
    params,
    kv_cache,
    block_tables,
    metadata: SamplingMetadata,
    num_top: int,
    state: DecodeState,
  ) -> DecodeState:
    """One forward pass: drafts, feeds, samples, and updates the state."""
    T, output = self.tokens_per_step, state.output
    column, generated_B = state.step * T, output.valid_BS.sum(-1)
    metadata = dataclasses.replace(metadata, seen_BV=state.seen_BV)
    fed_BT, live_BT, draft = state.token_B[:, None], state.live_B[:, None], None
    columns = state.columns
    if self.speculative:
      logits_BV, mtp_columns = self._draft_logits(
        params, kv_cache, block_tables, state
      )
      columns = columns | {'mtp': mtp_columns}
      draft = speculative.propose_draft(
        logits_BV,
        metadata,
        generated_B,
        state.live_B & state.mtp_input.live_BT[:, 1],
      )
      fed_BT = jnp.stack([state.token_B, draft.token_B], 1)
      live_BT = jnp.stack([state.live_B, draft.live_B], 1)
    hidden_BTD, columns, experts_BTLA = self.apply(
      params,
      fed_BT,
      (num_cached(block_tables) + generated_B)[:, None] + jnp.arange(T),
      live_BT,
      _visible_columns(output.valid_BS, column, T),
      columns,
      column,
      kv_cache,
      block_tables,
      method='extend',
    )
    logits_BTV = self.apply(params, hidden_BTD, method='logits')
    sampled, emitted, accepted_B = self._sample(
      logits_BTV, metadata, generated_B, draft, state.live_B, num_top
    )
    return self._next_state(
      state._replace(
        columns=columns,
        output=state.output.write(
          column, state.live_B, sampled, emitted, experts_BTLA
        ).count_drafts(draft, accepted_B),
      ),
      metadata.remaining_B - generated_B,
      metadata,
      hidden_BTD,
      sampled,
      emitted,
      draft,
    )

  def _sample(
    self,
    logits_BTV,
    metadata: SamplingMetadata,
    generated_B,
    draft: Draft | None,
    live_B,
    num_top: int,
  ):
    """Samples one token per sequence, and a second after an accepted draft.

    Returns:
      For each of the T tokens the SampledTokens; for each of them bool [B],
      whether the completion gets it; and bool [B], whether the draft was
      accepted, or None without drafts.
    """
    if draft is None:
      first = sampling.sample_tokens(
        logits_BTV[:, 0], metadata, generated_B, num_top
      )
      return [first], [live_B], None
    first, accepted_B = speculative.verify_draft(
      logits_BTV[:, 0], metadata, generated_B, draft, num_top
    )
    if metadata.seen_BV is not None:
      metadata = dataclasses.replace(
        metadata, seen_BV=_mark_seen(metadata.seen_BV, [first], [live_B])
      )
    second = sampling.sample_tokens(
      logits_BTV[:, 1], metadata, generated_B + 1, num_top
    )
    goes_on_B = ~_is_stop(first.token_B, metadata) & (
      metadata.remaining_B > generated_B + 1
    )
    emitted = [live_B, live_B & accepted_B & goes_on_B]
    return [first, second], emitted, accepted_B

  def _next_state(
    self,
    state: DecodeState,
    remaining_B,
    metadata: SamplingMetadata,
    hidden_BTD,
    sampled: list[SampledTokens],
    emitted: list[jax.Array],
    draft: Draft | None,
  ) -> DecodeState:
    """Returns the state after a pass whose columns and output it has."""
    column, token_B = state.step * self.tokens_per_step, sampled[0].token_B
    if state.seen_BV is not None:
      state = state._replace(
        seen_BV=_mark_seen(state.seen_BV, sampled, emitted)
      )
    if draft is not None:
      token_B = jnp.where(emitted[1], sampled[1].token_B, token_B)
      last_BD = jnp.where(
        emitted[1][:, None], hidden_BTD[:, 1], hidden_BTD[:, 0]
      )
      state = state._replace(
        mtp_input=MTPInput(
          jnp.stack([draft.token_B, token_B], 1),
          jnp.stack([hidden_BTD[:, 0], last_BD], 1),
          jnp.stack([emitted[1], state.live_B], 1),
        ),
        hidden_BSD=jax.lax.dynamic_update_slice_in_dim(
          state.hidden_BSD, hidden_BTD, column, 1
        ),
      )
    remaining_B = remaining_B - jnp.stack(emitted, 1).sum(-1)
    return state._replace(
      step=state.step + 1,
      live_B=state.live_B & ~_is_stop(token_B, metadata) & (remaining_B > 0),
      token_B=token_B,
    )

  def _draft_logits(self, params, kv_cache, block_tables, state: DecodeState):
    """Runs the MTP module on the tokens that it has not read yet.

    The MTP entry of a token lies one column after the token's column in the
    main model: with S = 4, the columns 0, 1, 2, 3 have their MTP entries in
    the columns 1, 2, 3, 4 of 6. Column 0 stays empty, and the last one is of
    the token that the next call feeds, so neither is written to the blocks.

    Returns:
      Logits [B, V] of the token after the last; the module's columns.
    """
    T, S, valid_BS = (
      self.tokens_per_step,
      self.tokens_per_call,
      state.output.valid_BS,
    )
    column, start_B = state.step * T, num_cached(block_tables)
    position_BT = (start_B + valid_BS.sum(-1) - 2)[:, None] + jnp.arange(T)
    # The very first token has no hidden state before it, and so no entry.
    first_BS = (jnp.arange(S) == 0) & (start_B == 0)[:, None]
    before_BTS = jnp.pad(valid_BS & ~first_BS, ((0, 0), (1, 1)))[:, None]
    own_TS = jnp.arange(S + 2) == column + jnp.arange(T)[:, None]
    hidden_BTD, columns = self.apply_mtp(
      params,
      kv_cache,
      block_tables,
      state.mtp_input,
      position_BT,
      before_BTS | own_TS,
      state.columns['mtp'],
      column,
    )
    return self.apply(params, hidden_BTD[:, 1], method='logits'), columns


def _is_stop(token_B, metadata: SamplingMetadata) -> jax.Array:
  return jnp.any(token_B[:, None] == metadata.stop_token_BO, -1)


def _mark_seen(
  seen_BV, sampled: list[SampledTokens], emitted: list[jax.Array]
) -> jax.Array:
  row_B = jnp.arange(seen_BV.shape[0])
  for tokens, emitted_B in zip(sampled, emitted):
    seen_BV = seen_BV.at[row_B, tokens.token_B].max(emitted_B)
  return seen_BV


def _visible_columns(valid_BS, column, tokens_per_step: int):
  """Returns which columns each fed token attends to, bool [B, T, S].

  They are the valid columns of earlier steps, and of this step those up to the
  token's own. For T = 2, S = 4, column = 2 and valid columns 0 alone, the tokens
  of columns 2 and 3 attend to the columns 0, 2 and to 0, 2, 3.
  """
  own_T1 = column + jnp.arange(tokens_per_step)[:, None]
  column_S = jnp.arange(valid_BS.shape[1])
  return valid_BS[:, None] | ((column_S >= column) & (column_S <= own_T1))
