"""Splits a completion into reasoning and answer, whatever its response format.

This lenient parser is for displaying and reusing completions. Rewards use the
strict one of response_formats.py, which knows the format that was asked for.
"""

from typing import NamedTuple

from r1jax import registry
from r1jax.data.text.response_formats import ResponseFormat, tagged_answer


class SplitCompletion(NamedTuple):
  """The two parts of a completion.

  Attributes:
    reasoning: Stripped text of the reasoning; None if there is none.
    answer: Stripped text of the answer; None if there is none.
  """

  reasoning: str | None
  answer: str | None


def split(completion: str, prompt_opens_think: bool = False) -> SplitCompletion:
  """Splits a completion, in time linear in its length.

  A completion that was truncated within its reasoning has no answer.

  'a </think> 7' with prompt_opens_think → ('a', '7')
  '<think> a' → ('a', None), truncated
  'So: <think> a' → ('a', None), truncated
  '7' → (None, '7'), no reasoning

  Args:
    completion: The text without its stop token.
    prompt_opens_think: Whether the prompt ended in <think>.
  """
  text = completion.strip()
  if prompt_opens_think and not text.startswith('<think>'):
    text = '<think>' + text
  for tags in _formats():
    opening, closing = tags.reasoning_start, tags.reasoning_end
    if text.startswith(opening):
      inner = text[len(opening) :]
      break
  else:
    return _split_unopened(text)
  # The last tag closes, since reasoning may mention the tag.
  reasoning, closed, rest = (
    inner.partition(closing)
    if opening == closing
    else inner.rpartition(closing)
  )
  if not closed:
    return SplitCompletion(inner.strip(), None)
  return SplitCompletion(reasoning.strip(), _answer(rest))


def _split_unopened(text: str) -> SplitCompletion:
  """Splits a completion that does not begin with reasoning."""
  for tags in _formats():
    opening, closing = tags.reasoning_start, tags.reasoning_end
    _, opened, inner = text.rpartition(opening)
    if opened and opening != closing and closing not in inner:
      return SplitCompletion(inner.strip(), None)
  return SplitCompletion(None, _answer(text))


def _formats() -> list[ResponseFormat]:
  """Returns every registered response format."""
  return [tags for _, tags in registry.response_format.items()]


def _answer(text: str) -> str | None:
  """Returns what the last pair of answer tags holds, or all if there is none."""
  for tags in _formats():
    if tags.answer_start and tags.answer_start in text:
      return tagged_answer(text, tags)  # None: the answer is truncated.
  return text.strip() or None
