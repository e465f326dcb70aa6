"""What a reward model reads of a response, in training and in judgement.

Helpfulness reads the final summary alone, so that the thought stays free;
safety reads all of it (DeepSeek-R1, section 3.1 of the second version).
"""

import dataclasses

from r1jax.data.text import forms
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError

HELPFUL, SAFE = KINDS = 'helpful', 'safe'


def check(kind: str):
  """Raises UserError for a kind that there is not."""
  if kind not in KINDS:
    raise UserError(f'reward model: kind must be one of {KINDS}, got {kind!r}')


@dataclasses.dataclass(frozen=True)
class Reading:
  """From a prompt and a completion to tokens.

  Attributes:
    kind: Of KINDS.
    max_tokens: Of prompt and response; what is longer loses its beginning.
    tokenizer: Its first stop token ends a response.
    reader: Of the completions' form.
  """

  kind: str
  max_tokens: int
  tokenizer: Tokenizer
  reader: forms.Reader

  def __post_init__(self):
    check(self.kind)

  def part(self, completion: str) -> str:
    """What of a completion is read; '' where that is missing."""
    if self.kind == HELPFUL:
      return self.reader.parse(completion).answer or ''
    return completion

  def whole(self, prompt: str, part: str) -> list[int]:
    """Tokens of a prompt and of what is read, however many."""
    return [
      *self.tokenizer.prompt(prompt),
      *self.tokenizer.encode(part),
      self.tokenizer.stop_ids[0],
    ]

  def ids(self, prompt: str, part: str) -> list[int]:
    """The last max_tokens of them: what the model sees."""
    return self.whole(prompt, part)[-self.max_tokens :]
