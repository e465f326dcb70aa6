"""Splits the reasoning of a completion into steps, among its tokens.

A step ends with the first token that completes the delimiter, or the tag that
closes the reasoning; what follows that tag, the answer, is the last step.

Example with the delimiter ' ' (shown as _) and a token per character and tag:

  <think> 7 + 5 = 1 2 _ 1 2 - 3 = 9 </think> <answer> 9 </answer> <eos>
        0 1 2 3 4 5 6 7 8 9 . . . 13       14       15 16      17    18

has the steps [0, 8), [8, 15) and [15, 18), so step_ends is [8, 15, 18]. The
stop token belongs to no step, so a reward model scores the last step before it.
"""

from collections.abc import Callable, Sequence
import dataclasses

from r1jax.data.text import response_formats
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StepSplitter:
  """Splits completions into reasoning steps at a delimiter.

  Attributes:
    delimiter: Text that ends a step and is part of it.
    reasoning_end: Tag that closes the reasoning.
    decode: Function from token ids to text.
    stop_ids: Ids of the tokens that end a completion.
  """

  delimiter: str
  reasoning_end: str
  decode: Callable[[Sequence[int]], str]
  stop_ids: tuple[int, ...]

  @property
  def stop_strings(self) -> tuple[str, ...]:
    """The strings at which a sampler must stop to sample a single step."""
    return self.delimiter, self.reasoning_end

  def without_stop_token(self, tokens: Sequence[int]) -> Sequence[int]:
    """Returns the completion's tokens without a final stop token."""
    ended = len(tokens) and tokens[-1] in self.stop_ids
    return tokens[:-1] if ended else tokens

  def reasoning_ended(self, tokens: Sequence[int]) -> bool:
    """Returns whether the tokens contain the tag that closes the reasoning."""
    return self.reasoning_end in self.decode(tokens)

  def step_ends(self, tokens: Sequence[int]) -> list[int]:
    """Returns, for each step, the index after its last token.

    Args:
      tokens: Ids of a completion, with or without its stop token. An empty
        completion has no steps.
    """
    tokens = self.without_stop_token(tokens)
    ends, begin = [], 0
    for end in range(1, len(tokens) + 1):
      text = self.decode(tokens[begin:end])
      if any(string in text for string in self.stop_strings):
        ends.append(end)
        begin = end
        if self.reasoning_end in text:
          break
    if begin < len(tokens):
      ends.append(len(tokens))
    return ends

  def has_delimiter(self, tokens: Sequence[int]) -> bool:
    """Returns whether the completion contains the delimiter at all."""
    return self.delimiter in self.decode(tokens)


def make_splitter(
  delimiter: str, parser: response_formats.ResponseParser, tokenizer: Tokenizer
) -> StepSplitter:
  """Makes the splitter for completions of the parser's response format.

  Raises:
    UserError: the delimiter is empty or the tokenizer cannot encode it, or one
      tag both opens and closes the format's reasoning.
  """
  if not delimiter:
    raise UserError(
      "data: step_delimiter is empty; say what ends a step, as '\\n\\n' does"
    )
  try:
    tokenizer.encode(delimiter)
  except UserError as error:
    raise UserError(f'data: step_delimiter: {error}') from error
  tags = parser.format
  if tags.reasoning_start == tags.reasoning_end:
    raise UserError(
      f'data: step_delimiter: in this response_format {tags.reasoning_end!r} '
      'both opens and closes the reasoning, so that no step can end there'
    )
  return StepSplitter(
    delimiter, tags.reasoning_end, tokenizer.decode, tokenizer.stop_ids
  )
