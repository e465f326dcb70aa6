"""Prompt templates of fixed text, and the protocol of all prompt templates.

Chat templates in Jinja are in chat.py. A plugin registers a template of its own:

  registry.template('plain')(SingleTurnTemplate('Q: {question} A:'))
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol

from r1jax import registry
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

  def render(self, question: str, messages: Sequence[Message] = ()) -> str:
    """Returns the prompt.

    Args:
      question: The question; ignored by chat templates if there are messages.
      messages: The conversation that leads to the response.
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

  def render(self, question: str, messages: Sequence[Message] = ()) -> str:
    """Returns the prompt of a question; a conversation is ignored."""
    del messages
    return self.text.replace('{question}', question) + self.response_prefix

  @property
  def prompt_opens_think(self) -> bool:
    """See PromptTemplate."""
    return prompt_opens_think(self.render(''))


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
