"""Rewards that a model gives (DeepSeek-R1, section 3.1).

Helpfulness is pairwise, a Bradley–Terry score. Safety is point-wise, the
chance that nothing in the response is harmful. What of a response they read is
in data/judged.py, which training shares.
"""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from r1jax.data import scored_text
from r1jax.data.text import forms
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
  """What a reward model is asked, and how its numbers are read.

  Attributes:
    kind: Of scored_text.KINDS.
    max_tokens: Of prompt and response; of a longer pair the beginning is cut.
    batch_size: Of one call on the device.
    mean, std: Of its scores on reference responses: a helpful score is told
      in deviations from their mean. A safe one is a probability already.
  """

  kind: str
  max_tokens: int
  batch_size: int = 16
  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    scored_text.check(self.kind)
    if self.std <= 0 or self.max_tokens < 2 or self.batch_size < 1:
      raise UserError(
        'reward model: std must be above 0, max_tokens at least '
        '2 and batch_size at least 1, got {self}'
      )


class RewardModel:
  """A reward model and its parameters: score(prompts, texts) → float32 [B]."""

  def __init__(
    self,
    model: Transformer,
    params,
    tokenizer: Tokenizer,
    reader: forms.Reader,
    scoring: ScoringConfig,
  ):
    if not model.config.scalar_head:
      raise UserError(
        'reward model: model.scalar_head is False; a reward '
        'model has a scalar head'
      )
    self._params, self._how, self._pad_id = params, scoring, tokenizer.pad_id
    self._reading = scored_text.Reading(
      scoring.kind, scoring.max_tokens, tokenizer, reader
    )
    self._last_scalar = jax.jit(
      lambda *inputs: transformer.last_scalar(model, *inputs)[0]
    )

  def score(
    self, prompts: Sequence[Prompt], texts: Sequence[str]
  ) -> np.ndarray:
    """Of one response to each prompt; NaN where the tokenizer lacks a part of
    it, as of what a padded vocabulary's last ids become."""
    rows = [self._ids(prompt, text) for prompt, text in zip(prompts, texts)]
    raw = np.full(len(rows), np.nan, np.float32)
    order = [
      b
      for b in np.argsort([len(ids) for ids in rows], kind='stable')
      if rows[b]
    ]
    for start in range(0, len(order), self._how.batch_size):
      some = order[start : start + self._how.batch_size]
      raw[some] = self._scalars([rows[b] for b in some])
    if self._how.kind == scored_text.SAFE:
      return 1 / (1 + np.exp(-raw))
    return (raw - np.float32(self._how.mean)) / np.float32(self._how.std)

  def _scalars(self, rows: list[list[int]]) -> np.ndarray:
    return np.asarray(
      self._last_scalar(
        self._params,
        *padded(rows, self._how.batch_size, self._how.max_tokens, self._pad_id),
      )
    )[: len(rows)]

  def _ids(self, prompt: Prompt, text: str) -> list[int]:
    """None of them for a response that cannot be read."""
    try:
      return self._reading.ids(prompt.text, self._reading.part(text))
    except UserError:
      return []


def padded(rows: Sequence[Sequence[int]], count: int, most: int, pad_id: int):
  """tokens_BT and valid_BT of `count` rows, these first and empty ones after.

  T is a power of two or `most`, so that few programs serve all lengths.
  """
  width = 1 << (max(map(len, rows)) - 1).bit_length()
  shape = count, min(max(width, 16), most)
  tokens_BT = np.full(shape, pad_id, np.int32)
  valid_BT = np.zeros(shape, bool)
  valid_BT[:, 0] = True  # A row of nothing else still has a last token.
  for b, ids in enumerate(rows):
    tokens_BT[b, : len(ids)], valid_BT[b, : len(ids)] = ids, True
  return tokens_BT, valid_BT
