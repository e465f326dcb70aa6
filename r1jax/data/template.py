"""Prompt templates, and reading a completion back into thought and answer.

`parse` is the strict reading that R1-Zero's rewards need. Other forms are read
in reasoning.py, and chat templates rendered in chat.py.
"""

from collections.abc import Sequence
import dataclasses
import re

from r1jax.errors import unknown
from r1jax.records import Message


def opens_think(prompt: str) -> bool:
  """Whether a prompt ends inside the thought: the completion goes on there,
  and the format check must know it."""
  return prompt.rstrip().endswith('<think>')


@dataclasses.dataclass(frozen=True)
class Template:
  """How a question becomes a prompt.

  Attributes:
    text: With one {question}.
    prefill: What the completion is made to begin with: the prompt ends in it.
  """

  text: str
  prefill: str = ''

  def render(self, question: str, messages: Sequence[Message] = ()) -> str:
    del messages  # One question and one answer is all this form knows.
    return self.text.replace('{question}', question) + self.prefill

  @property
  def opens_think(self) -> bool:
    return opens_think(self.render(''))


# The template of R1-Zero (DeepSeek-R1, table 1).
_INSTRUCTION = (
    'A conversation between User and Assistant. The user asks a question, and '
    'the Assistant solves it. The assistant first thinks about the reasoning '
    'process in the mind and then provides the user with the answer. The '
    'reasoning process and answer are enclosed within <think> </think> and '
    '<answer> </answer> tags, respectively, i.e., <think> reasoning process '
    'here </think> <answer> answer here </answer>.')

TEMPLATES = {
    'r1_zero': Template(_INSTRUCTION + ' User: {question} Assistant:'),
    'r1_zero_open': Template(
        _INSTRUCTION + ' User: {question} Assistant: <think>'),
    # The same without the instruction: for a character-level miniature that
    # never saw English, its 500 characters are a constant that costs time.
    'r1_zero_brief': Template('User:{question}Assistant:'),
}


def get(name: str) -> Template:
  if name not in TEMPLATES:
    raise unknown('template', name, [*TEMPLATES, 'chat'])
  return TEMPLATES[name]


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A completion read back; None where its part is missing."""

  thought: str | None
  answer: str | None
  well_formed: bool


_FORM = re.compile(
    r'\s*<think>(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*',
    re.DOTALL)
_TAGS = ('<think>', '</think>', '<answer>', '</answer>')


def parse(completion: str, opens_think: bool = False) -> Parsed:
  """Splits a completion into its thought and its answer.

  Well formed means each tag exactly once, in order, nothing outside them, and
  neither part blank. The answer is read leniently, from the LAST complete
  answer tag, so that accuracy and format are separate signals.
  """
  text = '<think>' + completion if opens_think else completion
  # Tags are counted first: the pattern is quadratic in repeated ones.
  once = all(text.count(tag) == 1 for tag in _TAGS)
  match = _FORM.fullmatch(text) if once else None
  well_formed = bool(
      match and match['thought'].strip() and match['answer'].strip())
  return Parsed(_between(text, '<think>', '</think>'),
                _between(text, '<answer>', '</answer>'), well_formed)


def _between(text: str, opening: str, closing: str) -> str | None:
  """The last span between the tags: linear in len(text), no backtracking."""
  end = text.rfind(closing)
  start = text.rfind(opening, 0, max(end, 0))
  if end < 0 or start < 0:
    return None
  return text[start + len(opening):end].strip()
