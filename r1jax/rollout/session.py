"""Requests under one set of parameters: the loop between device and host."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from r1jax.model import cache
from r1jax.rollout import sampling
from r1jax.rollout.programs import Chunk
from r1jax.rollout.scheduler import Completion, Fill, Request, Row, Scheduler

_DRAW_HALVINGS, _FILL_HALVINGS = 4, 3  # Each is a program more to compile.


class Session:
  """Requests under one set of parameters. Iterating runs them to their end.

  Each turn reads new prompts, then draws a chunk, and yields the completions
  that it has finished.
  """

  def __init__(self, engine, params, version: int):
    """Args:
    engine: Whose programs and sizes these are.
    params: In its layout.
    version: Of the policy; completions tell which drew each token.
    """
    self._engine, self._params, self._version = engine, params, version
    self._pages = engine.new_pages()
    config = engine.config
    self._schedule = Scheduler(
      engine.rows,
      engine.parts,
      engine.pages,
      engine.places,
      config.page_tokens,
      engine.programs.chunk_tokens,
    )
    self._features = sampling.Features()
    self.steps = 0  # Forward passes of the decoding program.
    self.read_tokens = 0  # Of prompts, and again of rows that gave way.

  def submit(
    self, request: Request, begun: Completion | None = None
  ) -> Completion:
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

  @property
  def preempted(self) -> int:
    """How often a row gave way to older ones."""
    return self._schedule.preempted

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
    width = _width(self._engine.rows, max(map(len, running)), _DRAW_HALVINGS)
    rows = _side_by_side(
      [sorted(part, key=_by_length) for part in running], width
    )
    told = self._chunk(rows)
    self.steps += int(told.passes_B.max())
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
      by_part = [
        [job for job in jobs if job.part == part and job.ready][:limit]
        for part in range(parts)
      ]
      width = _width(limit, max(map(len, by_part)), _FILL_HALVINGS)
      rows = _side_by_side(by_part, width)
      tokens_BT = np.zeros((len(rows), T), np.int32)
      count_B = np.zeros(len(rows), np.int32)
      chains = []
      for b, job in enumerate(rows):
        if job is None:
          chains.append(None)
          continue
        some = job.tokens[job.done : job.done + T]
        tokens_BT[b, : len(some)], count_B[b] = some, len(some)
        self.read_tokens += len(some)
        chains.append(_chain(job, self._engine.config.page_tokens))
      self._pages, experts = self._engine.fill(
        self._params, self._pages, self._context(chains), tokens_BT, count_B
      )
      if experts is not None:
        experts = np.asarray(experts)
      for b, job in enumerate(rows):
        if job is not None:
          if experts is not None:
            _keep_experts(
              job, experts[b, : count_B[b]], self._engine.config.page_tokens
            )
          job.done += int(count_B[b])

  def _chunk(self, rows: list[Row | None]) -> Chunk:
    engine = self._engine
    made = [row and row.completion for row in rows]
    draws = sampling.stack(
      [c and c.request.sampling for c in made],
      np.stack([c.request.key if c else np.zeros(2, np.uint32) for c in made]),
      np.array([len(c.tokens) if c else 0 for c in made], np.int32),
      np.array([c.left if c else 0 for c in made], np.int32),
      self._features,
      engine.model.config.vocab_size,
      [c.context if c else [] for c in made]
      if self._features.penalty
      else None,
    )
    token_B = np.array([c.last if c else 0 for c in made], np.int32)
    self._pages, told = engine.draw(
      self._params,
      self._pages,
      self._context(
        [
          row and (row.pages, [page.fill for page in row.pages], row.next)
          for row in rows
        ]
      ),
      draws,
      token_B,
      best=min(self._features.best, engine.model.config.vocab_size),
    )
    return jax.tree.map(np.asarray, told)

  def _context(self, chains) -> cache.Context:
    """From (pages, their fill, the next place) of each row, or None."""
    B, W = len(chains), self._engine.places
    table_BW, fill_BW = np.zeros((2, B, W), np.int32)
    next_B = np.zeros(B, np.int32)
    for b, chain in enumerate(chains):
      if chain:
        pages, fill, next_B[b] = chain
        table_BW[b, : len(pages)] = [page.number for page in pages]
        fill_BW[b, : len(pages)] = fill
    return cache.Context(table_BW=table_BW, fill_BW=fill_BW, next_B=next_B)

  def _take(self, row: Row, b: int, told: Chunk) -> bool:
    """Adds the row's columns to its completion; True where it is done."""
    made, drawn_S = row.completion, told.drawn_BS[b]
    how, count = made.request.sampling, int(drawn_S.sum())
    made.passes += int(told.passes_B[b])
    made.drafts += int(told.drafts_B[b])
    made.kept_drafts += int(told.kept_B[b])
    if told.experts_BSLA is not None:
      if made.prompt_experts is None:
        made.prompt_experts = _experts_of(
          row.pages[: row.own],
          len(made.request.prompt) - 1,
          told.experts_BSLA.shape[2:],
        )
      made.experts.extend(told.experts_BSLA[b, drawn_S])
    before = len(made.tokens)
    made.tokens.extend(told.tokens_BS[b, drawn_S].tolist())
    made.logp.extend(told.logp_BS[b, drawn_S].tolist())
    made.model_logp.extend(told.model_logp_BS[b, drawn_S].tolist())
    made.version.extend([self._version] * count)
    if how.best:
      made.best.extend(
        list(zip(ids.tolist(), logps.tolist()))
        for ids, logps in zip(
          told.best_id_BSO[b, drawn_S, : how.best],
          told.best_logp_BSO[b, drawn_S, : how.best],
        )
      )
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
    text, strings = self._engine.decode, made.request.sampling.stop_strings
    whole = text(made.tokens)
    if not any(string in whole for string in strings):
      return
    for end in range(before + 1, len(made.tokens) + 1):
      if any(string in text(made.tokens[:end]) for string in strings):
        for field in (
          'tokens',
          'logp',
          'model_logp',
          'version',
          'best',
          'experts',
        ):
          del getattr(made, field)[end:]
        made.finish = 'stop'
        return


def _width(limit: int, rows: int, halvings: int) -> int:
  """The narrowest program for so many rows of a part: of the limit, of a half
  of it, and so on."""
  return min(
    width for n in range(halvings + 1) if (width := max(limit >> n, 1)) >= rows
  )


def _by_length(row: Row) -> int:
  """Rows of like length side by side attend fastest: see cache.attend."""
  return -len(row.pages)


def _side_by_side(by_part: Sequence[list], width: int) -> list:
  """Each part's rows in its own part of the batch, None for empty ones."""
  return [
    row for part in by_part for row in part + [None] * (width - len(part))
  ]


def _chain(job: Fill, page_tokens: int):
  """Pages of a job, their fill so far, and where its next token goes."""
  fill = [page.fill for page in job.before]
  fill += [
    min(max(job.done - i * page_tokens, 0), page_tokens)
    for i in range(len(job.pages))
  ]
  return (
    job.before + job.pages,
    fill,
    len(job.before) * page_tokens + job.done,
  )


def _keep_experts(job: Fill, experts_TLA, page_tokens: int):
  for t, experts_LA in enumerate(experts_TLA, job.done):
    job.pages[t // page_tokens].experts.append(experts_LA)


def _experts_of(pages, tokens: int, shape) -> np.ndarray:
  """Of the first so many tokens of a context: [tokens, L, A]."""
  found = [experts for page in pages for experts in page.experts]
  return np.array(found[:tokens], np.uint16).reshape(tokens, *shape)
