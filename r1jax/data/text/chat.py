"""Chat templates: the Jinja that comes with a tokenizer, rendered as its users
render it.

The environment is the one that Hugging Face's templates are written for:
sandboxed, blocks trimmed, with `raise_exception` and `strftime_now`.
"""

from collections.abc import Sequence
import datetime
import json

import jinja2
from jinja2 import ext, sandbox

from r1jax.data import readers
from r1jax.data.text import template
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError
from r1jax.records import Message


class ChatTemplate:
  """How a conversation becomes a prompt that ends where the answer begins.

  Attributes:
    opens_think: The prompt ends inside the thought, by the template's doing
      or by the response_prefix's.
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
      source: Jinja, of `messages`, `bos_token`, `eos_token` and
        `add_generation_prompt`.
      bos_token: '' where the family has none.
      eos_token: Ends the turns of some families.
      system: The system message; '' for none of ours.
      response_prefix: What the completion is made to begin with.

    Raises:
      UserError: it is no template, or fails on a plain question.
    """
    self._tokens = dict(bos_token=bos_token, eos_token=eos_token)
    self._system, self.response_prefix = system, response_prefix
    try:
      self._jinja = _ENVIRONMENT.from_string(source)
    except jinja2.TemplateError as error:
      raise UserError(f'template: not a chat template: {error}') from error
    self.opens_think = template.opens_think(self.render('2+2?'))

  def render(self, question: str, messages: Sequence[Message] = ()) -> str:
    """The prompt of a question, or of the turns that lead to the answer.

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
    except Exception as error:  # Others' programs fail in their own ways.
      raise UserError(
        f'template: the chat template refuses it: {error}'
      ) from error
    return text + self.response_prefix


AnyTemplate = template.Template | ChatTemplate


def make(
  name: str, tokenizer: Tokenizer, system: str = '', response_prefix: str = ''
) -> AnyTemplate:
  """The template that a config names.

  Args:
    name: Of template.TEMPLATES; 'chat', the tokenizer's own; or a Jinja file.
    tokenizer: Has the special tokens, and perhaps a template.
    system: A system message, for chat templates.
    response_prefix: What completions are made to begin with, such as '<think>\\n'.

  Raises:
    UserError: there is none of that name, or it takes no system message.
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
    named = template.get(name)
    if system:
      raise UserError(
        f'template: {name!r} takes no data.system; put it into '
        "the questions, or use template='chat'"
      )
    return template.Template(named.text, response_prefix)
  return ChatTemplate(
    source,
    tokenizer.text_of(tokenizer.bos_id),
    tokenizer.text_of(tokenizer.stop_ids[0]),
    system,
    response_prefix,
  )


def _raise(message: str):
  raise jinja2.TemplateError(message)


def _today(form: str) -> str:
  """A fixed day, the one that Llama's template falls back to: a run that is
  resumed on another day reads the same prompts."""
  return datetime.date(2024, 7, 26).strftime(form)


def _json(value, indent: int | None = None) -> str:
  """Not Jinja's own filter, which writes < and > as HTML would."""
  return json.dumps(value, ensure_ascii=False, indent=indent)


_ENVIRONMENT = sandbox.ImmutableSandboxedEnvironment(
  trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
)
_ENVIRONMENT.globals.update(raise_exception=_raise, strftime_now=_today)
_ENVIRONMENT.filters['tojson'] = _json
