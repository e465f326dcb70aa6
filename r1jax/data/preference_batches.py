"""Batches of preferences for reward models and DPO, packed into rows."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

from r1jax.data import scored_text, sequence_packing
from r1jax.data.quarantine import Quarantine
from r1jax.data.sample_packing import RowShape
from r1jax.data.sequence_packing import ReadSequence
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Array, LabelledResponse, PackedRows, PreferencePair


@chex.dataclass(frozen=True)
class PairBatch:
  """P preference pairs, whose 2·P sequences are packed into rows.

  Sequences 2p and 2p + 1 are the chosen and the rejected response of pair p,
  each after its prompt.

  Attributes:
    rows: The packed sequences; its mask says what of them is read.
    weight_P: float32, 1 for a real pair, 0 for one that fills the batch.
    group_P: int32, index of the pair's preference group.
  """

  rows: PackedRows
  weight_P: Array
  group_P: Array


@chex.dataclass(frozen=True)
class LabelledBatch:
  """B single responses with safety labels, packed into rows.

  Attributes:
    rows: The packed sequences, each a prompt with its response.
    safe_B: float32, 1 for safe, 0 for unsafe.
    weight_B: float32, 1 for a real response, 0 for one that fills the batch.
    group_B: int32, index of the response's preference group.
  """

  rows: PackedRows
  safe_B: Array
  weight_B: Array
  group_B: Array


class PreferenceExample(NamedTuple):
  """A tokenized preference pair or labelled response.

  Attributes:
    id: Id of its row.
    rows: Token ids of prompt and response: of the chosen and the rejected
      response, or of the labelled one.
    prompt_tokens: Number of prompt tokens in each of them, before a response
      whose every token is read; 0 in reward-model examples.
    group: Name of the preference group; '' for none.
    safe: Label of a labelled response.
    where: 'path:line' of its row, for error messages.
  """

  id: str
  rows: tuple[list[int], ...]
  prompt_tokens: int = 0
  group: str = ''
  safe: bool = True
  where: str = ''

  def sequences(self) -> list[ReadSequence]:
    """Returns its sequences; a reward model reads the last token of each."""
    return [
      ReadSequence(ids, range(self.prompt_tokens or len(ids) - 1, len(ids)))
      for ids in self.rows
    ]


def reward_model_examples(
  preferences: Sequence[PreferencePair | LabelledResponse],
  encoder: scored_text.ScoredTextEncoder,
  cut_long: bool,
  quarantine: Quarantine,
) -> list[PreferenceExample]:
  """Tokenizes preferences exactly as the reward model will be used.

  A response without any tag of the response format counts as the part to
  score; for the helpfulness model, that is an answer without reasoning.

  Args:
    preferences: Pairs, or labelled responses.
    encoder: Selects and encodes what the reward model scores.
    cut_long: Whether a sequence of more than encoder.max_tokens loses its
      beginning; otherwise it is a malformed row.
    quarantine: Takes malformed rows.

  Raises:
    UserError: a row is malformed and may not be dropped.
  """

  def tokenize(prompt: str, text: str) -> list[int]:
    tags = encoder.parser.format.tags
    part = (
      encoder.extract(text)
      if any(tag in text for tag in tags)
      else text.strip()
    )
    if not part:
      raise ValueError('has a response without an answer')
    if not cut_long:
      _check_length(
        len(encoder.encode(prompt, part)),
        encoder.max_tokens,
        'raise max_tokens, or set truncate_long',
      )
    return encoder.encode_truncated(prompt, part)

  def example(row) -> PreferenceExample:
    if encoder.kind == scored_text.HELPFUL:
      _check_pair(row)
    texts = (
      [row.response]
      if isinstance(row, LabelledResponse)
      else [row.chosen, row.rejected]
    )
    return PreferenceExample(
      row.prompt.id,
      tuple(tokenize(row.prompt.text, t) for t in texts),
      group=row.group,
      safe=getattr(row, 'safe', True),
      where=row.prompt.where,
    )

  return _examples(preferences, example, quarantine)


def dpo_examples(
  preferences: Sequence[PreferencePair],
  tokenizer: Tokenizer,
  max_tokens: int,
  quarantine: Quarantine,
) -> list[PreferenceExample]:
  """Tokenizes prompts and whole responses, as the policy generates them.

  Args:
    preferences: Pairs.
    tokenizer: The policy's tokenizer.
    max_tokens: Maximum number of tokens of prompt and response together.
    quarantine: Takes malformed and overlong rows.

  Raises:
    UserError: a row is malformed and may not be dropped.
  """

  def example(pair: PreferencePair) -> PreferenceExample:
    _check_pair(pair)
    prompt = tokenizer.encode_prompt(pair.prompt.text)
    if not (prompt and pair.chosen and pair.rejected):
      raise ValueError('has an empty prompt or an empty response')
    rows = tuple(
      [
        *prompt,
        *tokenizer.encode_response(pair.prompt.text, text),
        tokenizer.stop_ids[0],
      ]
      for text in (pair.chosen, pair.rejected)
    )
    _check_length(max(map(len, rows)), max_tokens, 'raise max_tokens')
    return PreferenceExample(
      pair.prompt.id, rows, len(prompt), pair.group, where=pair.prompt.where
    )

  return _examples(preferences, example, quarantine)


def _check_pair(row):
  if not isinstance(row, PreferencePair):
    raise ValueError("needs 'chosen' and 'rejected', and has one response")


def _check_length(tokens: int, max_tokens: int, fix: str):
  if tokens > max_tokens:
    raise ValueError(f'has {tokens} tokens, more than {max_tokens}; {fix}')


def _examples(
  preferences, example, quarantine: Quarantine
) -> list[PreferenceExample]:
  examples = []
  for row in preferences:
    try:
      tokenized = example(row)
      rows = tokenized.rows
      if len(rows) > 1 and rows[0] == rows[1]:
        raise ValueError(
          'has a chosen response that equals the rejected one '
          'in what is read of them'
        )
      examples.append(tokenized)
    except (ValueError, UserError) as error:
      quarantine.drop(row.prompt.where or row.prompt.id, str(error))
  return examples


def group_sizes(examples: Sequence[PreferenceExample]) -> dict[str, int]:
  """Returns the number of examples of each group, sorted by group name."""
  names, counts = np.unique([e.group for e in examples], return_counts=True)
  return dict(zip(map(str, names), map(int, counts)))


class PreferenceBatches(Sequence):
  """Batches of preference examples, for several passes over a dataset.

  Batch i is a pure function of (seed, i). The last batch is filled up with
  examples of weight 0, of which there is no token.
  """

  def __init__(
    self,
    examples: Sequence[PreferenceExample],
    groups: Sequence[str],
    shape: RowShape,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
  ):
    """Makes the batches.

    Args:
      examples: Tokenized pairs, or tokenized labelled responses.
      groups: Names of the preference groups; group_P holds indices into them.
      shape: Shape of the rows; its samples are the examples of a batch.
      seed: Seed of the shuffling.
      epochs: Number of passes.
      shuffle: Whether to shuffle each pass.
    """
    self._examples, self._shape = examples, shape
    self._index = {name: i for i, name in enumerate(groups)}
    self._order = sequence_packing.order(len(examples), seed, epochs, shuffle)

  def row_without_group(self) -> str:
    """Returns the location of the first row without a group; '' if none is."""
    return next((e.where or e.id for e in self._examples if not e.group), '')

  def __len__(self) -> int:
    return -(-len(self._order) // self._shape.num_samples)

  def __getitem__(self, index: int) -> PairBatch | LabelledBatch:
    size = self._shape.num_samples
    examples = [
      self._examples[i] for i in self._order[index * size : (index + 1) * size]
    ]

    def filled(values, dtype):
      array = np.zeros(size, dtype)
      array[: len(examples)] = values
      return array

    rows = sequence_packing.pack(
      [example.sequences() for example in examples], self._shape
    )
    weight = filled(1, np.float32)
    group = filled(
      [self._index[example.group] for example in examples], np.int32
    )
    if len(examples[0].rows) == 2:
      return PairBatch(rows=rows, weight_P=weight, group_P=group)
    return LabelledBatch(
      rows=rows,
      safe_B=filled([example.safe for example in examples], np.float32),
      weight_B=weight,
      group_B=group,
    )
