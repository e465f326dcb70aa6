"""Steps of a thought: where each of them ends among a completion's tokens.

A step ends at the first token with which its text holds the delimiter, or the
tag that closes the thought; what follows that tag, the answer, is one more
step. A sampler that stops at `stop_strings` draws exactly such a step.

With the delimiter ' ', a token for each character and for each tag:

  <think> 7 + 5 = 1 2 _ 1 2 - 3 = 9 </think> <answer> 9 </answer> <eos>
        0 1 2 3 4 5 6 7 8 9 . . . 13       14       15 16      17    18

has the steps [0, 8), [8, 15) and [15, 18), so that `ends` is [8, 15, 18]. The
stop token is of no step: what is said of the last step is said before it.
"""

from collections.abc import Callable, Sequence
import dataclasses

from r1jax.data.text import forms
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splitter:
  """Splits completions at a declared delimiter.

  Attributes:
    delimiter: Ends a step, and is part of it.
    closing: The tag that closes the thought.
    decode: Tokens to text.
    stop_ids: What ends a completion.
  """

  delimiter: str
  closing: str
  decode: Callable[[Sequence[int]], str]
  stop_ids: tuple[int, ...]

  @property
  def stop_strings(self) -> tuple[str, ...]:
    """What a sampler stops at that draws one step of a thought."""
    return self.delimiter, self.closing

  def said(self, tokens: Sequence[int]) -> Sequence[int]:
    """The completion without the stop token that ended it."""
    ended = len(tokens) and tokens[-1] in self.stop_ids
    return tokens[:-1] if ended else tokens

  def closed(self, tokens: Sequence[int]) -> bool:
    """Is the thought over?"""
    return self.closing in self.decode(tokens)

  def ends(self, tokens: Sequence[int]) -> list[int]:
    """The index after the last token of each step; none of an empty one."""
    tokens = self.said(tokens)
    found, begin = [], 0
    for end in range(1, len(tokens) + 1):
      text = self.decode(tokens[begin:end])
      if any(string in text for string in self.stop_strings):
        found.append(end)
        begin = end
        if self.closing in text:
          break
    if begin < len(tokens):
      found.append(len(tokens))
    return found

  def divides(self, tokens: Sequence[int]) -> bool:
    """Does the delimiter end any of its steps?"""
    return self.delimiter in self.decode(tokens)


def splitter(
  delimiter: str, reader: forms.Reader, tokenizer: Tokenizer
) -> Splitter:
  """Of thoughts in the reader's form.

  Raises:
    UserError: the delimiter is empty or cannot be written, or one tag both
      opens and closes the form's thoughts.
  """
  if not delimiter:
    raise UserError(
      "data: step_delimiter is empty; say what ends a step, as '\\n\\n' does"
    )
  try:
    tokenizer.encode(delimiter)
  except UserError as error:
    raise UserError(f'data: step_delimiter: {error}') from error
  form = reader.form
  if form.opening == form.closing:
    raise UserError(
      f'data: step_delimiter: in this form {form.closing!r} both '
      'opens and closes a thought, so that no step can end there'
    )
  return Splitter(delimiter, form.closing, tokenizer.decode, tokenizer.stop_ids)
