"""The beginning of a response that prompts hold already, such as '<think>\\n'.

The template may write it, data.response_prefix, and the rows of a dataset as
well. It is compared as text, so that it is there once, newlines included:

  template      data.response_prefix   prompt ends in   row              is taught
  Assistant:                           Assistant:       <think>\\na…      <think>\\na…
  …<think>\\n    <think>\\n              <think>\\n        <think>\\na…      a…
  …<think>      <think>\\n              <think>\\n        <think>a…        a…
  …<think>\\n                           <think>\\n        a…</think>…      a…</think>…
"""

import itertools
from typing import NamedTuple, Protocol

from r1jax import registry
from r1jax.errors import UserError


class Renders(Protocol):
  """Anything that makes a prompt of a question."""

  def render(self, question: str) -> str: ...


class Opening(NamedTuple):
  """The beginning of a response that prompts hold.

  Attributes:
    text: All of it, '<think>\\n'; '' if prompts end before the response.
    tag: The tag that opens the reasoning.
    end_tag: The tag that closes the reasoning.
    closed: Whether the text closes the reasoning too: '<think>\\n\\n</think>'.
  """

  text: str = ''
  tag: str = ''
  end_tag: str = ''
  closed: bool = False

  @property
  def is_open(self) -> bool:
    """Whether a completion begins inside the reasoning."""
    return bool(self.text) and not self.closed

  def rest_of(self, response: str) -> str:
    """Returns what follows the prompt in a whole response, or in its rest.

    Raises:
      ValueError: the response begins in another way than the prompt ends, or
        it has no reasoning although the prompt opens one.
    """
    if not self.text:
      return response
    body = response.lstrip()
    # If one tag opens and closes, a single one closes what the prompt opens.
    begins = body.startswith(self.tag) and (
      self.tag != self.end_tag or body.count(self.tag) > 1
    )
    if not begins:
      if self.is_open and self.end_tag not in response:
        raise ValueError(
          f'has no {self.end_tag}, so that all of it would be taught as the '
          f'reasoning that prompts open with {self.tag}; begin the response '
          f'with its reasoning, or with {self.end_tag} for none'
        )
      return response
    written, gap = self.text.rstrip(), self.text[len(self.text.rstrip()) :]
    if body.startswith(written):
      return _without_common_start(body[len(written) :], gap)
    if self.closed:
      thought, closes, answer = body[len(self.tag) :].partition(self.end_tag)
      if closes and not thought.strip():
        return _without_common_start(answer, gap)
    raise ValueError(
      f'begins with {body[: len(written) + 10]!r}, but prompts end with '
      f'{self.text!r}; they contradict each other'
    )


NONE = Opening()


def of_template(template: Renders) -> Opening:
  """Returns what a template's prompts hold of a response."""
  return of_end(prompt_end(template))


def of_end(end: str) -> Opening:
  """Returns what the text after a question holds of a response."""
  for _, tags in registry.response_format.items():
    start, tag, end_tag = (
      end.find(tags.reasoning_start),
      tags.reasoning_start,
      tags.reasoning_end,
    )
    if tag and start >= 0:
      text = end[start:]
      return Opening(text, tag, end_tag, end_tag in text[len(tag) :])
  return NONE


def prompt_end(template: Renders) -> str:
  """Returns the text that a template writes after the question."""
  return template.render(_QUESTION).rpartition(_QUESTION)[2]


_QUESTION = 'q0q1q2q3'


def join(prompt: str, prefix: str, end: str | None = None) -> str:
  """Returns a prompt that ends with data.response_prefix, which is there once.

  Args:
    prompt: The prompt as the template writes it.
    prefix: data.response_prefix.
    end: The part of the prompt after the question; None for all of it.

  Raises:
    UserError: the template closes the reasoning that the prefix opens.
  """
  opening = of_end(prompt if end is None else end)
  if not prefix or not opening.text or not prompt.endswith(opening.text):
    return prompt + prefix
  if opening.closed and prefix.lstrip().startswith(opening.tag):
    raise UserError(
      f'data.response_prefix = {prefix!r}, but the template ends prompts with '
      f'{opening.text!r}, which closes the reasoning; leave one of them out'
    )
  if prefix.lstrip().startswith(opening.text.rstrip()):
    gap = opening.text[len(opening.text.rstrip()) :]
    rest = prefix.lstrip()[len(opening.text.rstrip()) :]
    return prompt + _without_common_start(rest, gap)
  return prompt + prefix


def _without_common_start(text: str, start: str) -> str:
  """Removes from a text the characters that it begins with as `start` does.

  '\\n\\na' without '\\n' → '\\na'; 'a' without '\\n' → 'a'
  """
  pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, start))
  return text[len(list(pairs)) :]
