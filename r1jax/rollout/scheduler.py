"""Which requests decode, and where their tokens lie: host policy, no arrays
of the device's.

A request waits, then it is placed: it gets a row in one part of the batch and
pages in that part's pool, and `Fill` jobs read what of its prompt no page
holds yet. It decodes until it is done, or until the pool is short of a page:
then the youngest gives its pages back and waits again, with what it has made.
What it drew can be found then as well (see pool.py): the next turn of a
conversation goes on where the last one ended.

Everything follows from the order of the calls, so that several processes that
see the same tokens decide the same.
"""

from collections import deque
from collections.abc import Hashable, Sequence
import dataclasses

import numpy as np

from r1jax.rollout.block_pool import Page, Pool
from r1jax.rollout.sampling import Sampling


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """One completion that is asked for.

  Attributes:
    name: Names it in errors and results.
    prompt: int32 [p], at least one token.
    key: uint32 [2], the raw key of its draws.
    sampling: How it is drawn.
    group: Requests of a group belong together.
  """

  name: Hashable
  prompt: np.ndarray
  key: np.ndarray
  sampling: Sampling
  group: Hashable = None


@dataclasses.dataclass(eq=False)
class Completion:
  """What a request has made so far.

  Attributes:
    request: Which one.
    tokens: Drawn, the stop token among them.
    logp: Of each, in the distribution that it was drawn from.
    model_logp: Of each, at temperature 1 with nothing cut.
    version: The policy that drew each.
    best: For each the most likely tokens, (token, logp), if asked for.
    prompt_experts: uint16 [p − 1, L, A], the experts of all prompt tokens but
      the last; None unless the engine records them.
    experts: [L, A] of the last prompt token and of each token after it that
      was fed.
    passes: Forward passes that drew them.
    drafts: Tokens that the look-ahead module guessed.
    kept_drafts: Of them, those that stayed.
    finish: None while unfinished; then 'stop' or 'length'.
  """

  request: Request
  tokens: list[int] = dataclasses.field(default_factory=list)
  logp: list[float] = dataclasses.field(default_factory=list)
  model_logp: list[float] = dataclasses.field(default_factory=list)
  version: list[int] = dataclasses.field(default_factory=list)
  best: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
  prompt_experts: np.ndarray | None = None
  experts: list[np.ndarray] = dataclasses.field(default_factory=list)
  passes: int = 0
  drafts: int = 0
  kept_drafts: int = 0
  finish: str | None = None

  @property
  def left(self) -> int:
    """Tokens that it may still draw."""
    request = self.request
    return request.sampling.budget(len(request.prompt)) - len(self.tokens)

  @property
  def last(self) -> int:
    """The token that is fed next."""
    return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])

  @property
  def context(self) -> np.ndarray:
    """int32, prompt and what was drawn."""
    return np.concatenate(
      [self.request.prompt, np.asarray(self.tokens, np.int32)]
    )


@dataclasses.dataclass(eq=False)
class Fill:
  """Prompt tokens that no page holds yet.

  Attributes:
    part: Whose pool.
    before: Pages of the tokens before them.
    pages: Pages that they fill.
    tokens: int32.
    after: The job that fills the last page of `before`, if it is not done.
    done: Tokens that have been read.
  """

  part: int
  before: list[Page]
  pages: list[Page]
  tokens: np.ndarray
  after: 'Fill | None'
  done: int = 0

  @property
  def finished(self) -> bool:
    return self.done == len(self.tokens)

  @property
  def ready(self) -> bool:
    return not self.finished and (self.after is None or self.after.finished)


@dataclasses.dataclass(eq=False)
class Row:
  """A request that decodes.

  Attributes:
    completion: What it makes.
    part: Of the batch and of the pool.
    pages: Its context but for the last token, which is fed next: pages that
      it may share, then its own.
    own: Index of the first page that it writes to.
    page_tokens: S.
  """

  completion: Completion
  part: int
  pages: list[Page]
  own: int
  page_tokens: int

  @property
  def written(self) -> int:
    """Tokens in its own pages."""
    return _tokens(self.pages[self.own :])

  @property
  def next(self) -> int:
    """Place of the next token, counted as in model/cache.py's Context."""
    return self.own * self.page_tokens + self.written


class Scheduler:
  """Waiting requests, rows, and one pool for each part of the batch.

  Args:
    rows: Rows of one part.
    parts: Parts of the batch.
    pages: Pages of one part's pool, page 0 among them.
    places: W, the most pages of one row.
    page_tokens: S.
    chunk_tokens: Tokens that a row may feed between two looks.
  """

  def __init__(
    self,
    rows: int,
    parts: int,
    pages: int,
    places: int,
    page_tokens: int,
    chunk_tokens: int,
  ):
    self._rows, self._places, self._page_tokens = rows, places, page_tokens
    self._chunk = chunk_tokens
    self._waiting: deque[Completion] = deque()
    self._pools = [Pool(pages) for _ in range(parts)]
    self.running: list[list[Row]] = [[] for _ in range(parts)]
    self.preempted = 0

  def submit(self, completion: Completion):
    self._waiting.append(completion)

  @property
  def idle(self) -> bool:
    return not self._waiting and not any(self.running)

  def unfinished(self) -> list[Completion]:
    """What is left when a run stops early, oldest first."""
    return [row.completion for part in self.running for row in part] + list(
      self._waiting
    )

  def place(self) -> list[Fill]:
    """Gives waiting requests rows and pages, in their order.

    Returns:
      What must be read before they decode, in an order in which it can be.
    """
    jobs: list[Fill] = []
    filling: dict[int, Fill] = {}  # By id of a page that is not read yet.
    while self._waiting:
      completion = self._waiting[0]
      context = completion.context[:-1]
      settled = self._part_for(completion, context)
      if settled is None:
        break
      self._waiting.popleft()
      job = self._settle(completion, context, *settled, filling)
      if job:
        jobs.append(job)
    return jobs

  def _part_for(
    self, completion: Completion, context: np.ndarray
  ) -> tuple[int, list[Page]] | None:
    """The part where it decodes, and the pages there that it shares.

    A part that has all of its context comes first, up to an even share of the
    requests; then the one with the fewest rows.
    """
    size, parts = self._page_tokens, len(self._pools)
    even = -(-(len(self._waiting) + sum(map(len, self.running))) // parts)
    ahead = min(self._chunk, completion.left)
    best, settled = None, None
    for part, pool in enumerate(self._pools):
      rows = len(self.running[part])
      if rows >= self._rows:
        continue
      shared = self._fitting(pool.match(context), len(context), completion.left)
      missing = len(context) - _tokens(shared)
      spare = (
        pool.available
        - sum(not page.holders for page in shared)
        - _pages_of(missing, size)
        - _pages_of(ahead, size)
      )
      if spare < rows:  # A page for each row to grow.
        continue
      holds_all = not missing and rows < even
      rank = not holds_all, rows, missing, part
      if best is None or rank < best:
        best, settled = rank, (part, shared)
    return settled

  def _fitting(
    self, shared: list[Page], context_tokens: int, left: int
  ) -> list[Page]:
    """Without the last ones, where those that are half full cost a page more
    than to read their tokens again, or are too many for a row."""

    def pages(shared: list[Page]) -> int:  # Of the whole context.
      return len(shared) + _pages_of(
        context_tokens - _tokens(shared), self._page_tokens
      )

    most = self._places - _pages_of(left, self._page_tokens)
    while shared and (
      pages(shared) > most or pages(shared) > pages(shared[:-1])
    ):
      shared = shared[:-1]
    return shared

  def _settle(
    self,
    completion: Completion,
    context: np.ndarray,
    part: int,
    before: list[Page],
    filling: dict[int, Fill],
  ) -> Fill | None:
    """A row of the part; and what of its context is still to be read."""
    pool, size = self._pools[part], self._page_tokens
    pool.hold(before)
    rest, fresh = context[_tokens(before) :], []
    last = before[-1].key if before else b''
    for start in range(0, len(rest), size):
      page = pool.take()
      pool.publish(page, last, rest[start : start + size])
      fresh.append(page)
      last = page.key
    self.running[part].append(
      Row(completion, part, before + fresh, len(before) + len(fresh), size)
    )
    if not fresh:
      return None
    job = Fill(
      part,
      before,
      fresh,
      rest,
      after=filling.get(id(before[-1])) if before else None,
    )
    filling |= {id(page): job for page in fresh}
    return job

  def reserve(self):
    """Pages for the next chunk of every row, the youngest giving way."""
    for rows in self.running:
      for row in list(rows):
        while row in rows and not self._reserved(row):
          self._give_way(rows)

  def _reserved(self, row: Row) -> bool:
    pool = self._pools[row.part]
    ahead = min(self._chunk, row.completion.left)
    want = row.own + _pages_of(row.written + ahead, self._page_tokens)
    while len(row.pages) < want:
      if not pool.available:
        return False
      row.pages.append(pool.take())
    return True

  def _give_way(self, rows: list[Row]):
    row = rows.pop()
    self._release(row)
    self._waiting.appendleft(row.completion)
    self.preempted += 1

  def wrote(self, row: Row, tokens: int):
    """The row's chunk appended so many tokens to its own pages."""
    for page in row.pages[row.own :]:
      here = min(tokens, self._page_tokens - page.fill)
      page.fill += here
      tokens -= here

  def finish(self, row: Row):
    self.running[row.part].remove(row)
    self._release(row)

  def _release(self, row: Row):
    """Gives its pages back, where what it drew can be found."""
    pool, made, written = self._pools[row.part], row.completion, row.written
    shared, own = row.pages[: row.own], row.pages[row.own :]
    context = made.context[:-1]
    # Not what a stop string cut off: its state would be of tokens unseen.
    if len(context) == _tokens(shared) + written:
      drawn = context[len(context) - written :]
      experts = made.experts[len(made.experts) - written :]
      last, start = shared[-1].key if shared else b'', 0
      for page in own:
        if page.fill:
          end = start + page.fill
          page.drawn, page.experts = True, experts[start:end]
          pool.publish(page, last, drawn[start:end])
          last, start = page.key, end
    pool.release(row.pages)


def _pages_of(tokens: int, page_tokens: int) -> int:
  return -(-tokens // page_tokens)


def _tokens(pages: Sequence[Page]) -> int:
  return sum(page.fill for page in pages)
