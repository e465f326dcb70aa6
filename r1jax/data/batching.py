"""Batches of prompts and of packed documents, as resumable Grain iterators."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
import zlib

import numpy as np

from r1jax.config.schema.data import CorpusConfig
from r1jax.data.mixture import Mixture
from r1jax.data.tasks.corpus import sample_document
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Prompt, PromptBatch, TokenBatch, TopLogprobs


def pad_prompts(
  prompts: Sequence[Prompt], tokenizer: Tokenizer, width_tokens: int
) -> PromptBatch:
  """Tokenizes prompts and pads them on the left; see PromptBatch.

  Args:
    prompts: P prompts.
    tokenizer: The policy's tokenizer.
    width_tokens: T, the padded length.

  Raises:
    UserError: a prompt is empty, longer than `width_tokens`, or cannot be
      encoded; the message names its id and its line of a file.
  """
  tokens_PT = np.full((len(prompts), width_tokens), tokenizer.pad_id, np.int32)
  valid_PT = np.zeros((len(prompts), width_tokens), bool)
  for row, prompt in enumerate(prompts):
    location = f'{prompt.where}: ' if prompt.where else ''
    name = f'data: {location}prompt {prompt.id}'
    try:
      ids = tokenizer.encode_prompt(prompt.text)
    except UserError as error:
      raise UserError(f'{name}: {error}') from error
    if len(ids) > width_tokens:
      raise UserError(
        f'{name} has {len(ids)} tokens, more than '
        f'max_prompt_tokens = {width_tokens}; raise '
        '--config.data.max_prompt_tokens or drop the row'
      )
    if not ids:
      raise UserError(f'{name} is empty')
    tokens_PT[row, width_tokens - len(ids) :] = ids
    valid_PT[row, width_tokens - len(ids) :] = True
  id_P = np.array([zlib.crc32(p.id.encode()) for p in prompts], np.uint32)
  return PromptBatch(tokens_PT=tokens_PT, valid_PT=valid_PT, id_P=id_P)


def check_prompts(
  prompts: Iterable[Prompt], tokenizer: Tokenizer, width_tokens: int
):
  """Raises the errors of `pad_prompts` for any of the prompts.

  A run checks its prompts at start-up, so that none fails in the middle of it.
  """
  for prompt in prompts:
    pad_prompts([prompt], tokenizer, width_tokens)


def prompt_stream(prompts: Sequence[Prompt], seed: int, shuffle: bool):
  """Returns an endless Grain iterator over prompts.

  Args:
    prompts: A Mixture, which has an order of its own, or other prompts.
    seed: Seed of the shuffling.
    shuffle: Whether to shuffle prompts that are no Mixture, anew each epoch.
  """
  import grain  # It takes long, and a command that only samples needs none.

  if isinstance(prompts, Mixture):
    dataset = prompts.dataset
  else:
    dataset = grain.MapDataset.source(prompts)
    if shuffle:
      dataset = dataset.shuffle(seed)
    dataset = dataset.repeat()
  return iter(dataset.to_iter_dataset(grain.ReadOptions(**_READ)))


class TwoPhaseStream:
  """Takes prompts from one endless stream, and after some steps from another.

  The state holds the positions of both streams, so that a run can resume.
  """

  def __init__(self, first, second, steps: int):
    """Joins two endless iterators; `steps` is the last step of the first."""
    self._streams, self._steps = (first, second), steps

  def next_prompts(self, step: int, count: int) -> list[Prompt]:
    """Returns the next `count` prompts for a step; steps count from 1."""
    stream = self._streams[step > self._steps]
    return [next(stream) for _ in range(count)]

  def get_state(self) -> list:
    """Returns the positions of both streams."""
    return [stream.get_state() for stream in self._streams]

  def set_state(self, state: list):
    """Restores positions that `get_state` returned."""
    for stream, position in zip(self._streams, state, strict=True):
      stream.set_state(position)


_NUM_CHECKED = 1000  # Documents whose length `check` samples.


class SyntheticCorpusBatches(Sequence):
  """Batches of packed synthetic documents, to pre-train a base model on.

  Batch i is a pure function of (seed, i). A document that is longer than a row,
  such as one with a correction at every step, is sampled again; `check` makes
  sure that these are rare.
  """

  def __init__(
    self,
    shares: Mapping[str, float],
    corpus: CorpusConfig,
    template: PromptTemplate,
    tokenizer: Tokenizer,
    batch_size: int,
    length_tokens: int,
    seed: int,
    num_batches: int,
  ):
    """Makes the batches.

    Args:
      shares: Task name → share of the documents; the shares sum to 1.
      corpus: Composition of the documents.
      template: Makes the prompts.
      tokenizer: Encodes the documents; its first stop token ends them.
      batch_size: B, rows of a batch.
      length_tokens: T, tokens of a row.
      seed: Seed of all samples.
      num_batches: Number of batches.
    """
    self._tasks, self._shares = list(shares), list(shares.values())
    self._corpus, self._template = corpus, template
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
    too_long = sum(
      len(self._sample(rng)) > self._shape[1] for _ in range(_NUM_CHECKED)
    )
    if too_long > _NUM_CHECKED // 100:
      raise UserError(
        f'corpus: {too_long} of {_NUM_CHECKED} documents do not fit into '
        f'pretrain.length_tokens = {self._shape[1]}; raise it'
      )

  def _sample(self, rng: np.random.Generator) -> list[int]:
    task = self._tasks[0]
    if len(self._tasks) > 1:
      task = str(rng.choice(self._tasks, p=self._shares))
    question, response = sample_document(rng, task, self._corpus)
    prompt = self._template.render(question)
    return [
      *self._tokenizer.encode_prompt(prompt),
      *self._tokenizer.encode_response(prompt, response),
      self._tokenizer.stop_ids[0],
    ]

  def _document(self, rng: np.random.Generator) -> list[int]:
    ids = self._sample(rng)
    while len(ids) > self._shape[1]:
      ids = self._sample(rng)
    return ids


class Document(NamedTuple):
  """The T tokens of one document, with their weights in the loss.

  Attributes:
    ids: Token ids.
    weight_T: float32, the weight of token t as a target, so that weight_T[0]
      is not used; None for 1 everywhere.
    top: A teacher's top log-probabilities of each token as a target, or None.
  """

  ids: Sequence[int]
  weight_T: np.ndarray | None = None
  top: TopLogprobs | None = None


def pack(
  next_document: Callable[[], Document | None],
  batch_size: int,
  length_tokens: int,
  pad_id: int,
  num_top_logprobs: int = 0,
) -> TokenBatch:
  """Packs whole documents into rows; see TokenBatch for an example.

  Rows are filled in turn: a document that does not fit into the rest of a row
  begins the next one.

  Args:
    next_document: Returns the next document, or None if there are no more; the
      rest of the batch is then padding.
    batch_size: B.
    length_tokens: T.
    pad_id: Token id of padding.
    num_top_logprobs: O, the number of top log-probabilities that each document
      brings per token; 0 without a teacher.

  Raises:
    UserError: a document is longer than a row.
  """
  shape = (batch_size, length_tokens)
  tokens, target = np.full((2, *shape), pad_id, np.int32)
  weight = np.zeros(shape, np.float32)
  segment, position = np.zeros((2, *shape), np.int32)
  top_ids = np.zeros((*shape, num_top_logprobs), np.int32)
  top_logp = np.full((*shape, num_top_logprobs), -np.inf, np.float32)
  document = next_document()
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
      if document.top is not None and num_top_logprobs:
        top_ids[row, start : end - 1] = document.top.ids_TO[1:]
        top_logp[row, start : end - 1] = document.top.logp_TO[1:]
      start, document = end, next_document()
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
    top_ids_BTO=top_ids if num_top_logprobs else None,
    top_logp_BTO=top_logp if num_top_logprobs else None,
  )


def token_batches(corpus: Sequence[TokenBatch]):
  """Returns a Grain iterator over batches, which a thread prefetches."""
  import grain

  dataset = grain.MapDataset.source(corpus)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(**_READ)))


_READ = {'num_threads': 1, 'prefetch_buffer_size': 4}
