"""The pages of a cache, and which tokens can be found in them.

A page is known by its tokens and all that come before them. Of a prompt it may
be half full, and so may the last page of a completion; what follows begins in
a page of its own. Pages that nobody holds any more are found until they are
needed.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(eq=False)
class Page:
  """A page of the pool, and how many tokens of its holders' it has.

  Attributes:
    number: In the pool.
    fill: Tokens.
    holders: Rows.
    key: Digest of its tokens and all before them, where others may find it.
    before: The same of the page before it; empty for the first.
    drawn: Its tokens are of a completion.
    experts: Of its tokens, where they are recorded.
  """

  number: int
  fill: int = 0
  holders: int = 1
  key: bytes | None = None
  before: bytes = b''
  drawn: bool = False
  experts: list[np.ndarray] = dataclasses.field(default_factory=list)


class Pool:
  """The pages of one part of the batch. Page 0 is nobody's."""

  def __init__(self, pages: int):
    self._free = deque(range(1, pages))
    self._found: dict[bytes, Page] = {}
    # How many found pages of which fill follow one.
    self._fills: dict[bytes, Counter[int]] = {}
    # Found and not held, the oldest first: of prompts, and of completions.
    self._idle: tuple[OrderedDict[bytes, Page], ...] = (
      OrderedDict(),
      OrderedDict(),
    )

  @property
  def available(self) -> int:
    return len(self._free) + sum(map(len, self._idle))

  def take(self) -> Page:
    """A page. If none is free the oldest that nobody holds is forgotten, of
    completions first: prompts are asked for again more often."""
    if not self._free:
      prompts, completions = self._idle
      self._forget(next(iter((completions or prompts).values())))
    return Page(self._free.popleft())

  def match(self, tokens: np.ndarray) -> list[Page]:
    """Pages that hold the first of these tokens, the fullest at each turn."""
    found: list[Page] = []
    before, start = b'', 0
    while page := self._next(before, tokens[start:]):
      found.append(page)
      before, start = page.key, start + page.fill
    return found

  def _next(self, before: bytes, tokens: np.ndarray) -> Page | None:
    for fill in sorted(self._fills.get(before, ()), reverse=True):
      if fill <= len(tokens):
        page = self._found.get(_digest(before, tokens[:fill]))
        if page:
          return page
    return None

  def hold(self, pages: Sequence[Page]):
    """Once more each."""
    for page in pages:
      page.holders += 1
      self._idle[page.drawn].pop(page.key, None)

  def publish(self, page: Page, before: bytes, tokens: np.ndarray):
    """Others may find the page, whose tokens follow the page `before`."""
    key = _digest(before, tokens)
    older = self._found.get(key)
    if older and not older.holders:
      self._forget(older)
    elif older:  # It goes when its last holder does.
      self._unlist(older)
    page.key, page.before, page.fill = key, before, len(tokens)
    self._found[key] = page
    self._fills.setdefault(before, Counter())[page.fill] += 1

  def release(self, pages: Sequence[Page]):
    """Those of one row, in order: they are forgotten from their end."""
    for page in reversed(pages):
      page.holders -= 1
      if page.holders:
        continue
      if page.key is not None and self._found.get(page.key) is page:
        self._idle[page.drawn][page.key] = page
      else:
        self._free.append(page.number)

  def _forget(self, page: Page):
    """Of one that nobody holds: it is free."""
    del self._idle[page.drawn][page.key]
    self._unlist(page)
    self._free.append(page.number)

  def _unlist(self, page: Page):
    """It is not found any more."""
    del self._found[page.key]
    fills = self._fills[page.before]
    fills[page.fill] -= 1
    if not fills[page.fill]:
      del fills[page.fill]
    if not fills:
      del self._fills[page.before]


def _digest(before: bytes, tokens: np.ndarray) -> bytes:
  """Of a page's tokens and, by the digest of the page before, of all before
  them."""
  return hashlib.blake2b(
    before + tokens.astype(np.int32).tobytes(), digest_size=16
  ).digest()
