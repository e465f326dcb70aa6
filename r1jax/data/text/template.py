"""Prompt templates of fixed text, and the protocol of all prompt templates.

Chat templates in Jinja are in chat.py. A plugin registers a template of its own:

  registry.template('plain')(SingleTurnTemplate('Q: {question} A:'))
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol

from r1jax import registry
from r1jax.data.text import openings
from r1jax.errors import UserError
from r1jax.records import Message


class PromptTemplate(Protocol):
  """Turns a question or a conversation into the text of a prompt.

  Attributes:
    response_prefix: Text that ends every prompt, so that each response begins
      with it; '' for none.
    prompt_opens_think: Whether prompts end in <think>, so that completions
      begin inside the reasoning.
  """

  @property
  def response_prefix(self) -> str: ...

  @property
  def prompt_opens_think(self) -> bool: ...

  def render(
    self,
    question: str,
    messages: Sequence[Message] = (),
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> str:
    """Returns the prompt; conversation.render checks that nothing is left out.

    Args:
      question: The question; ignored by chat templates if there are messages.
      messages: The conversation that leads to the response.
      tools: JSON schemas of the tools that the conversation may call.
    """


def prompt_opens_think(prompt: str) -> bool:
  """Returns whether a prompt ends in <think>.

  The completion then begins inside the reasoning, without an opening tag.
  """
  return prompt.rstrip().endswith('<think>')


@dataclasses.dataclass(frozen=True)
class SingleTurnTemplate:
  """A PromptTemplate of fixed text around one question.

  Attributes:
    text: The template, with '{question}' where the question goes.
    response_prefix: See PromptTemplate.
  """

  text: str
  response_prefix: str = ''

  def __post_init__(self):
    if '{question}' not in self.text:
      raise UserError(
        f"template: {self.text[:60]!r} has no '{{question}}', where the "
        'question goes'
      )

  def render(
    self,
    question: str,
    messages: Sequence[Message] = (),
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> str:
    """Returns the prompt of a question, or of a user's message alone.

    Raises:
      UserError: there are tools, or messages that the question does not hold.
    """
    if messages and not (question.strip() and holds(question, messages)):
      if [turn.role for turn in messages] != ['user']:
        raise UserError(
          'template: the row has several turns '
          f'({", ".join(turn.role for turn in messages)}), which only a chat '
          "template can hold; set data.template to 'chat' or a .jinja file"
        )
      question = messages[0].text
    if tools:
      raise UserError(
        "template: it holds no 'tools'; set data.template to 'chat' or a .jinja "
        'file'
      )
    head, tail = self.text.split('{question}', 1)
    tail = tail.replace('{question}', question)
    return openings.join(head + question + tail, self.response_prefix, tail)

  @property
  def prompt_opens_think(self) -> bool:
    """See PromptTemplate."""
    return prompt_opens_think(self.render(''))


def holds(text: str, turns: Sequence[Message]) -> bool:
  """Whether a text has every line of a conversation, one after another."""
  position = 0
  for line in (line for turn in turns for line in turn.text.splitlines()):
    start = text.find(line.strip(), position)
    if start < 0:
      return False
    position = start + len(line.strip())
  return not any(turn.extra for turn in turns)


# The template of R1-Zero (DeepSeek-R1, table 1).
_INSTRUCTION = (
  'A conversation between User and Assistant. The user asks a question, and '
  'the Assistant solves it. The assistant first thinks about the reasoning '
  'process in the mind and then provides the user with the answer. The '
  'reasoning process and answer are enclosed within <think> </think> and '
  '<answer> </answer> tags, respectively, i.e., <think> reasoning process '
  'here </think> <answer> answer here </answer>.'
)

registry.template('r1_zero')(
  SingleTurnTemplate(_INSTRUCTION + ' User: {question} Assistant:')
)
registry.template('r1_zero_open')(
  SingleTurnTemplate(_INSTRUCTION + ' User: {question} Assistant: <think>')
)
# The same without the instruction: for a character-level miniature that never
# saw English, its 500 characters are a constant that costs time.
registry.template('r1_zero_brief')(
  SingleTurnTemplate('User:{question}Assistant:')
)
