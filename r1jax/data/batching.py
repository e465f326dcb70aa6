"""From prompts and documents to arrays; resumable by position, on Grain."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
import zlib

import grain
import numpy as np

from r1jax.data import tasks
from r1jax.data.mixture import Mixture
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Prompt, PromptBatch, TokenBatch, TopLogprobs


def pad_prompts(
  prompts: Sequence[Prompt], tokenizer: Tokenizer, width_tokens: int
) -> PromptBatch:
  """Tokenises and pads on the left; see PromptBatch for an example.

  Raises:
    UserError: a prompt is empty, longer than `width_tokens`, or holds what the
      tokenizer does not know; named by its id and its line of a file.
  """
  tokens_PT = np.full((len(prompts), width_tokens), tokenizer.pad_id, np.int32)
  valid_PT = np.zeros((len(prompts), width_tokens), bool)
  for row, prompt in enumerate(prompts):
    place = f'{prompt.where}: ' if prompt.where else ''
    named = f'data: {place}prompt {prompt.id}'
    try:
      ids = tokenizer.encode_prompt(prompt.text)
    except UserError as error:
      raise UserError(f'{named}: {error}') from error
    if len(ids) > width_tokens:
      raise UserError(
        f'{named} has {len(ids)} tokens, more than '
        f'max_prompt_tokens = {width_tokens}; raise '
        '--config.data.max_prompt_tokens or drop the row'
      )
    if not ids:
      raise UserError(f'{named} is empty')
    tokens_PT[row, width_tokens - len(ids) :] = ids
    valid_PT[row, width_tokens - len(ids) :] = True
  id_P = np.array([zlib.crc32(p.id.encode()) for p in prompts], np.uint32)
  return PromptBatch(tokens_PT=tokens_PT, valid_PT=valid_PT, id_P=id_P)


def check_prompts(
  prompts: Iterable[Prompt], tokenizer: Tokenizer, width_tokens: int
):
  """Tokenises them all: a long one fails at start-up, not in mid-run."""
  for prompt in prompts:
    pad_prompts([prompt], tokenizer, width_tokens)


def prompt_stream(prompts: Sequence[Prompt], seed: int, shuffle: bool):
  """An endless Grain iterator over Prompts.

  Args:
    prompts: A Mixture has an order of its own; others are shuffled, each epoch
      anew, or read as they are.
    seed: Of the shuffle.
    shuffle: Whether to.
  """
  if isinstance(prompts, Mixture):
    dataset = prompts.dataset
  else:
    dataset = grain.MapDataset.source(prompts)
    if shuffle:
      dataset = dataset.shuffle(seed)
    dataset = dataset.repeat()
  return iter(dataset.to_iter_dataset(_READ))


class TwoPhaseStream:
  """Two endless streams: the first for some steps, the second after them.

  Each goes on where it was, and both positions are in the state.
  """

  def __init__(self, first, second, steps: int):
    self._streams, self._steps = (first, second), steps

  def next_prompts(self, step: int, count: int) -> list[Prompt]:
    """The next prompts of the stream that step is fed by, counted from 1."""
    stream = self._streams[step > self._steps]
    return [next(stream) for _ in range(count)]

  def get_state(self) -> list:
    return [stream.get_state() for stream in self._streams]

  def set_state(self, state: list):
    for stream, position in zip(self._streams, state, strict=True):
      stream.set_state(position)


_CHECKED = 1000  # Documents whose length is looked at before a run.


class SyntheticCorpusBatches(Sequence):
  """Batch i of packed synthetic documents, a pure function of (seed, i).

  A rare document that no row can hold, one with a repair at every step, is
  drawn again; `check` says whether it is rare. Rows are filled in turn: a
  document that does not fit any more opens the next row, and what it left is
  padding.
  """

  def __init__(
    self,
    shares: Mapping[str, float],
    web: tasks.CorpusConfig,
    template: PromptTemplate,
    tokenizer: Tokenizer,
    batch_size: int,
    length_tokens: int,
    seed: int,
    num_batches: int,
  ):
    self._tasks, self._shares = list(shares), list(shares.values())
    self._web, self._template = web, template
    self._tokenizer, self._seed = tokenizer, seed
    self._shape, self._num_batches = (batch_size, length_tokens), num_batches

  def __len__(self) -> int:
    return self._num_batches

  def __getitem__(self, index: int) -> TokenBatch:
    rng = np.random.default_rng([self._seed, index])
    return pack(
      lambda: Document(self._document(rng)),
      *self._shape,
      self._tokenizer.pad_id,
    )

  def check(self):
    """Raises UserError unless nearly every document fits into a row."""
    rng = np.random.default_rng([self._seed, self._num_batches])
    long = sum(len(self._draw(rng)) > self._shape[1] for _ in range(_CHECKED))
    if long > _CHECKED // 100:
      raise UserError(
        f'corpus: {long} of {_CHECKED} documents do not fit into '
        f'pretrain.length_tokens = {self._shape[1]}; raise it'
      )

  def _draw(self, rng: np.random.Generator) -> list[int]:
    task = self._tasks[0]
    if len(self._tasks) > 1:
      task = str(rng.choice(self._tasks, p=self._shares))
    question, response = tasks.sample_document(rng, task, self._web)
    return [
      *self._tokenizer.encode_prompt(self._template.render(question)),
      *self._tokenizer.encode(response),
      self._tokenizer.stop_ids[0],
    ]

  def _document(self, rng: np.random.Generator) -> list[int]:
    ids = self._draw(rng)
    while len(ids) > self._shape[1]:
      ids = self._draw(rng)
    return ids


class Document(NamedTuple):
  """Tokens of one document, and what is learnt from them.

  Attributes:
    ids: T of them.
    weight_T: Of token t as a target, so that weight_T[0] says nothing; None
      for 1.
    top: A teacher's distribution at each token as a target, or None.
  """

  ids: Sequence[int]
  weight_T: np.ndarray | None = None
  top: TopLogprobs | None = None


def pack(
  draw: Callable[[], Document | None],
  batch_size: int,
  length_tokens: int,
  pad_id: int,
  kept: int = 0,
) -> TokenBatch:
  """Fills rows with whole documents; see TokenBatch for an example.

  Args:
    draw: The next document; None when there is none left: what remains of the
      batch is padding.
    batch_size: B.
    length_tokens: T.
    pad_id: Fills what is left of a row.
    kept: O, tokens of each teacher's distribution; 0 without teachers.

  Raises:
    UserError: a document is longer than a row.
  """
  shape = (batch_size, length_tokens)
  tokens = np.full(shape, pad_id, np.int32)
  target = np.full(shape, pad_id, np.int32)
  weight = np.zeros(shape, np.float32)
  segment, position = np.zeros((2, *shape), np.int32)
  top_ids = np.zeros((*shape, kept), np.int32)
  top_logp = np.full((*shape, kept), -np.inf, np.float32)
  document = draw()
  for row in range(batch_size):
    start, count = 0, 0
    while document and (end := start + len(document.ids)) <= length_tokens:
      count += 1
      tokens[row, start:end] = document.ids
      target[row, start : end - 1] = document.ids[1:]
      weight[row, start : end - 1] = (
        1 if document.weight_T is None else document.weight_T[1:]
      )
      segment[row, start:end] = count
      position[row, start:end] = np.arange(end - start)
      if kept:
        top_ids[row, start : end - 1] = document.top.ids_TO[1:]
        top_logp[row, start : end - 1] = document.top.logp_TO[1:]
      start, document = end, draw()
    if document and not count:
      raise UserError(
        f'data: a document of {len(document.ids)} tokens does not fit into '
        f'length_tokens = {length_tokens}'
      )
  return TokenBatch(
    tokens_BT=tokens,
    target_BT=target,
    weight_BT=weight,
    segment_BT=segment,
    position_BT=position,
    top_ids_BTO=top_ids if kept else None,
    top_logp_BTO=top_logp if kept else None,
  )


def token_batches(corpus: Sequence[TokenBatch]):
  """A Grain iterator over TokenBatches, made ahead in a thread."""
  return iter(grain.MapDataset.source(corpus).to_iter_dataset(_READ))


_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
