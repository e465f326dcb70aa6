"""From preferences to batches: tokenised, padded to declared lengths."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1jax.data import scored_text
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import (
  LabelledBatch,
  LabelledResponse,
  PairBatch,
  PreferencePair,
)


class PreferenceExample(NamedTuple):
  """A pair or a labelled response, tokenised.

  Attributes:
    id: Of its row.
    rows: Tokens of prompt and response: the chosen and the rejected one, or
      the only one.
    prompt_tokens: How many of each are the prompt's; of responses that are
      judged, and not generated, that is not known.
    group: A name, or ''.
    safe: Of a labelled response.
    where: For errors.
  """

  id: str
  rows: tuple[list[int], ...]
  prompt_tokens: int = 0
  group: str = ''
  safe: bool = True
  where: str = ''


def reward_model_examples(
  found: Sequence[PreferencePair | LabelledResponse],
  encoder: scored_text.ScoredTextEncoder,
  cut_long: bool,
  quarantine: Quarantine,
) -> list[PreferenceExample]:
  """Exactly the tokens that a judge will see.

  A response without any tag of the form that completions have is what is read
  of one: a summary, where helpfulness is judged.

  Args:
    found: Pairs, or labelled responses.
    encoder: Of the reward model.
    cut_long: A longer one loses its beginning, as when it is judged; otherwise
      it is a bad row.
    quarantine: Takes bad rows.

  Raises:
    UserError: a row is bad and may not be dropped.
  """

  def tokenised(prompt: str, text: str) -> list[int]:
    form = encoder.parser.format
    part = (
      encoder.extract(text)
      if any(tag in text for tag in form.tags)
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
      tuple(tokenised(row.prompt.text, t) for t in texts),
      group=row.group,
      safe=getattr(row, 'safe', True),
      where=row.prompt.where,
    )

  return _examples(found, example, quarantine)


def dpo_examples(
  found: Sequence[PreferencePair],
  tokenizer: Tokenizer,
  max_tokens: int,
  quarantine: Quarantine,
) -> list[PreferenceExample]:
  """Whole completions, of which a policy is asked how likely they are."""

  def example(pair: PreferencePair) -> PreferenceExample:
    _check_pair(pair)
    prompt = tokenizer.encode_prompt(pair.prompt.text)
    if not (prompt and pair.chosen and pair.rejected):
      raise ValueError('has an empty prompt, or nothing to say after it')
    rows = tuple(
      [*prompt, *tokenizer.encode(text), tokenizer.stop_ids[0]]
      for text in (pair.chosen, pair.rejected)
    )
    _check_length(max(map(len, rows)), max_tokens, 'raise length_buckets')
    return PreferenceExample(
      pair.prompt.id, rows, len(prompt), pair.group, where=pair.prompt.where
    )

  return _examples(found, example, quarantine)


def _check_pair(row):
  if not isinstance(row, PreferencePair):
    raise ValueError("needs 'chosen' and 'rejected', and has one response")


def _check_length(tokens: int, most: int, fix: str):
  if tokens > most:
    raise ValueError(f'has {tokens} tokens, more than {most}; {fix}')


def _examples(
  found, example, quarantine: Quarantine
) -> list[PreferenceExample]:
  made = []
  for row in found:
    try:
      one = example(row)
      if len(one.rows) > 1 and one.rows[0] == one.rows[1]:
        raise ValueError(
          'has a chosen response that equals the rejected one '
          'in what is read of them'
        )
      made.append(one)
    except (ValueError, UserError) as error:
      quarantine.drop(row.prompt.where or row.prompt.id, str(error))
  return made


def group_sizes(examples: Sequence[PreferenceExample]) -> dict[str, int]:
  """The groups in order of their names, and how many examples each has."""
  names, counts = np.unique([e.group for e in examples], return_counts=True)
  return dict(zip(map(str, names), map(int, counts)))


class PreferenceBatches(Sequence):
  """Batch i of `epochs` passes over the examples, a function of (seed, i).

  A batch is padded to the least of the declared widths that holds it, and the
  last batch with rows of weight 0.
  """

  def __init__(
    self,
    examples: Sequence[PreferenceExample],
    groups: Sequence[str],
    batch_size: int,
    widths: Sequence[int],
    pad_id: int,
    seed: int = 0,
    epochs: int = 1,
    shuffle: bool = True,
  ):
    self._examples, self._widths, self._pad_id = examples, widths, pad_id
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
    """The first row that names no group; '' where all do."""
    return next((e.where or e.id for e in self._examples if not e.group), '')

  def __len__(self) -> int:
    return -(-len(self._order) // self._batch_size)

  def __getitem__(self, index: int) -> PairBatch | LabelledBatch:
    size = self._batch_size
    some = [
      self._examples[i] for i in self._order[index * size : (index + 1) * size]
    ]
    each = len(some[0].rows)
    rows = [ids for example in some for ids in example.rows]
    longest = max(map(len, rows))
    width = next(w for w in self._widths if w >= longest)
    tokens_BT = np.full((size * each, width), self._pad_id, np.int32)
    valid_BT, mask_BT = np.zeros((2, size * each, width), bool)
    starts = [example.prompt_tokens for example in some for _ in example.rows]
    for b, (ids, start) in enumerate(zip(rows, starts)):
      tokens_BT[b, : len(ids)], valid_BT[b, : len(ids)] = ids, True
      mask_BT[b, start : len(ids)] = True
    weight = np.zeros(size, np.float32)
    weight[: len(some)] = 1
    group = np.zeros(size, np.int32)
    group[: len(some)] = [self._index[example.group] for example in some]
    if each == 2:
      return PairBatch(
        tokens_BT=tokens_BT,
        valid_BT=valid_BT,
        mask_BT=mask_BT,
        weight_P=weight,
        group_P=group,
      )
    safe_B = np.zeros(size, np.float32)
    safe_B[: len(some)] = [example.safe for example in some]
    return LabelledBatch(
      tokens_BT=tokens_BT,
      valid_BT=valid_BT,
      safe_B=safe_B,
      weight_B=weight,
      group_B=group,
    )
