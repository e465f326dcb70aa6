"""Scores of reward models (DeepSeek-R1, second version, section 3.1).

A model of helpfulness learns from pairs and gives a Bradley–Terry score. A model
of safety learns from single responses and gives the probability that nothing in
a response is harmful. data/scored_text.py defines which part of a response each
kind reads, in training and here.
"""

from collections.abc import Sequence
import dataclasses
from functools import partial

import jax
import numpy as np

from r1jax.data import scored_text
from r1jax.data.text import response_formats
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model.scoring import sequence_scores
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
  """How a reward model is run and how its output becomes a score.

  It is stored in the metadata of the model's weights under the key 'scoring'.

  Attributes:
    kind: One of scored_text.KINDS.
    max_tokens: Maximum number of tokens of prompt and response; a longer pair
      loses its beginning.
    batch_size: Number of responses per call on the device.
    mean, std: Mean and standard deviation of the raw scores of reference
      responses, which normalise a helpful score. A safe score is a probability
      and is not normalised.
  """

  kind: str
  max_tokens: int
  batch_size: int = 16
  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    scored_text.check_kind(self.kind)
    if self.std <= 0 or self.max_tokens < 2 or self.batch_size < 1:
      raise UserError(
        'reward model: std must be above 0, max_tokens at least '
        '2 and batch_size at least 1, got {self}'
      )


class RewardModel:
  """A reward model with its parameters."""

  def __init__(
    self,
    model: Transformer,
    params,
    tokenizer: Tokenizer,
    parser: response_formats.ResponseParser,
    scoring: ScoringConfig,
  ):
    if not model.config.scalar_head:
      raise UserError(
        'reward model: model.scalar_head is False; a reward '
        'model has a scalar head'
      )
    self._params, self._scoring, self._pad_id = (
      params,
      scoring,
      tokenizer.pad_id,
    )
    self._encoder = scored_text.ScoredTextEncoder(
      scoring.kind, scoring.max_tokens, tokenizer, parser
    )
    self._last_scalar = jax.jit(partial(sequence_scores, model))

  def score(
    self, prompts: Sequence[Prompt], texts: Sequence[str]
  ) -> np.ndarray:
    """Scores one response to each prompt.

    Returns:
      float32 [B]; NaN for a response that the tokenizer cannot encode, such as
      the text of the unused last ids of a padded vocabulary.
    """
    rows = [self._ids(prompt, text) for prompt, text in zip(prompts, texts)]
    raw = np.full(len(rows), np.nan, np.float32)
    order = [
      b
      for b in np.argsort([len(ids) for ids in rows], kind='stable')
      if rows[b]
    ]
    for start in range(0, len(order), self._scoring.batch_size):
      batch = order[start : start + self._scoring.batch_size]
      raw[batch] = self._scalars([rows[b] for b in batch])
    if self._scoring.kind == scored_text.SAFE:
      return 1 / (1 + np.exp(-raw))
    return (raw - np.float32(self._scoring.mean)) / np.float32(
      self._scoring.std
    )

  def _scalars(self, rows: list[list[int]]) -> np.ndarray:
    return np.asarray(
      self._last_scalar(
        self._params,
        *padded(
          rows, self._scoring.batch_size, self._scoring.max_tokens, self._pad_id
        ),
      )
    )[: len(rows)]

  def _ids(self, prompt: Prompt, text: str) -> list[int]:
    """Tokens of prompt and response; empty if they cannot be encoded."""
    try:
      return self._encoder.encode_truncated(
        prompt.text, self._encoder.extract(text)
      )
    except UserError:
      return []


def padded(
  rows: Sequence[Sequence[int]], batch_size: int, max_tokens: int, pad_id: int
):
  """Pads rows of tokens on the right and the batch with empty rows.

  T is a power of two or max_tokens, so that few programs serve all lengths.

  Returns:
    tokens_BT, int32, and valid_BT, bool, with B = batch_size.
  """
  width = 1 << (max(map(len, rows)) - 1).bit_length()
  shape = batch_size, min(max(width, 16), max_tokens)
  tokens_BT = np.full(shape, pad_id, np.int32)
  valid_BT = np.zeros(shape, bool)
  valid_BT[:, 0] = True  # An empty row needs a last token, too.
  for b, ids in enumerate(rows):
    tokens_BT[b, : len(ids)], valid_BT[b, : len(ids)] = ids, True
  return tokens_BT, valid_BT
