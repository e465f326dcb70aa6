"""The sampler: requests in, completions out, decoded on the device in chunks.

Two programs, whatever the lengths: one reads prompts, one draws up to N tokens
for every row. Between two calls the host hands out rows and pages (see
scheduler.py). Where fewer rows are busy, a narrower copy of the same program
runs: a row is nothing but a page list, so rows move for free.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os

import jax
import jax.numpy as jnp

from r1jax.errors import UserError
from r1jax.model import cache
from r1jax.model.transformer import Transformer, parameter_shardings
from r1jax.records import PromptBatch, Rollout
from r1jax.rollout import assemble, sampling
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Chunk, Session
from r1jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """The sampler's sizes; what is drawn does not depend on them.

  Attributes:
    rows: Completions that decode at once.
    context_tokens: Longest prompt and completion together.
    page_tokens: S, of one page of the cache.
    chunk_tokens: Tokens a row between two looks of the host.
    prefill_tokens: Prompt tokens that one call reads.
    cache_tokens: Of the whole pool; 0 for as many as all rows could need.
    cache_int8: Keep the cache in 8 bits.
  """

  rows: int
  context_tokens: int
  page_tokens: int = 16
  chunk_tokens: int = 16
  prefill_tokens: int = 2048
  cache_tokens: int = 0
  cache_int8: bool = False

  def __post_init__(self):
    for field in ('rows', 'context_tokens', 'page_tokens', 'chunk_tokens',
                  'prefill_tokens'):
      if getattr(self, field) < 1:
        raise UserError(f'rollout: {field} must be at least 1, got '
                        f'{getattr(self, field)}')


class Engine:
  """Programs and sizes; never parameters, and nothing that outlives a run.

  A sample's randomness is a function of its key and of how many tokens it has
  drawn, whatever else is in the batch and wherever it stands there.

  Raises:
    UserError: the pool cannot hold one request, or memory cannot hold the
      pool.
  """

  def __init__(self, model: Transformer, config: EngineConfig,
               record_routing: bool = False,
               decode: Callable[[Sequence[int]], str] | None = None):
    """Args:
      model: In its training layout.
      config: Sizes.
      record_routing: Completions tell the experts of their tokens.
      decode: Ids to text; stop strings need it.
    """
    self.config, self._record, self._decode = config, record_routing, decode
    self.layout = layout = model.layout.decoding()
    # A sample depends on itself alone: no pair of it is dropped for others'.
    self.model = model.clone(layout=layout, config=dataclasses.replace(
        model.config, capacity_factor=0.0))
    self._shardings = parameter_shardings(model, layout)
    self.parts = layout.size('B')
    self.rows = -(-config.rows // self.parts)  # Of one part.
    self.places = (-(-config.context_tokens // config.page_tokens)
                   + 1)  # W: prompt and completion both end in half a page.
    every = self.rows * self.parts * self.places * config.page_tokens
    tokens = config.cache_tokens or every
    self.pages = 1 + -(-tokens // (config.page_tokens * self.parts))
    if self.pages <= self.places:
      raise UserError(
          f'rollout: cache_tokens = {tokens} holds no request of '
          f'context_tokens = {config.context_tokens}; it needs '
          f'{self.places * config.page_tokens * self.parts}')
    _check_memory(layout, self.cache_bytes)
    self._make_pages = jax.jit(
        self._empty, out_shardings=self._page_shardings())
    self._fill = jax.jit(self._run_fill, donate_argnums=1,
                         out_shardings=self._outputs())
    self._draw = jax.jit(
        self._run_draw, donate_argnums=1, static_argnames=('best',),
        out_shardings=self._outputs())

  @property
  def cache_bytes(self) -> int:
    """Of the pool, on all devices."""
    pages = jax.eval_shape(self._empty)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pages))

  def programs(self) -> int:
    """How many programs have been compiled so far."""
    return self._fill._cache_size() + self._draw._cache_size()

  def run(self, params, requests: Sequence[Request]) -> list[Completion]:
    """Completes all requests; in their order.

    Raises:
      UserError: one of them cannot be served; see Session.check.
    """
    session = self.session(params)
    made = [session.submit(request) for request in requests]
    for _ in session:
      pass
    return made

  def session(self, params, version: int = 0) -> Session:
    """A cache of its own for these parameters: none survives their change."""
    return Session(self, jax.device_put(params, self._shardings), version)

  def generate(self, params, prompts: PromptBatch, group_size: int,
               how: Sampling, key: jax.Array) -> Rollout:
    """Completes every prompt `group_size` times.

    Args:
      params: In any layout; moved to the decoding one.
      prompts: P prompts.
      group_size: G.
      how: For all of them.
      key: Of this step; see assemble.sample_keys.

    Returns:
      A Rollout of B = P · G rows, on the host.
    """
    asked = assemble.requests(prompts, group_size, how, key)
    return assemble.as_rollout(
        prompts, group_size, how.max_new_tokens, self.run(params, asked))

  def check(self, request: Request):
    """Raises UserError, which names the request, if it cannot be served."""
    def need(ok, message):
      if not ok:
        raise UserError(f'request {request.name}: {message}')

    p, new = len(request.prompt), request.sampling.max_new_tokens
    need(p, 'the prompt is empty')
    need(p + new <= self.config.context_tokens,
         f'prompt of {p} and max_new_tokens of {new} exceed context_tokens = '
         f'{self.config.context_tokens}')
    need(self._decode or not request.sampling.stop_strings,
         'stop strings need a tokenizer')
    V = self.model.config.vocab_size
    need(0 <= request.prompt.min() and request.prompt.max() < V,
         f'the prompt has a token outside of the vocabulary of {V}')
    try:
      request.sampling.check(V)
    except UserError as error:
      raise UserError(f'request {request.name}: {error}') from error

  @property
  def fill_shape(self) -> tuple[int, int]:
    """Rows a part and columns of a call that reads prompts."""
    columns = min(_FILL_COLUMNS, self.config.context_tokens)
    rows = max(1, self.config.prefill_tokens // (columns * self.parts))
    return rows, columns

  def new_pages(self):
    """An empty pool, by stack, laid out on the mesh."""
    return self._make_pages()

  def _empty(self):
    c = self.model.config
    stacks = {'dense_layers': c.first_k_dense, 'moe_layers': c.num_moe_layers}
    return {
        stack: cache.empty(
            layers, self.pages * self.parts, c.cache_heads,
            self.config.page_tokens, c.cache_parts, c.compute_dtype,
            self.config.cache_int8)
        for stack, layers in stacks.items() if layers}

  def _outputs(self):
    """A program's: the pool stays where it is, all else is told to the host."""
    return self._page_shardings(), self.layout.replicated()

  def _page_shardings(self):
    return jax.tree.map(
        lambda x: jax.sharding.NamedSharding(
            self.layout.mesh, self.layout.fitting_spec(x.shape, 'LYKSX')),
        jax.eval_shape(self._empty))

  def _columns(self, rows: int, columns: int):
    c = self.model.config
    return {
        stack: jnp.zeros((pages.entry_LYKSX.shape[0], rows, c.cache_heads,
                          columns, sum(c.cache_parts)), c.compute_dtype)
        for stack, pages in jax.eval_shape(self._empty).items()}

  def _flush(self, pages, context, columns, kept_BS):
    return {
        stack: cache.flush(pages[stack], context, columns[stack], kept_BS,
                           self.model.config.cache_parts, self.layout)
        for stack in pages}

  def _run_fill(self, params, pages, context: cache.Context, tokens_BT,
                count_B):
    """Reads the first count_B of each row's T tokens into its pages.

    Returns:
      The pages, and the experts [B, T, L, A] or None.
    """
    B, T = tokens_BT.shape
    live_BT = jnp.arange(T) < count_B[:, None]
    position_BT = context.fill_BW.sum(-1)[:, None] + jnp.arange(T)
    see_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    _, columns, chosen_BTLA = self.model.apply(
        {'params': params}, tokens_BT, position_BT, live_BT, see_BTS,
        self._columns(B, T), 0, pages, context, method='extend')
    pages = self._flush(pages, context, columns, live_BT)
    return pages, self._stored(chosen_BTLA)

  def _run_draw(self, params, pages, context: cache.Context,
                draws: sampling.Draws, token_B, best: int):
    """Draws up to N tokens a row, from its last one on.

    Returns:
      The pages, and a Chunk.
    """
    B, N = token_B.shape[0], self.config.chunk_tokens
    variables, model = {'params': params}, self.model
    start_B = context.fill_BW.sum(-1)
    some = jnp.zeros((B, N), jnp.float32)
    told = Chunk(
        tokens_BN=jnp.zeros((B, N), jnp.int32), logp_BN=some,
        model_logp_BN=some, count_B=jnp.zeros(B, jnp.int32),
        best_id_BNS=jnp.zeros((B, N, best), jnp.int32) if best else None,
        best_logp_BNS=jnp.zeros((B, N, best)) if best else None,
        experts_BNLA=self._no_experts(B, N))

    def unfinished(carry):
      step, _, live_B, *_ = carry
      return (step < N) & jnp.any(live_B)

    def one_token(carry):
      step, token_B, live_B, columns, seen_BV, told = carry
      see_BTS = jnp.broadcast_to(jnp.arange(N) <= step, (B, 1, N))
      hidden_BTD, columns, chosen_BTLA = model.apply(
          variables, token_B[:, None], (start_B + step)[:, None],
          live_B[:, None], see_BTS, columns, step, pages, context,
          method='extend')
      logits_BV = model.apply(variables, hidden_BTD[:, 0], method='logits')
      drawn = sampling.draw(
          logits_BV, draws.replace(seen_BV=seen_BV), step, best)
      at = lambda x, new: jax.lax.dynamic_update_slice_in_dim(
          x, new[:, None].astype(x.dtype), step, 1)
      told = told.replace(
          tokens_BN=at(told.tokens_BN, drawn.token_B),
          logp_BN=at(told.logp_BN, drawn.logp_B),
          model_logp_BN=at(told.model_logp_BN, drawn.model_logp_B),
          count_B=told.count_B + live_B)
      if best:
        told = told.replace(
            best_id_BNS=at(told.best_id_BNS, drawn.best_id_BS),
            best_logp_BNS=at(told.best_logp_BNS, drawn.best_logp_BS))
      if self._record:
        told = told.replace(
            experts_BNLA=at(told.experts_BNLA, chosen_BTLA[:, 0]))
      if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(B), drawn.token_B].set(True)
      stops_B = jnp.any(drawn.token_B[:, None] == draws.stop_BS, -1)
      live_B &= ~stops_B & (step + 1 < draws.left_B)
      return step + 1, drawn.token_B, live_B, columns, seen_BV, told

    carry = (jnp.int32(0), token_B, draws.left_B > 0, self._columns(B, N),
             draws.seen_BV, told)
    _, _, _, columns, _, told = jax.lax.while_loop(
        unfinished, one_token, carry)
    kept_BS = jnp.arange(N) < told.count_B[:, None]
    return self._flush(pages, context, columns, kept_BS), told

  def _stored(self, chosen_BTLA):
    return chosen_BTLA.astype(jnp.uint16) if self._record else None

  def _no_experts(self, B: int, N: int):
    c = self.model.config
    if not self._record:
      return None
    return jnp.zeros(
        (B, N, c.num_moe_layers, c.experts_per_token), jnp.uint16)


_FILL_COLUMNS = 64  # Of a row that reads a prompt.


def _check_memory(layout: Layout, pool_bytes: int):
  """Refuses a pool that one device's share of cannot be held."""
  device = layout.mesh.devices.flat[0]
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit is None:  # A processor: devices share the host's memory.
    limit = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    limit /= layout.mesh.size
  share = pool_bytes / layout.mesh.size
  if share > limit:
    raise UserError(
        f'rollout: the cache needs {share / 1e9:.1f} GB a device of '
        f'{limit / 1e9:.1f}; lower cache_tokens or rows')
