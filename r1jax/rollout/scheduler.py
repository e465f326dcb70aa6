"""Decides which requests decode and in which blocks their tokens lie.

This is host policy only; it touches no array on the device. A request waits
until a shard of the batch has room for it. It is then admitted: it gets a
place among the shard's running sequences and blocks of the shard's pool, and a
`PrefillJob` computes those of its tokens that no cached block holds. It
decodes until it is finished, or until its shard runs out of blocks: then the
sequence that was admitted last is preempted, which frees its blocks and puts
it back at the head of the queue with the tokens that it has generated.

Generated tokens enter the prefix cache too (see block_pool.py), so the next
turn of a conversation reuses the blocks of the one before.

Every decision follows from the order of the calls alone, so several processes
that see the same tokens decide the same.
"""

from collections import deque
from collections.abc import Hashable, Sequence
import dataclasses
from typing import Any

import numpy as np

from r1jax.rollout.block_pool import BlockPool, KVBlock
from r1jax.rollout.sampling import SamplingParams


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """A request for one completion of a prompt.

  Attributes:
    name: Names the request in errors and results.
    prompt: int32 [p], the prompt's tokens, at least one.
    key: uint32 [2], the raw PRNG key that its tokens are sampled with.
    sampling_params: Sampling parameters.
    group: Identifies the requests that share a prompt.
  """

  name: Any
  prompt: np.ndarray
  key: np.ndarray
  sampling_params: SamplingParams
  group: Hashable = None


@dataclasses.dataclass(eq=False)
class Completion:
  """The completion of a request, finished or in progress.

  Attributes:
    request: The request that it completes.
    tokens: Generated tokens, the stop token among them.
    logp: Log-probability of each token in the distribution that it was sampled
      from.
    model_logp: Log-probability of each token at temperature 1, with nothing
      truncated.
    policy_version: Version of the policy that sampled each token.
    top_logprobs: Most likely tokens at each position as pairs (token, logp),
      if the request asks for them.
    prompt_experts: uint16 [p − 1, L, A], the experts of all prompt tokens but
      the last; None unless the engine records them.
    experts: [L, A] for the last prompt token and for each generated token that
      was fed back.
    decode_steps: Forward passes of the decode program that it took part in.
    draft_tokens: How often the MTP module drafted at each of the K positions
      after the last token.
    accepted_tokens: How many of these drafts were accepted.
    draft_control: State of its drafts as numbers, see
      speculative.DraftControl; () before the first pass that drafts.
    finish_reason: 'stop' or 'length'; None while it is unfinished.
  """

  request: Request
  tokens: list[int] = dataclasses.field(default_factory=list)
  logp: list[float] = dataclasses.field(default_factory=list)
  model_logp: list[float] = dataclasses.field(default_factory=list)
  policy_version: list[int] = dataclasses.field(default_factory=list)
  top_logprobs: list[list[tuple[int, float]]] = dataclasses.field(
    default_factory=list
  )
  prompt_experts: np.ndarray | None = None
  experts: list[np.ndarray] = dataclasses.field(default_factory=list)
  decode_steps: int = 0
  draft_tokens: list[int] = dataclasses.field(default_factory=list)
  accepted_tokens: list[int] = dataclasses.field(default_factory=list)
  draft_control: tuple[float, ...] = ()
  finish_reason: str | None = None

  @property
  def remaining_tokens(self) -> int:
    """Number of tokens that it may still generate."""
    params, prompt = self.request.sampling_params, self.request.prompt
    return params.max_completion_tokens(len(prompt)) - len(self.tokens)

  @property
  def last_token(self) -> int:
    """The token that is fed next."""
    return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])

  @property
  def all_tokens(self) -> np.ndarray:
    """int32, the prompt's tokens and the generated ones."""
    return np.concatenate(
      [self.request.prompt, np.asarray(self.tokens, np.int32)]
    )


@dataclasses.dataclass(eq=False)
class PrefillJob:
  """The tokens of a newly admitted request that no cached block holds.

  Attributes:
    shard: Shard of the batch, and so of the pool, that it belongs to.
    prefix_blocks: Blocks of the tokens before them.
    blocks: Blocks that they are written to.
    tokens: int32, the tokens to compute.
    depends_on: The job that writes the last of prefix_blocks, if it was
      admitted in the same call.
    num_computed: Number of tokens computed so far.
  """

  shard: int
  prefix_blocks: list[KVBlock]
  blocks: list[KVBlock]
  tokens: np.ndarray
  depends_on: 'PrefillJob | None'
  num_computed: int = 0

  @property
  def finished(self) -> bool:
    """Whether all tokens have been computed."""
    return self.num_computed == len(self.tokens)

  @property
  def ready(self) -> bool:
    """Whether it is unfinished and its prefix has been computed."""
    return not self.finished and (
      self.depends_on is None or self.depends_on.finished
    )


@dataclasses.dataclass(eq=False)
class RunningSequence:
  """A request that decodes, and the blocks that hold its tokens.

  Attributes:
    completion: The completion that it extends.
    shard: Shard of the batch and of the pool.
    blocks: Blocks of all its tokens but the last, which is fed next: first
      prefilled ones, which others may share, then those that it decodes into.
    num_prefilled_blocks: Number of prefilled blocks.
    block_size: S, tokens that a block has room for.
  """

  completion: Completion
  shard: int
  blocks: list[KVBlock]
  num_prefilled_blocks: int
  block_size: int

  @property
  def num_decoded(self) -> int:
    """Number of tokens in the blocks that it decodes into."""
    return _num_tokens(self.blocks[self.num_prefilled_blocks :])

  @property
  def next_slot(self) -> int:
    """Slot of the next token, counted as in model/cache.py."""
    return self.num_prefilled_blocks * self.block_size + self.num_decoded


class Scheduler:
  """The queue of waiting requests, and the running sequences of each shard.

  Args:
    max_num_seqs: Sequences of one shard that decode at once.
    num_shards: Shards of the batch, each with a block pool of its own.
    num_blocks: Blocks of one shard's pool, block 0 among them.
    max_blocks_per_seq: W, the maximum number of blocks of one sequence.
    block_size: S, tokens that a block has room for.
    tokens_per_call: Maximum number of tokens that one call of the decode
      program appends to a sequence.

  Attributes:
    running: The running sequences of each shard, in the order in which they
      were admitted.
    num_preemptions: How often a sequence has been preempted.
  """

  def __init__(
    self,
    max_num_seqs: int,
    num_shards: int,
    num_blocks: int,
    max_blocks_per_seq: int,
    block_size: int,
    tokens_per_call: int,
  ):
    self._max_num_seqs, self._block_size = max_num_seqs, block_size
    self._max_blocks_per_seq = max_blocks_per_seq
    self._tokens_per_call = tokens_per_call
    self._waiting: deque[Completion] = deque()
    self._pools = [BlockPool(num_blocks) for _ in range(num_shards)]
    self.running: list[list[RunningSequence]] = [[] for _ in range(num_shards)]
    self.num_preemptions = 0

  def submit(self, completion: Completion):
    """Appends a completion, new or partial, to the queue."""
    self._waiting.append(completion)

  @property
  def idle(self) -> bool:
    """Whether nothing waits and nothing runs."""
    return not self._waiting and not any(self.running)

  def unfinished(self) -> list[Completion]:
    """Returns the completions that run or wait, the running ones first."""
    return [seq.completion for seqs in self.running for seq in seqs] + list(
      self._waiting
    )

  def admit(self) -> list[PrefillJob]:
    """Admits waiting requests in their order, as long as they have room.

    Returns:
      What must be computed before they decode; a job comes after the jobs that
      it depends on.
    """
    jobs: list[PrefillJob] = []
    # The job that writes a block, by the block's id(), until it has run.
    writers: dict[int, PrefillJob] = {}
    while self._waiting:
      completion = self._waiting[0]
      tokens = completion.all_tokens[:-1]
      placement = self._choose_shard(completion, tokens)
      if placement is None:
        break
      self._waiting.popleft()
      job = self._start(completion, tokens, *placement, writers)
      if job:
        jobs.append(job)
    return jobs

  def _choose_shard(
    self, completion: Completion, tokens: np.ndarray
  ) -> tuple[int, list[KVBlock]] | None:
    """Returns the shard to decode in and the cached blocks to reuse there.

    A shard that caches all of the tokens is preferred, up to an even share of
    the requests; otherwise the shard with the fewest running sequences is
    chosen. None if no shard has room.
    """
    size, num_shards = self._block_size, len(self._pools)
    num_requests = len(self._waiting) + sum(map(len, self.running))
    even_share = -(-num_requests // num_shards)
    ahead = min(self._tokens_per_call, completion.remaining_tokens)
    best_rank, placement = None, None
    for shard, pool in enumerate(self._pools):
      num_running = len(self.running[shard])
      if num_running >= self._max_num_seqs:
        continue
      prefix = self._usable_prefix(
        pool.match_prefix(tokens), len(tokens), completion.remaining_tokens
      )
      missing = len(tokens) - _num_tokens(prefix)
      spare = (
        pool.num_available
        - sum(not block.ref_count for block in prefix)
        - _num_blocks(missing, size)
        - _num_blocks(ahead, size)
      )
      if spare < num_running:  # One block for each running sequence to grow.
        continue
      fully_cached = not missing and num_running < even_share
      rank = not fully_cached, num_running, missing, shard
      if best_rank is None or rank < best_rank:
        best_rank, placement = rank, (shard, prefix)
    return placement

  def _usable_prefix(
    self, prefix: list[KVBlock], num_tokens: int, remaining_tokens: int
  ) -> list[KVBlock]:
    """Drops trailing cached blocks that it costs more to reuse.

    A partial block is dropped where reusing it would need one block more than
    recomputing its tokens, or more blocks than a sequence may have.
    """

    def blocks_needed(prefix: list[KVBlock]) -> int:  # For all num_tokens.
      missing = num_tokens - _num_tokens(prefix)
      return len(prefix) + _num_blocks(missing, self._block_size)

    limit = self._max_blocks_per_seq - _num_blocks(
      remaining_tokens, self._block_size
    )
    while prefix and (
      blocks_needed(prefix) > limit
      or blocks_needed(prefix) > blocks_needed(prefix[:-1])
    ):
      prefix = prefix[:-1]
    return prefix

  def _start(
    self,
    completion: Completion,
    tokens: np.ndarray,
    shard: int,
    prefix: list[KVBlock],
    writers: dict[int, PrefillJob],
  ) -> PrefillJob | None:
    """Starts a sequence in the shard; returns what is to be prefilled."""
    pool, size = self._pools[shard], self._block_size
    pool.acquire(prefix)
    missing, blocks = tokens[_num_tokens(prefix) :], []
    parent_hash = prefix[-1].block_hash if prefix else b''
    for start in range(0, len(missing), size):
      block = pool.allocate()
      pool.cache(block, parent_hash, missing[start : start + size])
      blocks.append(block)
      parent_hash = block.block_hash
    self.running[shard].append(
      RunningSequence(
        completion, shard, prefix + blocks, len(prefix) + len(blocks), size
      )
    )
    if not blocks:
      return None
    job = PrefillJob(
      shard,
      prefix,
      blocks,
      missing,
      depends_on=writers.get(id(prefix[-1])) if prefix else None,
    )
    writers |= {id(block): job for block in blocks}
    return job

  def reserve(self):
    """Allocates blocks for the next decode call of every running sequence.

    Where a shard's pool runs out, its most recently admitted sequences are
    preempted.
    """
    for seqs in self.running:
      for seq in list(seqs):
        while seq in seqs and not self._try_reserve(seq):
          self._preempt_last(seqs)

  def _try_reserve(self, seq: RunningSequence) -> bool:
    pool = self._pools[seq.shard]
    ahead = min(self._tokens_per_call, seq.completion.remaining_tokens)
    num_blocks = seq.num_prefilled_blocks + _num_blocks(
      seq.num_decoded + ahead, self._block_size
    )
    while len(seq.blocks) < num_blocks:
      if not pool.num_available:
        return False
      seq.blocks.append(pool.allocate())
    return True

  def _preempt_last(self, seqs: list[RunningSequence]):
    seq = seqs.pop()
    self._free_blocks(seq)
    self._waiting.appendleft(seq.completion)
    self.num_preemptions += 1

  def record_tokens(self, seq: RunningSequence, num_tokens: int):
    """Counts the tokens that a decode call appended to the sequence's blocks."""
    for block in seq.blocks[seq.num_prefilled_blocks :]:
      added = min(num_tokens, self._block_size - block.num_tokens)
      block.num_tokens += added
      num_tokens -= added

  def finish(self, seq: RunningSequence):
    """Removes a finished sequence and frees its blocks."""
    self.running[seq.shard].remove(seq)
    self._free_blocks(seq)

  def _free_blocks(self, seq: RunningSequence):
    """Releases a sequence's blocks and caches what it decoded into them."""
    pool, completion = self._pools[seq.shard], seq.completion
    num_decoded = seq.num_decoded
    prefilled = seq.blocks[: seq.num_prefilled_blocks]
    tokens = completion.all_tokens[:-1]
    # A stop string may have cut tokens off; the blocks then hold the state of
    # tokens that are no longer known.
    if len(tokens) == _num_tokens(prefilled) + num_decoded:
      decoded = tokens[len(tokens) - num_decoded :]
      experts = completion.experts[len(completion.experts) - num_decoded :]
      parent_hash = prefilled[-1].block_hash if prefilled else b''
      start = 0
      for block in seq.blocks[seq.num_prefilled_blocks :]:
        if block.num_tokens:
          end = start + block.num_tokens
          block.generated, block.experts = True, experts[start:end]
          pool.cache(block, parent_hash, decoded[start:end])
          parent_hash, start = block.block_hash, end
    pool.release(seq.blocks)


def _num_blocks(num_tokens: int, block_size: int) -> int:
  return -(-num_tokens // block_size)


def _num_tokens(blocks: Sequence[KVBlock]) -> int:
  return sum(block.num_tokens for block in blocks)
