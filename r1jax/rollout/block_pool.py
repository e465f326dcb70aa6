"""The blocks of a paged KV cache, and a prefix cache over their tokens.

A block is identified by its tokens and all tokens before them. The last block
of a prompt and the last block of a completion may be partially filled; the
tokens after them begin in a new block. Blocks that no sequence references stay
in the prefix cache until their memory is needed.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(eq=False)
class KVBlock:
  """A block of the pool and the tokens that it holds.

  Attributes:
    block_id: Index in the pool.
    num_tokens: Number of tokens that the block holds.
    ref_count: Number of running sequences that reference it.
    block_hash: Hash of its tokens and all tokens before them, once it has been
      cached; else empty.
    parent_hash: Hash of the block before it; empty for the first block.
    generated: Whether its tokens were generated, rather than prefilled.
    experts: Routed experts [L, A] of each of its tokens, where they are
      recorded.
  """

  block_id: int
  num_tokens: int = 0
  ref_count: int = 1
  block_hash: bytes = b''
  parent_hash: bytes = b''
  generated: bool = False
  experts: list[np.ndarray] = dataclasses.field(default_factory=list)


class BlockPool:
  """The blocks of one shard of the batch; block 0 is never allocated.

  Args:
    num_blocks: Number of blocks, block 0 among them.
  """

  def __init__(self, num_blocks: int):
    self._free = deque(range(1, num_blocks))
    self._cached: dict[bytes, KVBlock] = {}
    # The sizes in tokens of the cached blocks that follow each parent.
    self._child_sizes: dict[bytes, Counter[int]] = {}
    # Cached and unreferenced, least recently used first; by KVBlock.generated.
    self._evictable: tuple[OrderedDict[bytes, KVBlock], ...] = (
      OrderedDict(),
      OrderedDict(),
    )

  @property
  def num_available(self) -> int:
    """Number of blocks that are free or can be evicted."""
    return len(self._free) + sum(map(len, self._evictable))

  def allocate(self) -> KVBlock:
    """Takes a free block, evicting a cached one if there is none.

    Generated blocks are evicted before prefilled ones, since prompts recur
    more often; among either, the least recently used one goes first.
    """
    if not self._free:
      prefilled, generated = self._evictable
      self._evict(next(iter((generated or prefilled).values())))
    return KVBlock(self._free.popleft())

  def match_prefix(self, tokens: np.ndarray) -> list[KVBlock]:
    """Returns cached blocks that hold the longest prefix of these tokens.

    At each step the fullest block that matches is taken.
    """
    blocks: list[KVBlock] = []
    parent_hash, start = b'', 0
    while block := self._next_match(parent_hash, tokens[start:]):
      blocks.append(block)
      parent_hash, start = block.block_hash, start + block.num_tokens
    return blocks

  def _next_match(
    self, parent_hash: bytes, tokens: np.ndarray
  ) -> KVBlock | None:
    for size in sorted(self._child_sizes.get(parent_hash, ()), reverse=True):
      if size <= len(tokens):
        block = self._cached.get(_hash(parent_hash, tokens[:size]))
        if block:
          return block
    return None

  def acquire(self, blocks: Sequence[KVBlock]):
    """Adds a reference to each block."""
    for block in blocks:
      block.ref_count += 1
      self._evictable[block.generated].pop(block.block_hash, None)

  def cache(self, block: KVBlock, parent_hash: bytes, tokens: np.ndarray):
    """Adds a block to the prefix cache; it replaces an equal one.

    Args:
      block: A referenced block.
      parent_hash: Hash of the block before it; empty for the first block.
      tokens: The tokens that it holds.
    """
    block_hash = _hash(parent_hash, tokens)
    older = self._cached.get(block_hash)
    if older and not older.ref_count:
      self._evict(older)
    elif older:  # It is freed when its last reference is released.
      self._uncache(older)
    block.block_hash, block.parent_hash = block_hash, parent_hash
    block.num_tokens = len(tokens)
    self._cached[block_hash] = block
    self._child_sizes.setdefault(parent_hash, Counter())[block.num_tokens] += 1

  def release(self, blocks: Sequence[KVBlock]):
    """Drops one sequence's reference to each of its blocks.

    Args:
      blocks: The sequence's blocks in order. They become evictable from the
        last to the first, so that a prefix outlives what follows it.
    """
    for block in reversed(blocks):
      block.ref_count -= 1
      if block.ref_count:
        continue
      if self._cached.get(block.block_hash) is block:
        self._evictable[block.generated][block.block_hash] = block
      else:
        self._free.append(block.block_id)

  def _evict(self, block: KVBlock):
    """Frees a cached block that no sequence references."""
    del self._evictable[block.generated][block.block_hash]
    self._uncache(block)
    self._free.append(block.block_id)

  def _uncache(self, block: KVBlock):
    """Removes a block from the prefix cache."""
    del self._cached[block.block_hash]
    sizes = self._child_sizes[block.parent_hash]
    sizes[block.num_tokens] -= 1
    if not sizes[block.num_tokens]:
      del sizes[block.num_tokens]
    if not sizes:
      del self._child_sizes[block.parent_hash]


def _hash(parent_hash: bytes, tokens: np.ndarray) -> bytes:
  """Hashes a block's tokens and, through its parent's hash, all before them."""
  return hashlib.blake2b(
    parent_hash + tokens.astype(np.int32).tobytes(), digest_size=16
  ).digest()
