"""Chat templates in Jinja, rendered in the environment of Hugging Face.

The Jinja environment is the one that transformers' `apply_chat_template` uses:
sandboxed, with trimmed blocks and the functions `raise_exception` and
`strftime_now`.
"""

from collections.abc import Sequence
import dataclasses
import datetime
import json

import jinja2
from jinja2 import ext, sandbox

from r1jax import registry
from r1jax.data import readers
from r1jax.data.text import template
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError, unknown
from r1jax.records import Message


class ChatTemplate:
  """A PromptTemplate that renders a tokenizer's Jinja chat template.

  Attributes:
    response_prefix: See PromptTemplate.
    prompt_opens_think: See PromptTemplate; the <think> may come from the Jinja
      source or from response_prefix.
  """

  def __init__(
    self,
    source: str,
    bos_token: str = '',
    eos_token: str = '',
    system: str = '',
    response_prefix: str = '',
  ):
    """Compiles a template.

    Args:
      source: Jinja source that reads `messages`, `bos_token`, `eos_token` and
        `add_generation_prompt`.
      bos_token: Text of the beginning-of-sequence token; '' for tokenizers
        without one.
      eos_token: Text of the end-of-sequence token.
      system: System message to put before conversations that have none; ''
        adds none.
      response_prefix: Text to append to every prompt.

    Raises:
      UserError: the source does not compile, or does not render a plain
        question.
    """
    self._tokens = dict(bos_token=bos_token, eos_token=eos_token)
    self._system, self.response_prefix = system, response_prefix
    try:
      self._jinja = _ENVIRONMENT.from_string(source)
    except jinja2.TemplateError as error:
      raise UserError(
        f'template: the chat template does not compile: {error}'
      ) from error
    self.prompt_opens_think = template.prompt_opens_think(self.render('2+2?'))

  def render(self, question: str, messages: Sequence[Message] = ()) -> str:
    """Returns the prompt of a question or of a conversation.

    Args:
      question: The user's message; ignored if there are messages.
      messages: The conversation that leads to the response.

    Raises:
      UserError: the template refuses the conversation.
    """
    turns = list(messages) or [Message('user', question)]
    if self._system and turns[0].role != 'system':
      turns.insert(0, Message('system', self._system))
    try:
      text = self._jinja.render(
        messages=[turn._asdict() for turn in turns],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        **self._tokens,
      )
    except Exception as error:  # A template may raise any exception.
      raise UserError(
        f'template: the chat template refuses the conversation: {error}'
      ) from error
    return text + self.response_prefix


def load_template(
  name: str, tokenizer: Tokenizer, system: str = '', response_prefix: str = ''
) -> PromptTemplate:
  """Returns the prompt template that config.data names.

  Args:
    name: Name of a registered template; 'chat' for the tokenizer's own chat
      template; or the path of a Jinja file.
    tokenizer: Gives the special tokens, and the chat template for 'chat'.
    system: A system message; chat templates alone take one.
    response_prefix: Text that begins every response, such as '<think>\\n'.

  Raises:
    UserError: there is no such template, or it takes no system message.
  """
  if name == 'chat':
    source = tokenizer.chat_template
    if not source:
      raise UserError(
        f'template: the tokenizer {tokenizer.source} has no chat template; '
        'name a .jinja file in --config.data.template'
      )
  elif name.endswith('.jinja'):
    source = readers.resolve(name).read_text()
  else:
    if name not in registry.template:
      raise unknown('template', name, [*registry.template, 'chat'])
    named = registry.template.get(name)
    if system:
      raise UserError(
        f'template: {name!r} takes no data.system; put it into '
        "the questions, or use template='chat'"
      )
    if not isinstance(named, template.SingleTurnTemplate):
      if response_prefix:
        raise UserError(
          f'template: {name!r} takes no data.response_prefix; put it into the '
          'template'
        )
      return named
    return dataclasses.replace(named, response_prefix=response_prefix)
  return ChatTemplate(
    source,
    tokenizer.token_text(tokenizer.bos_id),
    tokenizer.token_text(tokenizer.stop_ids[0]),
    system,
    response_prefix,
  )


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _strftime_now(date_format: str) -> str:
  """Formats a fixed date, the default of Llama 3's template.

  With today's date, a run that is resumed tomorrow would read other prompts.
  """
  return datetime.date(2024, 7, 26).strftime(date_format)


def _to_json(value, indent: int | None = None) -> str:
  """Writes JSON without the HTML escapes of Jinja's own filter."""
  return json.dumps(value, ensure_ascii=False, indent=indent)


_ENVIRONMENT = sandbox.ImmutableSandboxedEnvironment(
  trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
)
_ENVIRONMENT.globals.update(
  raise_exception=_raise_exception, strftime_now=_strftime_now
)
_ENVIRONMENT.filters['tojson'] = _to_json
