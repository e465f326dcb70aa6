"""Demonstrations, packed: batches that a supervised stage learns from."""

from collections.abc import Sequence

import numpy as np

from r1jax.data import batching
from r1jax.data.batching import Document
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Demonstration, TokenBatch, TopLogprobs


class PackedBatches(Sequence):
  """Batch i of `epochs` passes over the documents, a function of (seed, i).

  Each pass shuffles the documents anew and fills rows with whole ones in turn;
  a row ends where the next document does not fit. The last batch is filled
  with padding: no document is left out.
  """

  def __init__(
    self,
    documents: Sequence[Document],
    batch_size: int,
    length_tokens: int,
    pad_id: int,
    seed: int,
    epochs: int,
    kept: int = 0,
  ):
    self._documents, self._pad_id, self._kept = documents, pad_id, kept
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
    some = iter(self._order[self._starts[index] : self._starts[index + 1]])

    def draw() -> Document | None:
      found = next(some, None)
      return None if found is None else self._documents[found]

    return batching.pack(draw, *self._shape, self._pad_id, self._kept)


def _starts(
  lengths: Sequence[int], batch_size: int, length_tokens: int
) -> list[int]:
  """Where batches begin in a sequence of documents, and its end."""
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
  found: Sequence[Demonstration],
  tokenizer: Tokenizer,
  length_tokens: int,
  quarantine: Quarantine,
  reasoning_loss_weight: float | None = None,
) -> list[Document]:
  """Tokenises them; only responses and their end are learnt.

  Example, prompt [7, 8] and response [9], with 2 to end it:
    ids      = [7, 8, 9, 2]
    weight_T = [0, 0, 1, 1]

  Args:
    found: Demonstrations.
    tokenizer: Its first stop token ends a response.
    length_tokens: Of a row, which the longest must fit into.
    quarantine: Takes those that do not.
    reasoning_loss_weight: α. Weights of reasoning and general tokens are such that
      the mean over all tokens is α · (mean over reasoning) + (1 − α) · (mean
      over general rows). None: every token counts alike.

  Raises:
    UserError: a row is bad and may not be dropped, or there are no rows of a
      kind that has a share.
  """
  made = []
  for d in found:
    try:
      made.append((d, *_tokenised(d, tokenizer, length_tokens)))
    except (ValueError, UserError) as error:
      quarantine.drop(d.where or d.id, str(error))
  weight_of = _weights(
    [(d.general, len(own)) for d, _, own in made], reasoning_loss_weight
  )
  packed = []
  for d, prompt, own in made:
    weight_T = np.zeros(len(prompt) + len(own), np.float32)
    weight_T[len(prompt) :] = weight_of[d.general]
    packed.append(
      Document(
        [*prompt, *own], weight_T, d.teacher and _shifted(d.teacher, prompt)
      )
    )
  return packed


def _tokenised(d: Demonstration, tokenizer: Tokenizer, length_tokens: int):
  prompt = tokenizer.encode_prompt(d.prompt)
  own = [*tokenizer.encode(d.response), tokenizer.stop_ids[0]]
  if not prompt:
    raise ValueError(f'prompt {d.id} is empty')
  if len(prompt) + len(own) > length_tokens:
    raise ValueError(
      f'demonstration {d.id} has {len(prompt) + len(own)} tokens, more than '
      f'length_tokens = {length_tokens}; raise it'
    )
  if d.teacher and len(d.teacher.ids_TO) != len(own):
    raise ValueError(
      f'demonstration {d.id} has {len(d.teacher.ids_TO)} distributions of '
      f'its teacher for {len(own)} tokens: it was made with another '
      'tokenizer'
    )
  return prompt, own


def _shifted(known: TopLogprobs, prompt: Sequence[int]) -> TopLogprobs:
  """The response's distributions, behind columns for the prompt."""
  before = (len(prompt), 0), (0, 0)
  return TopLogprobs(
    np.pad(known.ids_TO, before),
    np.pad(known.logp_TO, before, constant_values=-np.inf),
    known.temperature,
  )


def _weights(
  rows: Sequence[tuple[bool, int]], share: float | None
) -> dict[bool, float]:
  """Of a token, by whether its row is general."""
  if share is None:
    return {False: 1.0, True: 1.0}
  tokens = {
    kind: sum(n for general, n in rows if general == kind)
    for kind in (False, True)
  }
  wanted = {False: share, True: 1 - share}
  for kind, name in ((False, 'reasoning'), (True, 'general')):
    if wanted[kind] and not tokens[kind]:
      raise UserError(
        f'data: {name} rows have a share of {wanted[kind]:g}, '
        'but there are none'
      )
  total = sum(tokens.values())
  return {kind: wanted[kind] * total / max(tokens[kind], 1) for kind in tokens}
