"""The two device programs of the sampler: reading prompts, drawing tokens.

Drawing is a loop of forward passes over a chunk of columns. A pass feeds each
row its last token. Where the sampler speculates (V3 section 2.2 and 5.4.3),
the model's first look-ahead module guesses the token after that, and the pass
feeds both: if the guess stays, the row has drawn two tokens for one pass.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.model import cache
from r1jax.model.transformer import Transformer, first_look_ahead
from r1jax.rollout import sampling
from r1jax.rollout.sampling import Draft, Draws


@chex.dataclass(frozen=True)
class Chunk:
  """What a call of the drawing program tells.

  Attributes:
    tokens_BS, logp_BS, model_logp_BS: Drawn after each column of the chunk.
    drawn_BS: bool, which columns count.
    best_id_BSO, best_logp_BSO: See sampling.Drawn; or None.
    experts_BSLA: uint16, of the tokens that were fed; or None.
    passes_B, drafts_B, kept_B: int32, forward passes, guesses, and guesses
      that stayed.
  """

  tokens_BS: jax.Array
  logp_BS: jax.Array
  model_logp_BS: jax.Array
  drawn_BS: jax.Array
  best_id_BSO: jax.Array | None
  best_logp_BSO: jax.Array | None
  experts_BSLA: jax.Array | None
  passes_B: jax.Array
  drafts_B: jax.Array
  kept_B: jax.Array


class _Unread(NamedTuple):
  """What the look-ahead module has not read yet: T = 2 tokens a row.

  Attributes:
    token_BT: The guess that stayed, if it did, and the last token.
    hidden_BTD: The model's state before each.
    live_BT: bool.
  """

  token_BT: jax.Array
  hidden_BTD: jax.Array
  live_BT: jax.Array


class _Loop(NamedTuple):
  """Between two passes.

  Attributes:
    step: Passes so far.
    live_B: bool, rows that go on.
    token_B: Fed next.
    columns: By stack, the entries of this chunk, one page a row.
    hidden_BSD: The model's state at each column, where it speculates.
    seen_BV: See Draws.
    unread: Where it speculates.
    told: So far.
  """

  step: jax.Array
  live_B: jax.Array
  token_B: jax.Array
  columns: dict[str, cache.Pages]
  hidden_BSD: jax.Array | None
  seen_BV: jax.Array | None
  unread: _Unread | None
  told: Chunk


@dataclasses.dataclass(frozen=True)
class Programs:
  """Functions of arrays, to be jitted.

  Attributes:
    model: In its decoding layout.
    page_tokens: Tokens of one page.
    chunk_steps: Forward passes of one call.
    cache_int8: Keep the cache in 8 bits.
    record_routing: Tell the experts of each token.
    speculative: Guess with the look-ahead module.
  """

  model: Transformer
  page_tokens: int
  chunk_steps: int
  cache_int8: bool
  record_routing: bool
  speculative: bool

  @property
  def fed(self) -> int:
    """T, columns that one pass feeds a row."""
    return 2 if self.speculative else 1

  @property
  def chunk_tokens(self) -> int:
    """S, the most that one call draws a row."""
    return self.chunk_steps * self.fed

  def empty(self, pages: int) -> dict[str, cache.Pages]:
    """A pool of so many pages, by stack."""
    c = self.model.config
    pool = {
      stack: self._empty(stack, pages, self.page_tokens)
      for stack in self._stacks()
    }
    if self.speculative:
      pool['mtp'] = pool['mtp'].replace(
        hidden_YD=jnp.zeros((pages, c.hidden_size), c.compute_dtype)
      )
    return pool

  def fill(self, params, pages, context: cache.Context, tokens_BT, count_B):
    """Reads the first count_B of each row's T tokens into its pages.

    Returns:
      The pages, and the experts [B, T, L, A] or None.
    """
    B, T = tokens_BT.shape
    live_BT = jnp.arange(T) < count_B[:, None]
    position_BT = _length(context)[:, None] + jnp.arange(T)
    see_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    columns = self._columns(B, T)
    hidden_BTD, columns, chosen_BTLA = self._model(
      params,
      tokens_BT,
      position_BT,
      live_BT,
      see_BTS,
      columns,
      0,
      pages,
      context,
      method='extend',
    )
    if self.speculative:
      before_BD = cache.last_hidden(pages['mtp'], context, self.model.layout)
      before_BTD = jnp.concatenate([before_BD[:, None], hidden_BTD[:, :-1]], 1)
      seen_BT = position_BT > 0  # The first token of all has none before it.
      _, columns['mtp'] = self._look_ahead(
        params,
        pages,
        context,
        _Unread(tokens_BT, before_BTD, live_BT & seen_BT),
        position_BT - 1,
        see_BTS & seen_BT[:, None] | jnp.eye(T, dtype=bool),
        columns['mtp'],
        0,
      )
    pages = self._flush(pages, context, columns, live_BT, hidden_BTD)
    return pages, self._stored(chosen_BTLA)

  def draw(
    self,
    params,
    pages,
    context: cache.Context,
    draws: Draws,
    token_B,
    best: int,
  ):
    """Draws up to S tokens a row, from its last one on.

    Returns:
      The pages, and a Chunk.
    """
    B, S = token_B.shape[0], self.chunk_tokens
    started = _Loop(
      step=jnp.int32(0),
      live_B=draws.left_B > 0,
      token_B=token_B,
      columns=self._columns(B, S),
      hidden_BSD=None,
      seen_BV=draws.seen_BV,
      unread=None,
      told=self._nothing(B, best),
    )
    if self.speculative:
      D, dtype = self.model.config.hidden_size, self.model.config.compute_dtype
      last_BD = cache.last_hidden(pages['mtp'], context, self.model.layout)
      one, gap = _length(context) > 0, jnp.zeros(B, bool)
      started = started._replace(
        columns=started.columns | {'mtp': self._empty('mtp', B, S + 2)},
        hidden_BSD=jnp.zeros((B, S, D), dtype),
        unread=_Unread(
          jnp.stack([gap * token_B, token_B], 1),
          jnp.stack([0 * last_BD, last_BD], 1),
          jnp.stack([gap, one], 1),
        ),
      )

    def unfinished(loop: _Loop):
      return (loop.step < self.chunk_steps) & jnp.any(loop.live_B)

    def one_pass(loop: _Loop):
      return self._pass(params, pages, context, draws, best, loop)

    loop = jax.lax.while_loop(unfinished, one_pass, started)
    columns = loop.columns
    if self.speculative:  # It reads what the last pass has kept.
      _, last = self._guess_logits(params, pages, context, loop)
      columns = columns | {'mtp': jax.tree.map(lambda x: x[..., 1:-1, :], last)}
    pages = self._flush(
      pages, context, columns, loop.told.drawn_BS, loop.hidden_BSD
    )
    return pages, loop.told

  def _pass(
    self, params, pages, context, draws: Draws, best: int, loop: _Loop
  ) -> _Loop:
    T, S, told = self.fed, self.chunk_tokens, loop.told
    column, made_B = loop.step * T, told.drawn_BS.sum(-1)
    draws = draws.replace(seen_BV=loop.seen_BV)
    fed_BT, live_BT, draft = loop.token_B[:, None], loop.live_B[:, None], None
    columns = loop.columns
    if self.speculative:
      logits_BV, mtp_columns = self._guess_logits(params, pages, context, loop)
      columns = columns | {'mtp': mtp_columns}
      draft = sampling.guess(
        logits_BV, draws, made_B, loop.live_B & loop.unread.live_BT[:, 1]
      )
      fed_BT = jnp.stack([loop.token_B, draft.token_B], 1)
      live_BT = jnp.stack([loop.live_B, draft.live_B], 1)
    own_T, place_S = column + jnp.arange(T)[:, None], jnp.arange(S)
    see_BTS = told.drawn_BS[:, None] | (
      (place_S >= column) & (place_S <= own_T)
    )
    hidden_BTD, columns, chosen_BTLA = self._model(
      params,
      fed_BT,
      (_length(context) + made_B)[:, None] + jnp.arange(T),
      live_BT,
      see_BTS,
      columns,
      column,
      pages,
      context,
      method='extend',
    )
    logits_BTV = self._model(params, hidden_BTD, method='logits')
    drawn, emits, keeps_B = self._drawn(
      logits_BTV, draws, made_B, draft, loop.live_B, best
    )
    emits_BT = jnp.stack(emits, 1)

    def put(x, news):
      return jax.lax.dynamic_update_slice_in_dim(
        x, jnp.stack(news, 1).astype(x.dtype), column, 1
      )

    told = told.replace(
      tokens_BS=put(told.tokens_BS, [d.token_B for d in drawn]),
      logp_BS=put(told.logp_BS, [d.logp_B for d in drawn]),
      model_logp_BS=put(told.model_logp_BS, [d.model_logp_B for d in drawn]),
      drawn_BS=put(told.drawn_BS, emits),
      passes_B=told.passes_B + loop.live_B,
    )
    if best:
      told = told.replace(
        best_id_BSO=put(told.best_id_BSO, [d.best_id_BO for d in drawn]),
        best_logp_BSO=put(told.best_logp_BSO, [d.best_logp_BO for d in drawn]),
      )
    if self.record_routing:
      told = told.replace(
        experts_BSLA=put(
          told.experts_BSLA, [chosen_BTLA[:, t] for t in range(T)]
        )
      )
    seen_BV = loop.seen_BV
    if seen_BV is not None:
      seen_BV = _mark(seen_BV, [d.token_B for d in drawn], emits)
    token_B = drawn[0].token_B
    last_BD, unread, hidden_BSD = hidden_BTD[:, 0], None, loop.hidden_BSD
    if self.speculative:
      token_B = jnp.where(emits[1], drawn[1].token_B, token_B)
      last_BD = jnp.where(emits[1][:, None], hidden_BTD[:, 1], last_BD)
      unread = _Unread(
        jnp.stack([draft.token_B, token_B], 1),
        jnp.stack([hidden_BTD[:, 0], last_BD], 1),
        jnp.stack([emits[1], loop.live_B], 1),
      )
      hidden_BSD = jax.lax.dynamic_update_slice_in_dim(
        hidden_BSD, hidden_BTD, column, 1
      )
      told = told.replace(
        drafts_B=told.drafts_B + draft.live_B, kept_B=told.kept_B + keeps_B
      )
    left_B = draws.left_B - made_B - emits_BT.sum(-1)
    live_B = loop.live_B & ~_stops(token_B, draws) & (left_B > 0)
    return _Loop(
      step=loop.step + 1,
      live_B=live_B,
      token_B=token_B,
      columns=columns,
      hidden_BSD=hidden_BSD,
      seen_BV=seen_BV,
      unread=unread,
      told=told,
    )

  def _drawn(
    self,
    logits_BTV,
    draws: Draws,
    made_B,
    draft: Draft | None,
    live_B,
    best: int,
  ):
    """One token a row, and a second after a guess that stayed.

    Returns:
      What was drawn, column by column; which rows drew it; and which kept
      their guess.
    """
    if draft is None:
      return (
        [sampling.draw(logits_BTV[:, 0], draws, made_B, best)],
        [live_B],
        None,
      )
    first, keeps_B = sampling.verify(
      logits_BTV[:, 0], draws, made_B, draft, best
    )
    if draws.seen_BV is not None:
      draws = draws.replace(
        seen_BV=_mark(draws.seen_BV, [first.token_B], [live_B])
      )
    second = sampling.draw(logits_BTV[:, 1], draws, made_B + 1, best)
    goes_on_B = ~_stops(first.token_B, draws) & (draws.left_B > made_B + 1)
    return [first, second], [live_B, live_B & keeps_B & goes_on_B], keeps_B

  def _guess_logits(self, params, pages, context, loop: _Loop):
    """Reads what is unread.

    An entry lies with the token that was joined to the state before it, one
    column further than in the main model's columns: the first takes what the
    pass before this chunk kept, the last what the last pass kept.

    Returns:
      Logits [B, V] of the token after the last; the module's columns.
    """
    T, S, drawn_BS = self.fed, self.chunk_tokens, loop.told.drawn_BS
    column, start_B = loop.step * T, _length(context)
    position_BT = (start_B + drawn_BS.sum(-1) - 2)[:, None] + jnp.arange(T)
    first_BS = (jnp.arange(S) == 0) & (start_B == 0)[:, None]
    before_BTS = jnp.pad(drawn_BS & ~first_BS, ((0, 0), (1, 1)))[:, None]
    own_TS = jnp.arange(S + 2) == column + jnp.arange(T)[:, None]
    hidden_BTD, columns = self._look_ahead(
      params,
      pages,
      context,
      loop.unread,
      position_BT,
      before_BTS | own_TS,
      loop.columns['mtp'],
      column,
    )
    return self._model(params, hidden_BTD[:, 1], method='logits'), columns

  def _look_ahead(
    self,
    params,
    pages,
    context,
    unread: _Unread,
    position_BT,
    see_BTS,
    columns,
    column,
  ):
    module, its_params = first_look_ahead(self.model, params)
    return module.apply(
      {'params': its_params},
      unread.hidden_BTD,
      self._model(params, unread.token_BT, method='embed'),
      jnp.maximum(position_BT, 0),
      unread.live_BT,
      see_BTS,
      columns,
      column,
      pages['mtp'],
      context,
      method='extend',
    )

  def _model(self, params, *args, method: str):
    return self.model.apply({'params': params}, *args, method=method)

  def _stacks(self) -> dict[str, int]:
    """Layers of each stack that has a cache."""
    c = self.model.config
    stacks = {
      'dense_layers': c.first_k_dense_replace,
      'moe_layers': c.num_moe_layers,
      'mtp': int(self.speculative),
    }
    return {stack: layers for stack, layers in stacks.items() if layers}

  def _columns(self, rows: int, columns: int):
    return {
      stack: self._empty(stack, rows, columns) for stack in self._stacks()
    }

  def _empty(self, stack: str, pages: int, page_tokens: int) -> cache.Pages:
    c = self.model.config
    return cache.empty(
      self._stacks()[stack],
      pages,
      c.cache_heads,
      page_tokens,
      c.cache_parts,
      c.compute_dtype,
      self.cache_int8,
    )

  def _flush(self, pages, context, columns, kept_BS, hidden_BSD):
    return {
      stack: cache.flush(
        pages[stack],
        context,
        columns[stack],
        kept_BS,
        self.model.layout,
        hidden_BSD if stack == 'mtp' else None,
      )
      for stack in pages
    }

  def _nothing(self, B: int, best: int) -> Chunk:
    """A Chunk before the first pass."""
    c, S = self.model.config, self.chunk_tokens
    some, none = jnp.zeros((B, S), jnp.float32), jnp.zeros(B, jnp.int32)
    experts = None
    if self.record_routing:
      experts = jnp.zeros(
        (B, S, c.num_moe_layers, c.num_experts_per_tok), jnp.uint16
      )
    return Chunk(
      tokens_BS=some.astype(jnp.int32),
      logp_BS=some,
      model_logp_BS=some,
      drawn_BS=some.astype(bool),
      best_id_BSO=jnp.zeros((B, S, best), jnp.int32) if best else None,
      best_logp_BSO=jnp.zeros((B, S, best)) if best else None,
      experts_BSLA=experts,
      passes_B=none,
      drafts_B=none,
      kept_B=none,
    )

  def _stored(self, chosen_BTLA):
    return chosen_BTLA.astype(jnp.uint16) if self.record_routing else None


def _length(context: cache.Context) -> jax.Array:
  """Tokens of each row that lie in pages."""
  return context.fill_BW.sum(-1)


def _stops(token_B, draws: Draws) -> jax.Array:
  return jnp.any(token_B[:, None] == draws.stop_BO, -1)


def _mark(seen_BV, tokens, emits) -> jax.Array:
  rows_B = jnp.arange(seen_BV.shape[0])
  for token_B, emits_B in zip(tokens, emits):
    seen_BV = seen_BV.at[rows_B, token_B].max(emits_B)
  return seen_BV
