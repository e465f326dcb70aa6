"""Which requests decode, and where their tokens lie: host policy, no arrays
of the device's.

A request waits, then it is placed: it gets a row in one part of the batch and
pages in that part's pool, and `Fill` jobs read what of its prompt no page
holds yet. It decodes until it is done, or until the pool is short of a page:
then the youngest gives its pages back and waits again, with what it has made.

Everything follows from the order of the calls, so that several processes that
see the same tokens decide the same.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
import dataclasses
import hashlib
import itertools

import numpy as np

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
    return self.request.sampling.max_new_tokens - len(self.tokens)

  @property
  def last(self) -> int:
    """The token that is fed next."""
    return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])

  @property
  def context(self) -> np.ndarray:
    """int32, prompt and what was drawn."""
    return np.concatenate(
        [self.request.prompt, np.asarray(self.tokens, np.int32)])


@dataclasses.dataclass(eq=False)
class Page:
  """A page of the pool, and how many tokens of its holders' it has."""

  number: int
  fill: int = 0
  holders: int = 1
  key: bytes | None = None  # Of a page whose content others may find.
  experts: list[np.ndarray] = dataclasses.field(default_factory=list)


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
    return sum(page.fill for page in self.pages[self.own:])

  @property
  def next(self) -> int:
    """Place of the next token, counted as in model/cache.py's Context."""
    return self.own * self.page_tokens + self.written


class Pool:
  """The pages of one part of the batch. Page 0 is nobody's."""

  def __init__(self, pages: int):
    self._free = deque(range(1, pages))
    self._found: dict[bytes, Page] = {}
    self._idle: OrderedDict[bytes, Page] = OrderedDict()  # Found, not held.

  @property
  def available(self) -> int:
    return len(self._free) + len(self._idle)

  def take(self) -> Page:
    """A page; the oldest that nobody holds is forgotten if none is free."""
    if not self._free:
      key, page = self._idle.popitem(last=False)
      del self._found[key]
      self._free.append(page.number)
    return Page(self._free.popleft())

  def known(self, keys: Sequence[bytes]) -> tuple[int, int]:
    """How many of these, from the first, it has; how many nobody holds."""
    have = len(list(itertools.takewhile(self._found.__contains__, keys)))
    return have, sum(key in self._idle for key in keys[:have])

  def find(self, key: bytes) -> Page | None:
    """The page of this content, held once more."""
    page = self._found.get(key)
    if page:
      page.holders += 1
      self._idle.pop(key, None)
    return page

  def publish(self, page: Page, key: bytes):
    """Others may find the page by its content."""
    older = self._idle.pop(key, None)
    if older:
      self._free.append(older.number)
    page.key, self._found[key] = key, page

  def release(self, pages: Sequence[Page]):
    for page in pages:
      page.holders -= 1
      if page.holders:
        continue
      if page.key is not None and self._found.get(page.key) is page:
        self._idle[page.key] = page
      else:
        self._free.append(page.number)


class Scheduler:
  """Waiting requests, rows, and one pool for each part of the batch.

  Args:
    rows: Rows of one part.
    parts: Parts of the batch.
    pages: Pages of one part's pool, page 0 among them.
    page_tokens: S.
    chunk_tokens: Tokens that a row may feed between two looks.
  """

  def __init__(self, rows: int, parts: int, pages: int, page_tokens: int,
               chunk_tokens: int):
    self._rows, self._page_tokens = rows, page_tokens
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
        self._waiting)

  def pages_of(self, context_tokens: int, ahead_tokens: int) -> int:
    """Pages for a context, and for tokens that follow in pages of their own."""
    size = self._page_tokens
    return -(-context_tokens // size) + -(-ahead_tokens // size)

  def place(self) -> list[Fill]:
    """Gives waiting requests rows and pages, in their order.

    Returns:
      What must be read before they decode, in an order in which it can be.
    """
    jobs: list[Fill] = []
    filling: dict[int, Fill] = {}  # By id of a page that is not read yet.
    while self._waiting:
      context = self._waiting[0].context[:-1]
      keys = self._keys(context)
      part = self._part_for(self._waiting[0], len(context), keys)
      if part is None:
        break
      job = self._settle(self._waiting.popleft(), part, context, keys, filling)
      if job:
        jobs.append(job)
    return jobs

  def _part_for(self, completion: Completion, context_tokens: int,
                keys: Sequence[bytes]) -> int | None:
    """The part that has most of its context, or else fewest rows."""
    ahead = min(self._chunk, completion.left)
    need = self.pages_of(context_tokens, ahead)
    found = []
    for part, pool in enumerate(self._pools):
      rows = len(self.running[part])
      have, idle = pool.known(keys)
      spare = pool.available - idle - (need - have)
      if rows < self._rows and spare >= rows:  # A page for each row to grow.
        found.append((-have, rows, part))
    return min(found)[2] if found else None

  def _keys(self, tokens: np.ndarray) -> list[bytes]:
    """For each page of a context a digest of all that it and those before it
    hold."""
    keys, digest = [], b''
    for start in range(0, len(tokens), self._page_tokens):
      held = tokens[start:start + self._page_tokens]
      digest = hashlib.blake2b(digest + held.tobytes(), digest_size=16).digest()
      keys.append(digest)
    return keys

  def _settle(self, completion: Completion, part: int, context: np.ndarray,
              keys: Sequence[bytes], filling: dict[int, Fill]) -> Fill | None:
    """A row of the part; and what of its context is still to be read."""
    pool, size = self._pools[part], self._page_tokens
    have, _ = pool.known(keys)
    before = [pool.find(key) for key in keys[:have]]
    fresh = []
    for index, key in enumerate(keys[have:], have):
      page = pool.take()
      page.fill = len(context[index * size:(index + 1) * size])
      pool.publish(page, key)
      fresh.append(page)
    self.running[part].append(Row(
        completion, part, before + fresh, len(keys), size))
    if not fresh:
      return None
    job = Fill(part, before, fresh, context[have * size:],
               after=filling.get(id(before[-1])) if before else None)
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
    want = row.own + self.pages_of(0, row.written + ahead)
    while len(row.pages) < want:
      if not pool.available:
        return False
      row.pages.append(pool.take())
    return True

  def _give_way(self, rows: list[Row]):
    row = rows.pop()
    self._pools[row.part].release(row.pages)
    self._waiting.appendleft(row.completion)
    self.preempted += 1

  def wrote(self, row: Row, tokens: int):
    """The row's chunk appended so many tokens to its own pages."""
    for page in row.pages[row.own:]:
      here = min(tokens, self._page_tokens - page.fill)
      page.fill += here
      tokens -= here

  def finish(self, row: Row):
    self.running[row.part].remove(row)
    self._pools[row.part].release(row.pages)
