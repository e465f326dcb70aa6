"""Selects the text that a reward model scores, in training and in use.

The helpfulness model reads the final answer alone, so that the reasoning is
not rewarded; the safety model reads the whole response (DeepSeek-R1, second
version, section 3.1).
"""

import dataclasses

from r1jax.data.text import response_formats
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError

HELPFUL, SAFE = KINDS = 'helpful', 'safe'


def check_kind(kind: str):
  """Raises UserError if there is no such kind of reward model."""
  if kind not in KINDS:
    raise UserError(f'reward model: kind must be one of {KINDS}, got {kind!r}')


@dataclasses.dataclass(frozen=True)
class ScoredTextEncoder:
  """Converts a prompt and a completion to a reward model's input tokens.

  Attributes:
    kind: The kind of reward model, one of KINDS.
    max_tokens: Maximum number of input tokens; longer inputs lose their
      beginning.
    tokenizer: Its first stop token ends the input.
    parser: Parses the completions.
  """

  kind: str
  max_tokens: int
  tokenizer: Tokenizer
  parser: response_formats.ResponseParser

  def __post_init__(self):
    check_kind(self.kind)

  def extract(self, completion: str) -> str:
    """Returns the part of a completion to score; '' if it is missing."""
    if self.kind == HELPFUL:
      return self.parser.parse(completion).response or ''
    return completion

  def encode(self, prompt: str, part: str) -> list[int]:
    """Returns the token ids of a prompt and an extracted part, at any length."""
    return [
      *self.tokenizer.encode_prompt(prompt),
      *self.tokenizer.encode_response(prompt, part),
      self.tokenizer.stop_ids[0],
    ]

  def encode_truncated(self, prompt: str, part: str) -> list[int]:
    """Returns the last max_tokens of `encode`, the model's input."""
    return self.encode(prompt, part)[-self.max_tokens :]
