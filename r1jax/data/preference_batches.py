"""Batches of preferences for reward models and DPO, in padded length buckets."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

from r1jax.data import scored_text
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Array, LabelledResponse, PreferencePair


@chex.dataclass(frozen=True)
class PairBatch:
  """P preference pairs as B = 2·P rows: chosen, rejected, chosen, rejected, …

  Example, prompt [7, 8], chosen [9], rejected [4, 5], end of sequence 2, T = 6:
    tokens_BT = [[7, 8, 9, 2, 0, 0], [7, 8, 4, 5, 2, 0]]
    valid_BT  = [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    mask_BT   = [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]

  Attributes:
    tokens_BT: int32 token ids.
    valid_BT: bool, False on padding.
    mask_BT: bool, True on the response and its end-of-sequence token.
    weight_P: float32, 1 for a real pair, 0 for one that pads the batch.
    group_P: int32, index of the pair's preference group.
  """

  tokens_BT: Array
  valid_BT: Array
  mask_BT: Array
  weight_P: Array
  group_P: Array


@chex.dataclass(frozen=True)
class LabelledBatch:
  """Single responses with safety labels; see PairBatch for the layout.

  Attributes:
    tokens_BT: int32 token ids.
    valid_BT: bool, False on padding.
    safe_B: float32, 1 for safe, 0 for unsafe.
    weight_B: float32, 1 for a real row, 0 for one that pads the batch.
    group_B: int32, index of the row's preference group.
  """

  tokens_BT: Array
  valid_BT: Array
  safe_B: Array
  weight_B: Array
  group_B: Array


class PreferenceExample(NamedTuple):
  """A tokenized preference pair or labelled response.

  Attributes:
    id: Id of its row.
    rows: Token ids of prompt and response: of the chosen and the rejected
      response, or of the labelled one.
    prompt_tokens: Number of prompt tokens in each of them; 0 in reward-model
      examples, whose tokens are all inputs.
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
        'raise length_buckets, or set cut_long',
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
    _check_length(max(map(len, rows)), max_tokens, 'raise length_buckets')
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

  Batch i is a pure function of (seed, i). It is padded to the smallest length
  bucket that fits it; the last batch is filled up with rows of weight 0.
  """

  def __init__(
    self,
    examples: Sequence[PreferenceExample],
    groups: Sequence[str],
    batch_size: int,
    length_buckets: Sequence[int],
    pad_id: int,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
  ):
    """Makes the batches.

    Args:
      examples: Tokenized pairs, or tokenized labelled responses.
      groups: Names of the preference groups; group_P holds indices into them.
      batch_size: P pairs, or B responses.
      length_buckets: Padded lengths in tokens, in rising order.
      pad_id: Token id of padding.
      seed: Seed of the shuffling.
      epochs: Number of passes.
      shuffle: Whether to shuffle each pass.
    """
    self._examples, self._pad_id = examples, pad_id
    self._length_buckets = length_buckets
    self._batch_size = batch_size
    self._index = {name: i for i, name in enumerate(groups)}
    self._order = np.concatenate(
      [
        np.random.default_rng([seed, epoch]).permutation(len(examples))
        if shuffle
        else np.arange(len(examples))
        for epoch in range(epochs)
      ]
    )

  def row_without_group(self) -> str:
    """Returns the location of the first row without a group; '' if none is."""
    return next((e.where or e.id for e in self._examples if not e.group), '')

  def __len__(self) -> int:
    return -(-len(self._order) // self._batch_size)

  def __getitem__(self, index: int) -> PairBatch | LabelledBatch:
    size = self._batch_size
    examples = [
      self._examples[i] for i in self._order[index * size : (index + 1) * size]
    ]
    rows_per_example = len(examples[0].rows)
    rows = [ids for example in examples for ids in example.rows]
    longest = max(map(len, rows))
    width = next(w for w in self._length_buckets if w >= longest)
    tokens_BT = np.full(
      (size * rows_per_example, width), self._pad_id, np.int32
    )
    valid_BT, mask_BT = np.zeros((2, size * rows_per_example, width), bool)
    starts = [
      example.prompt_tokens for example in examples for _ in example.rows
    ]
    for b, (ids, start) in enumerate(zip(rows, starts)):
      tokens_BT[b, : len(ids)], valid_BT[b, : len(ids)] = ids, True
      mask_BT[b, start : len(ids)] = True
    weight = np.zeros(size, np.float32)
    weight[: len(examples)] = 1
    group = np.zeros(size, np.int32)
    group[: len(examples)] = [
      self._index[example.group] for example in examples
    ]
    if rows_per_example == 2:
      return PairBatch(
        tokens_BT=tokens_BT,
        valid_BT=valid_BT,
        mask_BT=mask_BT,
        weight_P=weight,
        group_P=group,
      )
    safe_B = np.zeros(size, np.float32)
    safe_B[: len(examples)] = [example.safe for example in examples]
    return LabelledBatch(
      tokens_BT=tokens_BT,
      valid_BT=valid_BT,
      safe_B=safe_B,
      weight_B=weight,
      group_B=group,
    )
