"""Rewards that a model gives (DeepSeek-R1, section 3.1).

Helpfulness is pairwise, a Bradley–Terry score; it reads the final summary
alone, so that the thought stays free. Safety is point-wise, the chance that
nothing in the response is harmful; it reads all of it, the thought too.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.data import forms
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt

KINDS = ('helpful', 'safe')


@dataclasses.dataclass(frozen=True)
class Judging:
  """What a reward model is asked, and how its numbers are read.

  Attributes:
    kind: 'helpful' or 'safe'.
    max_tokens: Of prompt and response; of a longer pair the beginning is cut.
    rows: Of one call on the device.
    mean, std: Of its scores on reference responses: a helpful score is told
      in deviations from their mean. A safe one is a probability already.
  """

  kind: str
  max_tokens: int
  rows: int = 16
  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(f'reward model: kind must be one of {KINDS}, got '
                      f'{self.kind!r}')
    if self.std <= 0 or self.max_tokens < 2 or self.rows < 1:
      raise UserError('reward model: std must be above 0, max_tokens at least '
                      f'2 and rows at least 1, got {self}')


class Judge:
  """A reward model and its parameters: score(prompts, texts) → float32 [B].

  Rows are padded to powers of two of tokens, so that few programs serve all
  lengths.
  """

  def __init__(self, model: Transformer, params, tokenizer: Tokenizer,
               reader: forms.Reader, judging: Judging):
    if not model.config.scalar_head:
      raise UserError('reward model: model.scalar_head is False; a reward '
                      'model has a scalar head')
    self._params, self._tokenizer = params, tokenizer
    self._reader, self._how = reader, judging
    layout = model.layout

    @jax.jit
    def last_scalar(params, tokens_BT, valid_BT):
      tokens_BT = layout.constrain(tokens_BT, 'BT')
      out = model.apply(
          {'params': params}, tokens_BT, transformer.positions(valid_BT),
          valid_BT.astype(jnp.int32))
      scalar_BT = model.apply(
          {'params': params}, out.hidden_BTD, method='scalars')
      return transformer.last_of(scalar_BT, valid_BT)

    self._last_scalar = last_scalar

  def score(self, prompts: Sequence[Prompt],
            texts: Sequence[str]) -> np.ndarray:
    """Of one response to each prompt."""
    rows = [self._ids(prompt, text) for prompt, text in zip(prompts, texts)]
    raw = np.zeros(len(rows), np.float32)
    order = np.argsort([len(ids) for ids in rows], kind='stable')
    for start in range(0, len(rows), self._how.rows):
      some = order[start:start + self._how.rows]
      raw[some] = self._scalars([rows[b] for b in some])
    if self._how.kind == 'safe':
      return 1 / (1 + np.exp(-raw))
    return (raw - np.float32(self._how.mean)) / np.float32(self._how.std)

  def _scalars(self, rows: list[list[int]]) -> np.ndarray:
    width = 1 << (max(map(len, rows)) - 1).bit_length()
    shape = self._how.rows, min(max(width, 16), self._how.max_tokens)
    tokens_BT = np.full(shape, self._tokenizer.pad_id, np.int32)
    valid_BT = np.zeros(shape, bool)
    valid_BT[:, 0] = True  # A row of nothing else still has a last token.
    for b, ids in enumerate(rows):
      tokens_BT[b, :len(ids)], valid_BT[b, :len(ids)] = ids, True
    return np.asarray(self._last_scalar(
        self._params, tokens_BT, valid_BT))[:len(rows)]

  def _ids(self, prompt: Prompt, text: str) -> list[int]:
    if self._how.kind == 'helpful':
      text = self._reader.parse(text).answer or ''
    ids = [*self._tokenizer.prompt(prompt.text), *self._tokenizer.encode(text),
           self._tokenizer.stop_ids[0]]
    return ids[-self._how.max_tokens:]
