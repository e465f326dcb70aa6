"""Prompt templates. Chat templates are rendered in chat.py; forms.py reads
completions back."""

from collections.abc import Sequence
import dataclasses

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
    response_prefix: What the completion is made to begin with: the prompt ends in it.
  """

  text: str
  response_prefix: str = ''

  def render(self, question: str, messages: Sequence[Message] = ()) -> str:
    del messages  # One question and one answer is all this form knows.
    return self.text.replace('{question}', question) + self.response_prefix

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
  'here </think> <answer> answer here </answer>.'
)

TEMPLATES = {
  'r1_zero': Template(_INSTRUCTION + ' User: {question} Assistant:'),
  'r1_zero_open': Template(
    _INSTRUCTION + ' User: {question} Assistant: <think>'
  ),
  # The same without the instruction: for a character-level miniature that
  # never saw English, its 500 characters are a constant that costs time.
  'r1_zero_brief': Template('User:{question}Assistant:'),
}


def get(name: str) -> Template:
  if name not in TEMPLATES:
    raise unknown('template', name, [*TEMPLATES, 'chat'])
  return TEMPLATES[name]
