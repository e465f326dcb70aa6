"""Responses as a chat template writes them after their prompts.

Some templates write a space before the assistant's text (Mistral) or after it
(Llama 2), or trim it (Llama 3). A response is learnt as the template writes it
in the whole conversation, which is what a model was and will be given:

  template        prompt           row   conversation            learnt
  Mistral         [INST] q [/INST]  a     [INST] q [/INST] a</s>   ' a'
  Llama 2         [INST] q [/INST]  a     [INST] q [/INST] a </s>  ' a '

A template may drop the thought of a turn that is over, as DeepSeek-R1's does, or
a system message, as Mistral's does. Only the white space is taken over then: the
response is learnt after the prompt that a sampler has, with its thought.
"""

from r1jax.data.text import openings
from r1jax.data.text.chat import ChatTemplate
from r1jax.data.text.conversation import Tools
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import Message


def as_written(
  template: PromptTemplate,
  prompt: str,
  response: str,
  question: str,
  messages: tuple[Message, ...] = (),
  tools: Tools = (),
) -> str:
  """Returns the text that follows a prompt, with the template's white space.

  Args:
    template: The template of the prompt.
    prompt: The prompt.
    response: The text after it, as the row has it.
    question, messages, tools: What the prompt was made of.
  """
  if not isinstance(template, ChatTemplate):
    return response
  held = openings.of_template(template).text or template.response_prefix
  turns = list(messages) or [Message('user', question)]
  try:
    whole = template.conversation(
      [*turns, Message('assistant', held + response)], tools
    )
  except UserError:  # It takes no conversation that ends in an answer.
    return response
  before, after = template.space_around_answers()
  alone = ('' if held else before) + response + after
  end = template.end_of_turn()
  stop = end.lstrip()
  if not (whole.startswith(prompt) and stop and whole.endswith(stop)):
    return alone
  written = whole[len(prompt) : len(whole) - len(stop)]
  same = _without_space(written) == _without_space(response)
  return written if same else alone


def as_content(template: PromptTemplate, completion: str) -> str:
  """Returns a completion without the white space that the template writes."""
  if not isinstance(template, ChatTemplate):
    return completion
  before, after = template.space_around_answers()
  if not template.response_prefix:  # It stands in the prompt otherwise.
    completion = completion.removeprefix(before)
  return completion.removesuffix(after)


def _without_space(text: str) -> str:
  return ''.join(text.split())
