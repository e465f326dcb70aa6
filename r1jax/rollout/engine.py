"""The sampler: requests in, completions out, decoded on the device in chunks.

Two programs, whatever the lengths: one reads prompts, one draws up to N tokens
for every row. Between two calls the host hands out rows and pages (see
scheduler.py). Where fewer rows are busy, a narrower copy of the same program
runs: a row is nothing but a page list, so rows move for free.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from functools import partial
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import UserError
from r1jax.model import cache
from r1jax.model.transformer import Transformer, parameter_shardings
from r1jax.records import FINISH_LENGTH, FINISH_STOP, PromptBatch, Rollout
from r1jax.rollout import sampling
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Fill, Request, Row, Scheduler
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


@chex.dataclass(frozen=True)
class _Chunk:
  """What a call of the decoding program tells; N columns."""

  tokens_BN: jax.Array
  logp_BN: jax.Array
  model_logp_BN: jax.Array
  count_B: jax.Array  # Columns that are read.
  best_id_BNS: jax.Array | None
  best_logp_BNS: jax.Array | None
  experts_BNLA: jax.Array | None


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

  def session(self, params, version: int = 0) -> 'Session':
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
      key: Of this step; see sample_keys.

    Returns:
      A Rollout of B = P · G rows, on the host.
    """
    keys_PG2 = sample_keys(key, prompts.id_P, group_size)
    requests = [
        Request(name=(p, g), prompt=tokens_T[valid_T], key=keys_PG2[p, g],
                sampling=how, group=p)
        for p, (tokens_T, valid_T) in enumerate(
            zip(np.asarray(prompts.tokens_PT), np.asarray(prompts.valid_PT)))
        for g in range(group_size)]
    return as_rollout(prompts, group_size, how.max_new_tokens,
                      self.run(params, requests))

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
    need(0 <= min(request.prompt) <= max(request.prompt) < V,
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
      The pages, and a _Chunk.
    """
    B, N = token_B.shape[0], self.config.chunk_tokens
    variables, model = {'params': params}, self.model
    start_B = context.fill_BW.sum(-1)
    some = jnp.zeros((B, N), jnp.float32)
    told = _Chunk(
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


class Session:
  """Requests under one set of parameters. Iterating runs them to their end.

  Each turn reads new prompts, then draws a chunk, and yields the completions
  that it has finished.
  """

  def __init__(self, engine: Engine, params, version: int):
    self._engine, self._params, self._version = engine, params, version
    self._pages = engine.new_pages()
    config = engine.config
    self._schedule = Scheduler(
        engine.rows, engine.parts, engine.pages, config.page_tokens,
        config.chunk_tokens)
    self._features = sampling.Features()
    self.steps = 0  # Forward passes of the decoding program.
    self.turns = 0

  def submit(self, request: Request,
             begun: Completion | None = None) -> Completion:
    """Takes a request, or goes on with what an earlier session has begun.

    Raises:
      UserError: it cannot be served; the others go on.
    """
    self._engine.check(request)
    completion = begun or Completion(request)
    needs = sampling.features([request.sampling])
    self._features = sampling.Features(*map(max, self._features, needs))
    self._schedule.submit(completion)
    return completion

  def unfinished(self) -> list[Completion]:
    return self._schedule.unfinished()

  def __iter__(self) -> Iterator[list[Completion]]:
    while not self._schedule.idle:
      yield self.turn()

  def turn(self) -> list[Completion]:
    """One round of reading and drawing; what it has finished."""
    self._read(self._schedule.place())
    self._schedule.reserve()
    running = self._schedule.running
    width = _width(self._engine.rows, max(map(len, running)))
    rows = _side_by_side(running, width)
    told = self._chunk(rows)
    self.steps += int(told.count_B.max())
    self.turns += 1
    finished = []
    for b, row in enumerate(rows):
      if row is not None and self._take(row, b, told):
        self._schedule.finish(row)
        finished.append(row.completion)
    return finished

  def _read(self, jobs: list[Fill]):
    limit, T = self._engine.fill_shape
    parts = self._engine.parts
    while any(not job.finished for job in jobs):
      by_part = [[job for job in jobs if job.part == part and job.ready][:limit]
                 for part in range(parts)]
      width = _width(limit, max(map(len, by_part)))
      rows = _side_by_side(by_part, width)
      tokens_BT = np.zeros((len(rows), T), np.int32)
      count_B = np.zeros(len(rows), np.int32)
      chains = []
      for b, job in enumerate(rows):
        if job is None:
          chains.append(None)
          continue
        some = job.tokens[job.done:job.done + T]
        tokens_BT[b, :len(some)], count_B[b] = some, len(some)
        chains.append(_chain(job, self._engine.config.page_tokens))
      self._pages, experts = self._engine._fill(
          self._params, self._pages, self._context(chains), tokens_BT, count_B)
      if experts is not None:
        experts = np.asarray(experts)
      for b, job in enumerate(rows):
        if job is not None:
          if experts is not None:
            _keep_experts(job, experts[b, :count_B[b]],
                          self._engine.config.page_tokens)
          job.done += int(count_B[b])

  def _chunk(self, rows: list[Row | None]) -> _Chunk:
    engine = self._engine
    made = [row and row.completion for row in rows]
    draws = sampling.stack(
        [c and c.request.sampling for c in made],
        np.stack([c.request.key if c else np.zeros(2, np.uint32)
                  for c in made]),
        np.array([len(c.tokens) if c else 0 for c in made], np.int32),
        np.array([c.left if c else 0 for c in made], np.int32),
        self._features, engine.model.config.vocab_size,
        [c.context if c else [] for c in made])
    token_B = np.array([c.context[-1] if c else 0 for c in made], np.int32)
    self._pages, told = engine._draw(
        self._params, self._pages, self._context([
            row and (row.pages, [page.fill for page in row.pages], row.next)
            for row in rows]),
        draws, token_B, best=self._features.best)
    return jax.tree.map(np.asarray, told)

  def _context(self, chains) -> cache.Context:
    """From (pages, their fill, the next place) of each row, or None."""
    B, W = len(chains), self._engine.places
    table_BW, fill_BW = np.zeros((2, B, W), np.int32)
    next_B = np.zeros(B, np.int32)
    for b, chain in enumerate(chains):
      if chain:
        pages, fill, next_B[b] = chain
        table_BW[b, :len(pages)] = [page.number for page in pages]
        fill_BW[b, :len(pages)] = fill
    return cache.Context(table_BW=table_BW, fill_BW=fill_BW, next_B=next_B)

  def _take(self, row: Row, b: int, told: _Chunk) -> bool:
    """Adds the row's columns to its completion; True where it is done."""
    made, count = row.completion, int(told.count_B[b])
    how = made.request.sampling
    if told.experts_BNLA is not None:
      if made.prompt_experts is None:
        made.prompt_experts = _experts_of(
            row.pages[:row.own], len(made.request.prompt) - 1,
            told.experts_BNLA.shape[2:])
      made.experts.extend(told.experts_BNLA[b, :count])
    before = len(made.tokens)
    made.tokens.extend(told.tokens_BN[b, :count].tolist())
    made.logp.extend(told.logp_BN[b, :count].tolist())
    made.model_logp.extend(told.model_logp_BN[b, :count].tolist())
    made.version.extend([self._version] * count)
    if how.best:
      made.best.extend(
          list(zip(ids.tolist(), logps.tolist())) for ids, logps in zip(
              told.best_id_BNS[b, :count, :how.best],
              told.best_logp_BNS[b, :count, :how.best]))
    self._schedule.wrote(row, count)
    if how.stop_strings:
      self._stop_at_string(made, before)
    if made.finish is None:
      if made.tokens[-1] in how.stop_ids:
        made.finish = 'stop'
      elif not made.left:
        made.finish = 'length'
    return made.finish is not None

  def _stop_at_string(self, made: Completion, before: int):
    """Ends a completion at the first token that completes a stop string."""
    text, strings = self._engine._decode, made.request.sampling.stop_strings
    whole = text(made.tokens)
    if not any(string in whole for string in strings):
      return
    for end in range(before + 1, len(made.tokens) + 1):
      if any(string in text(made.tokens[:end]) for string in strings):
        for field in ('tokens', 'logp', 'model_logp', 'version', 'best',
                      'experts'):
          del getattr(made, field)[end:]
        made.finish = 'stop'
        return


def as_rollout(prompts: PromptBatch, group_size: int, max_new_tokens: int,
               made: Sequence[Completion]) -> Rollout:
  """Row b of the rollout is the b-th completion, of prompt b // G."""
  B, S = len(made), max_new_tokens
  tokens_BS = np.zeros((B, S), np.int32)
  logp_BS, model_logp_BS = np.zeros((2, B, S), np.float32)
  length_B = np.array([len(c.tokens) for c in made], np.int32)
  for b, c in enumerate(made):
    tokens_BS[b, :length_B[b]] = c.tokens
    logp_BS[b, :length_B[b]] = c.logp
    model_logp_BS[b, :length_B[b]] = c.model_logp
  prompt_BT = np.repeat(np.asarray(prompts.tokens_PT), group_size, axis=0)
  valid_BT = np.repeat(np.asarray(prompts.valid_PT), group_size, axis=0)
  live_BS = np.arange(S) < length_B[:, None]
  beside = lambda left, right: np.concatenate([left, right], 1)
  nothing = np.zeros(valid_BT.shape, np.float32)
  T = prompt_BT.shape[1]
  experts_BTLA = None
  if made[0].prompt_experts is not None:
    experts_BTLA = np.zeros(
        (B, T + S, *made[0].prompt_experts.shape[1:]), np.uint16)
    for b, c in enumerate(made):
      known = np.concatenate([c.prompt_experts, np.stack(c.experts)])
      start = T - len(c.request.prompt)
      experts_BTLA[b, start:start + len(known)] = known
  return Rollout(
      tokens_BT=beside(prompt_BT, tokens_BS),
      valid_BT=beside(valid_BT, live_BS),
      mask_BT=beside(np.zeros_like(valid_BT), live_BS),
      logp_BT=beside(nothing, logp_BS),
      model_logp_BT=beside(nothing, model_logp_BS),
      finish_B=np.array([FINISH_STOP if c.finish == 'stop' else FINISH_LENGTH
                         for c in made], np.int32),
      length_B=length_B,
      group_B=np.arange(B, dtype=np.int32) // group_size,
      experts_BTLA=experts_BTLA)


@partial(jax.jit, static_argnums=2)
def _folded(key, id_P, group_size: int):
  fold = jax.random.fold_in
  key_P = jax.vmap(fold, (None, 0))(key, id_P)
  key_PG = jax.vmap(jax.vmap(fold, (None, 0)), (0, None))(
      key_P, jnp.arange(group_size))
  return jax.random.key_data(key_PG)


def sample_keys(key, id_P, group_size: int) -> np.ndarray:
  """Raw keys, uint32 [P, G, 2]: sample g of a prompt with this id draws from
  the key folded by the id, then by g."""
  return np.asarray(_folded(key, np.asarray(id_P), group_size))


def _width(limit: int, rows: int) -> int:
  """The narrowest program for so many rows of a part: a half, a quarter or an
  eighth of the limit, or all of it."""
  return min(width for n in range(4) if (width := limit >> n) >= rows)


def _side_by_side(by_part: Sequence[list], width: int) -> list:
  """Each part's rows in its own part of the batch, None for empty ones."""
  return [row for part in by_part
          for row in part + [None] * (width - len(part))]


def _chain(job: Fill, page_tokens: int):
  """Pages of a job, their fill so far, and where its next token goes."""
  fill = [page.fill for page in job.before]
  fill += [min(max(job.done - i * page_tokens, 0), page_tokens)
           for i in range(len(job.pages))]
  return (job.before + job.pages, fill,
          len(job.before) * page_tokens + job.done)


def _keep_experts(job: Fill, experts_TLA, page_tokens: int):
  for t, experts_LA in enumerate(experts_TLA, job.done):
    job.pages[t // page_tokens].experts.append(experts_LA)


def _experts_of(pages, tokens: int, shape) -> np.ndarray:
  """Of the first so many tokens of a context: [tokens, L, A]."""
  found = [experts for page in pages for experts in page.experts]
  return np.array(found[:tokens], np.uint16).reshape(tokens, *shape)


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
