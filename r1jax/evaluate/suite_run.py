"""Samples all completions of several suites, and grades and keeps each.

All suites share one session of the engine, so that the batch stays full until
the last of them ends. Graders work beside it, in a thread and in processes of
their own:

  session: decode → finished completions → thread: grade → parts on the disk

With several processes, either all decode one batch and the first one grades and
writes, or each replica has its own problems and its first process writes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import dataclasses
from pathlib import Path
import time

import jax

from r1jax import processes
from r1jax.data import batching
from r1jax.data.text.response_formats import ResponseParser
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.evaluate import stored
from r1jax.evaluate.evaluator import sample_records
from r1jax.evaluate.suites import Suite
from r1jax.graders import dispatch
from r1jax.records import FINISH_LENGTH, FINISH_STOP, Prompt
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout import assemble
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.train.metrics import Progress

_WRITE_SECS = 30.0  # Graded completions wait so long for a part, at most.
_WRITE_ROWS = 2048  # And so many of them, at most.
_LINES = 20  # Lines of progress where there is no terminal.


@dataclasses.dataclass(frozen=True)
class Problems:
  """The problems of one suite in an evaluation.

  Attributes:
    suite: The suite.
    prompts: Its problems, as prompts.
    num_samples: k, completions of each.
    available: Problems that the suite has, of which these are the first.
    excluded: 'file:line reason' of each row that could not be read or graded.
  """

  suite: Suite
  prompts: Sequence[Prompt]
  num_samples: int
  available: int
  excluded: tuple[str, ...] = ()

  @property
  def num_completions(self) -> int:
    """P · k."""
    return len(self.prompts) * self.num_samples


@dataclasses.dataclass(frozen=True)
class Reader:
  """How prompts are written and completions read.

  Attributes:
    tokenizer: Encodes prompts and decodes completions.
    parser: Finds the answer in a completion.
    reward: Grades by rules alone.
    sampling: How tokens are sampled.
  """

  tokenizer: Tokenizer
  parser: ResponseParser
  reward: RewardManager
  sampling: SamplingParams


@dataclasses.dataclass(frozen=True)
class Speed:
  """The work of one call, without what was on the disk before.

  Attributes:
    completions: Completions sampled.
    tokens: Their tokens.
    secs: Wall seconds from the first request to the last part on the disk.
    device_secs: Seconds in which the host ran device programs or waited for
      them.
  """

  completions: int
  tokens: int
  secs: float
  device_secs: float


class SuiteRun:
  """The completions of several suites that are still to be sampled."""

  def __init__(
    self,
    engine: Engine,
    problems: Sequence[Problems],
    reader: Reader,
    folder: Path,
    key: jax.Array,
  ):
    """Finds the completions that are not on the disk.

    A collective operation: all processes do what the first one finds missing.

    Args:
      engine: The sampler.
      problems: The suites.
      reader: Writes prompts and reads completions.
      folder: The folder of the evaluation; each suite has one in it.
      key: Seeds the samples. A problem has the same ones in any evaluation.
    """
    self._engine, self._problems, self._reader = engine, problems, reader
    self._folder = folder
    there: list[list] = processes.from_first(
      lambda: [sorted(stored.keys(folder / p.suite.name)) for p in problems]
    )
    self._todo: list[Request] = []
    self.total = self.done = 0
    for s, (each, found) in enumerate(zip(problems, there)):
      known = {tuple(pair) for pair in found}
      requests = self._requests(s, each, key)
      left = [r for r in requests if r.name[1:] not in known]
      self.total += len(requests)
      self.done += len(requests) - len(left)
      self._todo += left

  def _requests(self, s: int, each: Problems, key) -> list[Request]:
    encode = self._reader.tokenizer.encode_prompt
    width = max(len(encode(prompt.text)) for prompt in each.prompts)
    batch = batching.pad_prompts(each.prompts, self._reader.tokenizer, width)
    return [
      dataclasses.replace(
        request, name=(s, *request.name), group=(s, request.group)
      )
      for request in assemble.build_requests(
        batch, each.num_samples, self._reader.sampling, key
      )
    ]

  def run(self, params) -> Speed:
    """Samples what is missing; then every completion is on the disk.

    Args:
      params: Parameters of the policy.
    """
    began = time.monotonic()
    own = self._own()
    alone = self._engine.shares_work
    with processes.agreed() if alone else contextlib.nullcontext():
      tokens, device_secs = self._sample(params, own)
    counts = processes.exchange([len(own) * self._writes, tokens])
    return Speed(
      sum(count for count, _ in counts),
      sum(tokens for _, tokens in counts),
      time.monotonic() - began,
      device_secs,
    )

  @property
  def _writes(self) -> bool:
    """Whether this process grades and writes what it samples."""
    if self._engine.shares_work:
      return self._engine.replicas.leads
    return processes.is_first()

  def _own(self) -> list[Request]:
    """Returns the requests that this process samples: whole problems."""
    if not self._engine.shares_work:
      return self._todo
    replicas = self._engine.replicas
    count = len(replicas.layouts)
    return [r for r in self._todo if r.name[1] % count == replicas.own]

  def _sample(self, params, requests: Sequence[Request]) -> tuple[int, float]:
    """Returns the tokens that this process wrote, and its device's seconds."""
    if not self._todo:
      return 0, 0.0
    session = self._engine.session(params)
    for request in requests:
      session.submit(request)
    tokens, done, total = 0, self.done, self.total
    if self._engine.shares_work:  # It counts its own completions.
      done, total = 0, len(requests)
    began = time.monotonic()
    with (
      _Keeper(
        self._problems, self._reader, self._folder, self._writes
      ) as keeper,
      Progress('eval', done, total, total + 1) as progress,
    ):
      for finished in session:
        keeper.take(finished)
        if finished:
          tokens += sum(len(c.tokens) for c in finished)
          lines, done = _LINES * done // total, done + len(finished)
          rate = tokens / max(time.monotonic() - began, 1e-9)
          progress.update(
            done,
            {'tokens/s': f'{rate:.0f}'},
            keep=_LINES * done // total > lines,
          )
    return tokens * self._writes, session.device_secs


class _Keeper:
  """Grades finished completions in a thread, and writes them in parts.

  On an error or a signal, what was graded before it is written.
  """

  def __init__(
    self,
    problems: Sequence[Problems],
    reader: Reader,
    folder: Path,
    writes: bool,
  ):
    self._problems, self._reader = problems, reader
    self._writes, self._folder = writes, folder
    self._waiting: list[Completion] = []
    self._graded: list[tuple[int, dict]] = []
    self._last = time.monotonic()
    self._writers: dict[int, stored.Writer] = {}

  def __enter__(self) -> '_Keeper':
    self._thread = ThreadPoolExecutor(1)
    self._busy: Future | None = None
    return self

  def __exit__(self, kind, *_):
    try:
      if kind is None:
        self._finish()
    finally:
      self._thread.shutdown(cancel_futures=True)
      self._write()

  def take(self, finished: Sequence[Completion]):
    """Takes completions; grades them once the thread is free.

    Raises:
      Exception: what the thread raised.
    """
    if not self._writes:
      return
    self._waiting += finished
    if self._busy is not None and not self._busy.done():
      return
    if self._busy is not None:
      self._busy.result()
    if self._waiting:
      batch, self._waiting = self._waiting, []
      self._busy = self._thread.submit(self._grade, batch)

  def _finish(self):
    while self._waiting or self._busy:
      if self._busy:
        self._busy.result()
      self._busy = None
      self.take(())

  def _grade(self, batch: Sequence[Completion]):
    self._graded += self._records(batch)
    late = time.monotonic() - self._last > _WRITE_SECS
    if late or len(self._graded) > _WRITE_ROWS:
      self._write()

  def _records(self, batch: Sequence[Completion]) -> Iterator[tuple[int, dict]]:
    reader = self._reader
    names = [c.request.name for c in batch]
    prompts = [self._problems[s].prompts[p] for s, p, _ in names]
    texts = assemble.completion_texts(batch, reader.tokenizer.decode_batch)
    lengths = [len(c.tokens) for c in batch]
    scored = reader.reward.score(texts, prompts, lengths)
    stops = [
      FINISH_STOP if c.finish_reason == 'stop' else FINISH_LENGTH for c in batch
    ]
    records = sample_records(prompts, scored, lengths, stops)
    for (s, p, g), prompt, record in zip(names, prompts, records, strict=True):
      parsed = reader.parser.parse(record['completion'])
      answer = dispatch.graded_text(parsed, prompt.source)
      yield (
        s,
        record
        | {
          'problem': p,
          'sample': g,
          'prompt': prompt.text,
          'answer': dispatch.final_answer(answer, prompt.source),
          'truncated': bool(record['truncated']),
        },
      )

  def _write(self):
    graded, self._graded = self._graded, []
    for s in sorted({s for s, _ in graded}):
      if s not in self._writers:
        folder = self._folder / self._problems[s].suite.name
        self._writers[s] = stored.Writer(folder, jax.process_index())
      self._writers[s].write([record for own, record in graded if own == s])
    self._last = time.monotonic()
