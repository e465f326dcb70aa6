"""The two programs that sampling runs on the device: prefill and decode.

Decode is a loop of forward passes. Each pass feeds every sequence its last
token and samples the next one. With speculative decoding (DeepSeek-V3, sections
2.2 and 5.4.3) the model's first MTP module drafts the tokens after that, and the
pass feeds these too: a sequence gets one token more for each draft that is
accepted. A pass is as wide as the longest chain of drafts needs. The widths that
it may have are branches of one compiled program.

In this file T counts the tokens that one pass feeds a sequence, K the drafts
among them at most, and S the columns of a call: the cache slots of the tokens
that it feeds.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from r1jax.model import cache
from r1jax.rollout import sampling, speculative
from r1jax.rollout.cached_model import MTPInput, num_cached
from r1jax.rollout.decode_state import DecodeState, empty_output
from r1jax.rollout.drafting import DraftingModel
from r1jax.rollout.sampling import SamplingMetadata
from r1jax.rollout.speculative import DraftControl, Drafts


@dataclasses.dataclass(frozen=True)
class Programs(DraftingModel):
  """The prefill and the decode program, as functions to be jitted.

  Attributes:
    decode_steps: The maximum number of forward passes of one call of the decode
      program.
  """

  decode_steps: int

  @property
  def tokens_per_call(self) -> int:
    """S, the maximum number of tokens that one call decodes per sequence.

    A pass needs K + 1 columns. With drafts there is room for decode_steps
    passes of two tokens; wider ones end the call earlier.
    """
    if not self.speculative:
      return self.decode_steps
    return 2 * self.decode_steps + self.max_drafts - 1

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
    control: DraftControl | None,
    num_top_logprobs: int,
  ):
    """Samples up to S tokens per sequence.

    Args:
      params: Parameters in the decoding layout.
      kv_cache: The KV cache of each stack, cache.KVCache.
      block_tables: Block tables of the rows, cache.BlockTables.
      metadata: Sampling parameters.
      token_B: int32, last token of each sequence, which is fed first.
      control: Control of each sequence's drafts; None without speculative
        decoding.
      num_top_logprobs: O, see sampling.sample_tokens.

    Returns:
      The block pools, and a DecodeOutput.
    """

    def unfinished(state: DecodeState):
      return (
        (state.step < self.decode_steps)
        & (state.column + self.max_drafts < self.tokens_per_call)
        & jnp.any(state.live_B)
      )

    def step(state: DecodeState):
      return self._decode_step(
        params, kv_cache, block_tables, metadata, num_top_logprobs, state
      )

    state = self._initial_state(metadata, token_B, num_top_logprobs)
    if self.speculative:
      state = self.read_last(
        params, kv_cache, block_tables, state._replace(control=control)
      )
    state = jax.lax.while_loop(unfinished, step, state)
    columns = state.columns
    if self.speculative:
      columns = columns | {
        'mtp': jax.tree.map(lambda x: x[..., 1:-1, :], columns['mtp'])
      }
    kv_cache = self.flush(
      kv_cache, block_tables, columns, state.output.valid_BS, state.hidden_BSD
    )
    return kv_cache, dataclasses.replace(state.output, control=state.control)

  def _initial_state(
    self, metadata: SamplingMetadata, token_B, num_top: int
  ) -> DecodeState:
    B, S, c = token_B.shape[0], self.tokens_per_call, self.model.config
    columns, hidden_BSD = self.init_columns(B, S), None
    if self.speculative:
      columns |= {'mtp': self.init_cache('mtp', B, S + 2)}
      hidden_BSD = jnp.zeros((B, S, c.hidden_size), c.compute_dtype)
    return DecodeState(
      step=jnp.int32(0),
      column=jnp.int32(0),
      live_B=metadata.remaining_B > 0,
      token_B=token_B,
      columns=columns,
      seen_BV=metadata.seen_BV,
      hidden_BSD=hidden_BSD,
      mtp_hidden_BD=None,
      can_draft_B=None,
      control=None,
      output=empty_output(
        B, S, self.max_drafts, num_top, c if self.record_routing else None
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
    metadata = dataclasses.replace(metadata, seen_BV=state.seen_BV)
    run_pass = partial(
      self._pass, params, kv_cache, block_tables, metadata, num_top
    )
    if not self.speculative:
      B, V = state.token_B.shape[0], self.model.config.vocab_size
      return run_pass(1, state, speculative.no_drafts(B, 0, V))
    drafts = self.draft(params, kv_cache, block_tables, metadata, state)
    widths = speculative.pass_widths(self.max_drafts)
    return jax.lax.switch(
      jnp.searchsorted(jnp.array(widths), drafts.count_B.max() + 1),
      [partial(run_pass, T) for T in widths],
      state,
      drafts,
    )

  def _pass(
    self,
    params,
    kv_cache,
    block_tables,
    metadata: SamplingMetadata,
    num_top: int,
    T: int,
    state: DecodeState,
    drafts: Drafts,
  ) -> DecodeState:
    """A forward pass over the last token and T − 1 drafts of each sequence."""
    output, generated_B = state.output, state.output.valid_BS.sum(-1)
    fed_BT = jnp.concatenate(
      [state.token_B[:, None], drafts.token_BK[:, : T - 1]], 1
    )
    hidden_BTD, columns, experts_BTLA = self.apply(
      params,
      fed_BT,
      (num_cached(block_tables) + generated_B)[:, None] + jnp.arange(T),
      state.live_B[:, None] & (jnp.arange(T) <= drafts.count_B[:, None]),
      _visible_columns(output.valid_BS, state.column, T),
      {name: x for name, x in state.columns.items() if name != 'mtp'},
      state.column,
      kv_cache,
      block_tables,
      method='extend',
    )
    sampled, num_accepted_B = speculative.verify_drafts(
      self.apply(params, hidden_BTD, method='logits'),
      metadata,
      generated_B,
      drafts,
      num_top,
    )
    emitted_BT = _emitted(sampled.token_B, num_accepted_B, state, metadata)
    state = self._next_state(
      state._replace(
        columns=state.columns | columns,
        output=output.write(
          state.column, state.live_B, sampled, emitted_BT, experts_BTLA
        ),
      ),
      metadata,
      sampled.token_B,
      emitted_BT,
    )
    if self.speculative:
      state = self.read_accepted(
        params, kv_cache, block_tables, state, fed_BT, hidden_BTD, emitted_BT
      )
      state = state._replace(
        hidden_BSD=jax.lax.dynamic_update_slice_in_dim(
          state.hidden_BSD, hidden_BTD, state.column, 1
        ),
        control=state.control.update(drafts, num_accepted_B, self.max_drafts),
        output=state.output.count_drafts(drafts, num_accepted_B),
      )
    return state._replace(step=state.step + 1, column=state.column + T)

  def _next_state(
    self, state: DecodeState, metadata: SamplingMetadata, token_BT, emitted_BT
  ) -> DecodeState:
    """Returns the state after a pass whose columns and output it has."""
    seen_BV = state.seen_BV
    for t in range(token_BT.shape[1]):
      seen_BV = sampling.mark_seen(seen_BV, token_BT[:, t], emitted_BT[:, t])
    count_B = emitted_BT.sum(-1)
    token_B = sampling.take_token(token_BT, jnp.maximum(count_B - 1, 0))
    remaining_B = metadata.remaining_B - state.output.valid_BS.sum(-1)
    return state._replace(
      live_B=state.live_B
      & ~sampling.is_stop(token_B, metadata)
      & (remaining_B > 0),
      token_B=jnp.where(state.live_B, token_B, state.token_B),
      seen_BV=seen_BV,
    )


def _emitted(
  token_BT, num_accepted_B, state: DecodeState, metadata: SamplingMetadata
) -> jax.Array:
  """Returns the columns of a pass whose tokens a sequence gets, bool [B, T].

  They are the accepted drafts and the token after them, up to a stop token or
  the token limit.
  """
  t_T = jnp.arange(token_BT.shape[1])
  generated_B = state.output.valid_BS.sum(-1)
  stop_BT = jax.vmap(lambda x_B: sampling.is_stop(x_B, metadata), 1, 1)(
    token_BT
  )
  stops_before_BT = jnp.cumsum(stop_BT, 1) - stop_BT
  return (
    state.live_B[:, None]
    & (t_T <= num_accepted_B[:, None])
    & (t_T < (metadata.remaining_B - generated_B)[:, None])
    & (stops_before_BT == 0)
  )


def _visible_columns(valid_BS, column, tokens_per_pass: int):
  """Returns which columns each fed token attends to, bool [B, T, S].

  They are the valid columns of earlier passes, and of this pass those up to the
  token's own. For T = 2, S = 4, column = 2 and valid columns 0 alone, the tokens
  of columns 2 and 3 attend to the columns 0, 2 and to 0, 2, 3.
  """
  own_T1 = column + jnp.arange(tokens_per_pass)[:, None]
  column_S = jnp.arange(valid_BS.shape[1])
  return valid_BS[:, None] | ((column_S >= column) & (column_S <= own_T1))
