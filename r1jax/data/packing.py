"""Packed batches of demonstrations for supervised fine-tuning."""

from collections.abc import Sequence

import numpy as np

from r1jax.data import batching
from r1jax.data.batching import Document
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Demonstration, TokenBatch, TopLogprobs


class PackedBatches(Sequence):
  """Batches of packed documents, for several passes over an SFT dataset.

  Batch i is a pure function of (seed, i). Each pass shuffles the documents
  anew; rows hold whole documents in turn. The last batch is padded, so that no
  document is left out.
  """

  def __init__(
    self,
    documents: Sequence[Document],
    batch_size: int,
    length_tokens: int,
    pad_id: int,
    seed: int,
    epochs: int,
    num_top_logprobs: int = 0,
  ):
    """Makes the batches.

    Args:
      documents: The documents of one pass.
      batch_size: B, rows of a batch.
      length_tokens: T, tokens of a row.
      pad_id: Token id of padding.
      seed: Seed of the shuffling.
      epochs: Number of passes.
      num_top_logprobs: O, the number of a teacher's top log-probabilities per
        token; 0 without a teacher.
    """
    self._documents, self._pad_id = documents, pad_id
    self._num_top_logprobs = num_top_logprobs
    self._shape = batch_size, length_tokens
    order = np.concatenate(
      [
        np.random.default_rng([seed, epoch]).permutation(len(documents))
        for epoch in range(epochs)
      ]
    )
    # Documents [starts[i], starts[i + 1]) of `order` are batch i.
    self._order = order
    self._starts = _starts(
      [len(documents[d].ids) for d in order], batch_size, length_tokens
    )

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int) -> TokenBatch:
    indices = self._order[self._starts[index] : self._starts[index + 1]]
    remaining = (self._documents[i] for i in indices)
    return batching.pack(
      lambda: next(remaining, None),
      *self._shape,
      self._pad_id,
      self._num_top_logprobs,
    )


def _starts(
  lengths: Sequence[int], batch_size: int, length_tokens: int
) -> list[int]:
  """Returns the index of each batch's first document, and the end."""
  starts, row, used = [0], 0, 0
  for at, length in enumerate(lengths):
    if used + length > length_tokens:
      row, used = row + 1, 0
      if row == batch_size:
        starts.append(at)
        row = 0
    used += length
  return [*starts, len(lengths)]


def to_documents(
  demonstrations: Sequence[Demonstration],
  tokenizer: Tokenizer,
  length_tokens: int,
  quarantine: Quarantine,
  reasoning_loss_weight: float | None = None,
) -> list[Document]:
  """Tokenizes demonstrations; only the response and its end have a loss.

  Example, prompt [7, 8] and response [9], with 2 to end it:
    ids      = [7, 8, 9, 2]
    weight_T = [0, 0, 1, 1]

  Args:
    demonstrations: The SFT dataset.
    tokenizer: Its first stop token ends a response.
    length_tokens: Length of a row, the maximum length of a document.
    quarantine: Takes malformed and overlong demonstrations.
    reasoning_loss_weight: α. Reasoning and general tokens are weighted so that
      the mean over all tokens is α · (mean over reasoning tokens) + (1 − α) ·
      (mean over general tokens). None gives every token the weight 1.

  Raises:
    UserError: a demonstration is malformed and may not be dropped, or a kind
      of row has a loss weight but no rows.
  """
  tokenized = []
  for d in demonstrations:
    try:
      tokenized.append((d, *_tokenize(d, tokenizer, length_tokens)))
    except (ValueError, UserError) as error:
      quarantine.drop(d.where or d.id, str(error))
  weight_of = _weights(
    [(d.general, len(response)) for d, _, response in tokenized],
    reasoning_loss_weight,
  )
  documents = []
  for d, prompt, response in tokenized:
    weight_T = np.zeros(len(prompt) + len(response), np.float32)
    weight_T[len(prompt) :] = weight_of[d.general]
    documents.append(
      Document(
        [*prompt, *response],
        weight_T,
        d.teacher and _pad_prompt(d.teacher, prompt),
      )
    )
  return documents


def _tokenize(d: Demonstration, tokenizer: Tokenizer, length_tokens: int):
  """Returns the ids of prompt and response; raises ValueError or UserError."""
  prompt = tokenizer.encode_prompt(d.prompt)
  response = [
    *tokenizer.encode_response(d.prompt, d.response),
    tokenizer.stop_ids[0],
  ]
  if not prompt:
    raise ValueError(f'prompt {d.id} is empty')
  if len(prompt) + len(response) > length_tokens:
    raise ValueError(
      f'demonstration {d.id} has {len(prompt) + len(response)} tokens, more than '
      f'length_tokens = {length_tokens}; raise it'
    )
  if d.teacher and len(d.teacher.ids_TO) != len(response):
    raise ValueError(
      f'demonstration {d.id} has {len(d.teacher.ids_TO)} distributions of '
      f'its teacher for {len(response)} tokens: it was made with another '
      'tokenizer'
    )
  return prompt, response


def _pad_prompt(top: TopLogprobs, prompt: Sequence[int]) -> TopLogprobs:
  """Puts columns for the prompt before the response's log-probabilities."""
  before = (len(prompt), 0), (0, 0)
  return TopLogprobs(
    np.pad(top.ids_TO, before),
    np.pad(top.logp_TO, before, constant_values=-np.inf),
    top.temperature,
  )


def _weights(
  rows: Sequence[tuple[bool, int]], share: float | None
) -> dict[bool, float]:
  """Returns the weight of a token by whether its row is general data.

  Args:
    rows: (general, number of response tokens) of each row.
    share: See reasoning_loss_weight of to_documents.
  """
  if share is None:
    return {False: 1.0, True: 1.0}
  tokens = {
    kind: sum(n for general, n in rows if general == kind)
    for kind in (False, True)
  }
  shares = {False: share, True: 1 - share}
  for kind, name in ((False, 'reasoning'), (True, 'general')):
    if shares[kind] and not tokens[kind]:
      raise UserError(
        f'data: {name} rows have a share of {shares[kind]:g}, '
        'but there are none'
      )
  total = sum(tokens.values())
  return {kind: shares[kind] * total / max(tokens[kind], 1) for kind in tokens}
