"""The MTP module in the decode loop: it reads accepted tokens and drafts.

The module predicts the token after the next from the model's hidden state and
the next token (DeepSeek-V3 section 2.2). To draft more than one token it is
applied to its own hidden state and the token that it drafted, as in EAGLE (Li
et al. 2024) and in DeepSeek's own use of one module. When the model has
verified the drafts, the module reads those that were accepted again, with the
model's hidden states, so that its cache is that of a plain forward pass.

The module's entry of a token lies one column after the token's column in the
main model: with S = 4, the columns 0, 1, 2, 3 have their entries in the columns
1, 2, 3, 4 of 6. Column 0 stays empty, and the last one is of the token that the
next call feeds, so neither is written to the blocks.

In this file K counts the drafts of a pass, T the tokens that it feeds a
sequence, and S the columns of a call.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model import cache
from r1jax.rollout import sampling, speculative
from r1jax.rollout.cached_model import CachedModel, MTPInput, num_cached
from r1jax.rollout.decode_state import DecodeState
from r1jax.rollout.sampling import SamplingMetadata
from r1jax.rollout.speculative import Drafts


class _Chain(NamedTuple):
  """The carry of the drafting loop.

  Attributes:
    number: int32, drafts so far.
    drafts: They, with room for K.
    open_B: bool, chains to which the next draft may be added.
    survival_B: float32, estimated probability that all drafts are accepted.
    hidden_BD: The module's hidden state, which predicts the next draft.
    columns: The module's columns.
    seen_BV: See SamplingMetadata.
  """

  number: jax.Array
  drafts: Drafts
  open_B: jax.Array
  survival_B: jax.Array
  hidden_BD: jax.Array
  columns: cache.KVCache
  seen_BV: jax.Array | None


@dataclasses.dataclass(frozen=True)
class DraftingModel(CachedModel):
  """A model whose first MTP module drafts tokens for it.

  Attributes:
    max_drafts: K, the maximum number of drafts of a pass; 0 without
      speculative decoding.
    confidence_threshold: A chain of drafts ends before the estimated
      probability that all of them are accepted falls below it.
  """

  max_drafts: int
  confidence_threshold: float

  def draft(
    self,
    params,
    kv_cache,
    block_tables: cache.BlockTables,
    metadata: SamplingMetadata,
    state: DecodeState,
  ) -> Drafts:
    """Drafts up to K tokens per sequence, as many as are likely accepted.

    A sequence drafts nothing beyond its horizon, its token limit or a stop
    token. The module's entries of drafts are dropped, since `read_accepted`
    computes those of accepted ones.
    """
    K, output = self.max_drafts, state.output
    B, generated_B = state.token_B.shape[0], output.valid_BS.sum(-1)
    most_B = jnp.minimum(
      state.control.horizon_B, metadata.remaining_B - generated_B
    )
    last_position_B = num_cached(block_tables) + generated_B

    extended = partial(
      self._add_draft, params, metadata, generated_B, most_B, state
    )

    def advanced(chain: _Chain) -> _Chain:
      number = chain.number - 1  # The draft that the module reads.
      token_B = jax.lax.dynamic_index_in_dim(
        chain.drafts.token_BK, number, 1, keepdims=False
      )
      hidden_BTD, columns = self.apply_mtp(
        params,
        kv_cache,
        block_tables,
        MTPInput(
          token_B[:, None], chain.hidden_BD[:, None], chain.open_B[:, None]
        ),
        (last_position_B + number)[:, None],
        self._chain_columns(state, block_tables, chain.number)[:, None],
        chain.columns,
        state.column + chain.number + 1,
      )
      return extended(
        chain._replace(hidden_BD=hidden_BTD[:, 0], columns=columns)
      )

    chain = extended(
      _Chain(
        number=jnp.int32(0),
        drafts=speculative.no_drafts(B, K, self.model.config.vocab_size),
        open_B=state.can_draft_B & state.live_B,
        survival_B=jnp.ones(B),
        hidden_BD=state.mtp_hidden_BD,
        columns=state.columns['mtp'],
        seen_BV=metadata.seen_BV,
      )
    )
    return jax.lax.while_loop(
      lambda chain: (chain.number < K) & jnp.any(chain.open_B), advanced, chain
    ).drafts

  def _add_draft(
    self,
    params,
    metadata: SamplingMetadata,
    generated_B,
    most_B,
    state: DecodeState,
    chain: _Chain,
  ) -> _Chain:
    """Adds one draft to the chains that are sure enough, and ends the others."""
    drafts, number = chain.drafts, chain.number
    logits_BV = self.apply(params, chain.hidden_BD, method='logits')
    metadata = dataclasses.replace(metadata, seen_BV=chain.seen_BV)
    processed_BV = sampling.process_logits(logits_BV, metadata)
    confidence_B = speculative.confidence(processed_BV)
    survival_B = chain.survival_B * state.control.acceptance(confidence_B)
    drafts_B = (
      chain.open_B
      & (number < most_B)
      & (survival_B >= self.confidence_threshold)
    )
    token_B = speculative.sample_draft(
      processed_BV, metadata, generated_B + number
    )
    put = lambda x_BK_, new_B_: jax.lax.dynamic_update_index_in_dim(
      x_BK_, new_B_, number, 1
    )
    return chain._replace(
      number=number + 1,
      drafts=Drafts(
        token_BK=put(drafts.token_BK, token_B),
        logits_BKV=put(drafts.logits_BKV, processed_BV),
        confidence_BK=put(drafts.confidence_BK, confidence_B),
        count_B=drafts.count_B + drafts_B,
      ),
      open_B=drafts_B
      & (number + 1 < most_B)
      & ~sampling.is_stop(token_B, metadata),
      survival_B=survival_B,
      seen_BV=sampling.mark_seen(chain.seen_BV, token_B, drafts_B),
    )

  def _chain_columns(self, state: DecodeState, block_tables, number):
    """Returns which columns a draft's entry attends to, bool [B, S + 2].

    Args:
      state: The state of the decode loop.
      block_tables: Block tables of the rows.
      number: Drafts up to this one.
    """
    before_BS = _entry_columns(state.output.valid_BS, block_tables)
    column_S = jnp.arange(before_BS.shape[1])
    first = state.column + 1  # It holds the entry of the last token.
    return before_BS | ((column_S >= first) & (column_S <= first + number))

  def read_last(
    self, params, kv_cache, block_tables: cache.BlockTables, state: DecodeState
  ) -> DecodeState:
    """Lets the module read the last token before a call's first pass."""
    last_BD = cache.last_hidden(
      kv_cache['mtp'], block_tables, self.model.layout
    )
    # The very first token has no hidden state before it.
    has_state_B = num_cached(block_tables) > 0
    S = state.columns['mtp'].entry_LYKSX.shape[3]
    hidden_BTD, columns = self.apply_mtp(
      params,
      kv_cache,
      block_tables,
      MTPInput(state.token_B[:, None], last_BD[:, None], has_state_B[:, None]),
      (num_cached(block_tables) - 1)[:, None],
      jnp.broadcast_to(jnp.arange(S) == 1, (*state.token_B.shape, 1, S)),
      state.columns['mtp'],
      1,
    )
    return state._replace(
      columns=state.columns | {'mtp': columns},
      mtp_hidden_BD=hidden_BTD[:, 0],
      can_draft_B=has_state_B,
    )

  def read_accepted(
    self,
    params,
    kv_cache,
    block_tables: cache.BlockTables,
    state: DecodeState,
    fed_BT,
    hidden_BTD,
    emitted_BT,
  ) -> DecodeState:
    """Lets the module read the tokens that a pass has added to each sequence.

    They are its accepted drafts, each with the model's hidden state one column
    before, and the token after them. Example, T = 4, one draft accepted: the
    entries of columns 1, 2, 3 belong to the drafts, of which the first counts,
    and that of column 4 to the last token, with the hidden state of column 1.

    Args:
      params: Parameters of the whole model.
      kv_cache: The KV cache of each stack, cache.KVCache.
      block_tables: Block tables of the rows, cache.BlockTables.
      state: The state after the pass, but for its column.
      fed_BT: int32, the tokens that the pass fed.
      hidden_BTD: The model's hidden states at them.
      emitted_BT: bool, columns whose token counts.
    """
    T, count_B = fed_BT.shape[1], emitted_BT.sum(-1)
    valid_BS = state.output.valid_BS
    end_B = jnp.maximum(count_B - 1, 0)
    last_BD = speculative.take_column(hidden_BTD, end_B)
    before_BS = _entry_columns(valid_BS, block_tables)
    column_S = jnp.arange(before_BS.shape[1])
    own_T1 = state.column + 2 + jnp.arange(T)[:, None]
    # Positions count from the token before the one that is read.
    position_B = num_cached(block_tables) + valid_BS.sum(-1) - count_B
    position_BT = position_B[:, None] + jnp.arange(T)
    read_BTD, columns = self.apply_mtp(
      params,
      kv_cache,
      block_tables,
      MTPInput(
        jnp.concatenate([fed_BT[:, 1:], state.token_B[:, None]], 1),
        jnp.concatenate([hidden_BTD[:, :-1], last_BD[:, None]], 1),
        jnp.concatenate([emitted_BT[:, 1:], emitted_BT[:, :1]], 1),
      ),
      position_BT.at[:, -1].set(position_B + end_B),
      before_BS[:, None] & (column_S <= own_T1) | (column_S == own_T1),
      state.columns['mtp'],
      state.column + 2,
    )
    return state._replace(
      columns=state.columns | {'mtp': columns},
      mtp_hidden_BD=read_BTD[:, -1],
      can_draft_B=state.can_draft_B | emitted_BT[:, 0],
    )


def _entry_columns(valid_BS, block_tables: cache.BlockTables) -> jax.Array:
  """Returns the module's columns that hold entries, bool [B, S + 2].

  The very first token of a sequence has no hidden state before it, and so no
  entry.
  """
  S = valid_BS.shape[1]
  first_BS = (jnp.arange(S) == 0) & (num_cached(block_tables) == 0)[:, None]
  return jnp.pad(valid_BS & ~first_BS, ((0, 0), (1, 1)))
