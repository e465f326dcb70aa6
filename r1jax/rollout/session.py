"""The loop between host and device that runs requests under one policy."""

from collections.abc import Iterator, Sequence
import contextlib
import itertools
import time
from typing import Any

import jax
import numpy as np

from r1jax.errors import UserError
from r1jax.model import cache
from r1jax.rollout import replicas, sampling, speculative
from r1jax.rollout.decode_state import DecodeOutput
from r1jax.rollout.scheduler import (
  Completion,
  PrefillJob,
  Request,
  RunningSequence,
  Scheduler,
)

# How often the batch of each program may be halved where fewer sequences run;
# every width is one more program to compile.
_DECODE_HALVINGS, _PREFILL_HALVINGS = 3, 3


class Session:
  """Requests under one set of parameters; iterating it runs them to their end.

  Each step admits and prefills waiting requests, runs the decode program once,
  and yields the completions that it finished.

  Attributes:
    decode_steps: Forward passes of the decode program so far.
    prefilled_tokens: Tokens prefilled so far, those of preempted sequences
      that were computed again among them.
    device_secs: Seconds so far in which the host ran a program, or waited for
      it; the rest is the host's own work.
  """

  def __init__(self, engine, params, policy_version: int):
    """Stores the arguments; its first step allocates an empty cache.

    Args:
      engine: The engine whose programs and sizes are used.
      params: Parameters, as Engine.prepare_params returns them; None in a
        process that does not sample.
      policy_version: Version of the policy; recorded with each token.
    """
    self._engine, self._params = engine, params
    self._policy_version = policy_version
    self._kv_cache: Any = None  # A process without requests needs none.
    self._scheduler = Scheduler(
      engine.max_num_seqs,
      engine.num_shards,
      engine.num_blocks,
      engine.max_blocks_per_seq,
      engine.config.block_size,
      engine.programs.tokens_per_call,
    )
    self._features = sampling.SamplingFeatures()
    self.decode_steps = 0
    self.prefilled_tokens = 0
    self.device_secs = 0.0

  def submit(
    self, request: Request, partial: Completion | None = None
  ) -> Completion:
    """Queues a request, or continues a completion of an earlier session.

    Args:
      request: The request.
      partial: Its completion so far, to which new tokens are appended.

    Returns:
      The completion, which grows as the session runs.

    Raises:
      UserError: the request cannot be served, where the other requests go on;
        or this process does not sample.
    """
    if self._params is None:
      raise UserError(
        'rollout.sampling_devices: every process samples here, and this one '
        'only trains; give --config.rollout.sampling_devices=0'
      )
    self._engine.validate(request)
    completion = partial or Completion(request)
    needed = sampling.required_features([request.sampling_params])
    widest: Any = map(max, self._features, needed)
    self._features = sampling.SamplingFeatures(*widest)
    self._scheduler.submit(completion)
    return completion

  @property
  def shares_work(self) -> bool:
    """Whether other processes complete a part of the requests."""
    return self._engine.shares_work

  @property
  def replicas(self) -> replicas.Replicas:
    """The copies of the policy that share the work."""
    return self._engine.replicas

  @property
  def num_preemptions(self) -> int:
    """How often a sequence has been preempted."""
    return self._scheduler.num_preemptions

  def unfinished(self) -> list[Completion]:
    """Returns the completions that run or wait, the running ones first."""
    return self._scheduler.unfinished()

  def close(self):
    """Frees its cache; what it has not finished goes on in another session."""
    self._kv_cache = self._params = None

  def __iter__(self) -> Iterator[list[Completion]]:
    while not self._scheduler.idle:
      yield self.step()

  def step(self) -> list[Completion]:
    """Prefills new requests and decodes once; returns what it finished."""
    if self._kv_cache is None:
      self._kv_cache = self._engine.new_kv_cache()
    self._prefill(self._scheduler.admit())
    self._scheduler.reserve()
    running = self._scheduler.running
    width = _batch_width(
      self._engine.max_num_seqs, max(map(len, running)), _DECODE_HALVINGS
    )
    rows = _concat_shards(
      [sorted(seqs, key=_longest_first) for seqs in running], width
    )
    output = self._decode(rows)
    self.decode_steps += int(output.decode_steps_B.max())
    finished = []
    for b, seq in enumerate(rows):
      if seq is not None and self._append_output(seq, b, output):
        self._scheduler.finish(seq)
        finished.append(seq.completion)
    return finished

  def _prefill(self, jobs: list[PrefillJob]):
    """Computes the tokens of all jobs, as many calls as that takes."""
    limit, T = self._engine.prefill_shape
    block_size = self._engine.config.block_size
    while any(not job.finished for job in jobs):
      by_shard = [
        [job for job in jobs if job.shard == shard and job.ready][:limit]
        for shard in range(self._engine.num_shards)
      ]
      width = _batch_width(limit, max(map(len, by_shard)), _PREFILL_HALVINGS)
      rows = _concat_shards(by_shard, width)
      tokens_BT = np.zeros((len(rows), T), np.int32)
      count_B = np.zeros(len(rows), np.int32)
      for b, job in enumerate(rows):
        if job is not None:
          tokens = job.tokens[job.num_computed : job.num_computed + T]
          tokens_BT[b, : len(tokens)], count_B[b] = tokens, len(tokens)
      self.prefilled_tokens += int(count_B.sum())
      block_tables = self._block_tables(
        [job and _prefill_table(job, block_size) for job in rows]
      )
      with self._on_device():
        self._kv_cache, experts_BTLA = self._engine.prefill(
          self._params, self._kv_cache, block_tables, tokens_BT, count_B
        )
        if experts_BTLA is not None:
          experts_BTLA = np.asarray(experts_BTLA)
      for b, job in enumerate(rows):
        if job is None:
          continue
        if experts_BTLA is not None:
          _record_experts(job, experts_BTLA[b, : count_B[b]], block_size)
        job.num_computed += int(count_B[b])

  def _decode(self, rows: list[RunningSequence | None]) -> DecodeOutput:
    """Runs the decode program once on these rows of the batch."""
    engine, features = self._engine, self._features
    completions = [seq.completion if seq else None for seq in rows]
    metadata = sampling.build_metadata(
      [c.request.sampling_params if c else None for c in completions],
      np.stack(
        [c.request.key if c else np.zeros(2, np.uint32) for c in completions]
      ),
      np.array([len(c.tokens) if c else 0 for c in completions], np.int32),
      np.array([c.remaining_tokens if c else 0 for c in completions], np.int32),
      features,
      engine.model.config.vocab_size,
      [c.all_tokens if c else np.zeros(0, int) for c in completions]
      if features.penalty
      else None,
    )
    block_tables = self._block_tables(
      [
        seq and (seq.blocks, [b.num_tokens for b in seq.blocks], seq.next_slot)
        for seq in rows
      ]
    )
    last_token_B = np.array(
      [c.last_token if c else 0 for c in completions], np.int32
    )
    control = speculative.build_control(
      [c.draft_control if c else () for c in completions],
      engine.programs.max_drafts,
    )
    with self._on_device():
      self._kv_cache, output = engine.decode(
        self._params,
        self._kv_cache,
        block_tables,
        metadata,
        last_token_B,
        control,
        num_top_logprobs=min(
          features.num_top_logprobs, engine.model.config.vocab_size
        ),
      )
      return jax.tree.map(np.asarray, output)

  @contextlib.contextmanager
  def _on_device(self):
    """Counts the time within as device_secs."""
    began = time.monotonic()
    yield
    self.device_secs += time.monotonic() - began

  def _block_tables(self, tables) -> cache.BlockTables:
    """Builds the block table of a batch.

    Args:
      tables: For each row its blocks, the number of tokens in each, and the
        slot of its next token; None for an empty row.
    """
    B, W = len(tables), self._engine.max_blocks_per_seq
    block_id_BW, num_tokens_BW = np.zeros((2, B, W), np.int32)
    next_slot_B = np.zeros(B, np.int32)
    for b, table in enumerate(tables):
      if table:
        blocks, num_tokens, next_slot_B[b] = table
        block_id_BW[b, : len(blocks)] = [block.block_id for block in blocks]
        num_tokens_BW[b, : len(blocks)] = num_tokens
    return cache.BlockTables(
      block_id_BW=block_id_BW,
      num_tokens_BW=num_tokens_BW,
      next_slot_B=next_slot_B,
    )

  def _append_output(
    self, seq: RunningSequence, b: int, output: DecodeOutput
  ) -> bool:
    """Appends row b of a decode call; returns whether the sequence finished."""
    completion, valid_S = seq.completion, output.valid_BS[b]
    params, count = completion.request.sampling_params, int(valid_S.sum())
    completion.decode_steps += int(output.decode_steps_B[b])
    if output.control is not None:
      _append_drafts(completion, b, output, output.control)
    if output.experts_BSLA is not None:
      if completion.prompt_experts is None:
        completion.prompt_experts = _stack_experts(
          seq.blocks[: seq.num_prefilled_blocks],
          len(completion.request.prompt) - 1,
          output.experts_BSLA.shape[2:],
        )
      completion.experts.extend(output.experts_BSLA[b, valid_S])
    num_before = len(completion.tokens)
    completion.tokens.extend(output.tokens_BS[b, valid_S].tolist())
    completion.logp.extend(output.logp_BS[b, valid_S].tolist())
    completion.model_logp.extend(output.model_logp_BS[b, valid_S].tolist())
    completion.policy_version.extend([self._policy_version] * count)
    if params.top_logprobs:
      completion.top_logprobs.extend(
        list(zip(tokens.tolist(), logps.tolist()))
        for tokens, logps in zip(
          output.top_token_BSO[b, valid_S, : params.top_logprobs],
          output.top_logp_BSO[b, valid_S, : params.top_logprobs],
        )
      )
    self._scheduler.record_tokens(seq, count)
    if params.stop_strings:
      self._apply_stop_strings(completion, num_before)
    if completion.finish_reason is None:
      if completion.tokens[-1] in params.stop_token_ids:
        completion.finish_reason = 'stop'
      elif not completion.remaining_tokens:
        completion.finish_reason = 'length'
    return completion.finish_reason is not None

  def _apply_stop_strings(self, completion: Completion, num_before: int):
    """Ends a completion at the first token that completes a stop string.

    Args:
      completion: The completion.
      num_before: Number of its tokens that have been searched before.
    """
    detokenize = self._engine.detokenize
    strings = completion.request.sampling_params.stop_strings

    def stops(tokens: list[int]) -> bool:
      text = detokenize(tokens)
      return any(string in text for string in strings)

    if not stops(completion.tokens):
      return
    for end in range(num_before + 1, len(completion.tokens) + 1):
      if stops(completion.tokens[:end]):
        for field in (
          'tokens',
          'logp',
          'model_logp',
          'policy_version',
          'top_logprobs',
          'experts',
        ):
          del getattr(completion, field)[end:]
        completion.finish_reason = 'stop'
        return


def _append_drafts(
  completion: Completion,
  b: int,
  output: DecodeOutput,
  control: speculative.DraftControl,
):
  """Counts the drafts of row b of a decode call, and keeps their control."""
  for name, counts_BK in (
    ('draft_tokens', output.draft_tokens_BK),
    ('accepted_tokens', output.accepted_tokens_BK),
  ):
    before = getattr(completion, name)
    counts = itertools.zip_longest(before, counts_BK[b].tolist(), fillvalue=0)
    setattr(completion, name, list(map(sum, counts)))
  completion.draft_control = speculative.control_of(control, b)


def _batch_width(limit: int, num_rows: int, halvings: int) -> int:
  """Returns the narrowest compiled width of a shard that holds so many rows.

  Example, limit = 8 and two halvings: the widths are 8, 4 and 2, so one row
  needs 2, three rows need 4 and five rows need 8.
  """
  return min(
    width
    for n in range(halvings + 1)
    if (width := max(limit >> n, 1)) >= num_rows
  )


def _longest_first(seq: RunningSequence) -> int:
  """Sort key: rows of similar length side by side attend fastest on a CPU."""
  return -len(seq.blocks)


def _concat_shards(by_shard: Sequence[list], width: int) -> list:
  """Concatenates the shards' rows, each padded with None to the width."""
  return [
    row for rows in by_shard for row in rows + [None] * (width - len(rows))
  ]


def _prefill_table(job: PrefillJob, block_size: int):
  """Returns a job's blocks, the tokens in each so far, and its next slot."""
  num_tokens = [block.num_tokens for block in job.prefix_blocks]
  num_tokens += [
    min(max(job.num_computed - i * block_size, 0), block_size)
    for i in range(len(job.blocks))
  ]
  return (
    job.prefix_blocks + job.blocks,
    num_tokens,
    len(job.prefix_blocks) * block_size + job.num_computed,
  )


def _record_experts(job: PrefillJob, experts_TLA, block_size: int):
  """Keeps the routed experts of prefilled tokens with their blocks."""
  for t, experts_LA in enumerate(experts_TLA, job.num_computed):
    job.blocks[t // block_size].experts.append(experts_LA)


def _stack_experts(blocks, num_tokens: int, shape) -> np.ndarray:
  """Returns the experts of the blocks' first tokens, [num_tokens, L, A]."""
  experts = [experts_LA for block in blocks for experts_LA in block.experts]
  return np.array(experts[:num_tokens], np.uint16).reshape(num_tokens, *shape)
