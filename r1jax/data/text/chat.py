"""Chat templates in Jinja, rendered as transformers does.

The Jinja environment, in jinja_environment.py, and the variables are those of
transformers' `apply_chat_template`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jinja2

from r1jax import registry
from r1jax.data import readers
from r1jax.data.text import jinja_environment, openings, template
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.data.text.tokenizer_files import DEFAULT
from r1jax.errors import UserError, unknown
from r1jax.records import Message

_TOOL_USE, _BREAK = 'tool_use', '\n'
# Names under which messages may hold their reasoning.
_REASONING = 'reasoning_content', 'thinking', 'reasoning'


class ChatTemplate:
  """A PromptTemplate that renders a tokenizer's Jinja chat template.

  Attributes:
    source: The Jinja source.
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
    template_args: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, str] | None = None,
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
      response_prefix: Text that every prompt ends with; a beginning of it that
        the template writes already is not repeated.
      template_args: More variables of the template, such as enable_thinking.
      special_tokens: Texts of other named tokens, such as 'pad_token'.

    Raises:
      UserError: the source does not compile, or its prompts lack the question
        or the system message, or it has no such variable.
    """
    self.source, self._args = source, dict(template_args or {})
    self._tokens = dict(special_tokens or {}) | dict(
      bos_token=bos_token, eos_token=eos_token
    )
    self._system, self.response_prefix = system, response_prefix
    try:
      self._jinja = jinja_environment.ENVIRONMENT.from_string(source)
      variables = jinja_environment.variables(source)
    except jinja2.TemplateError as error:
      raise UserError(
        f'template: the chat template does not compile: {error}'
      ) from error
    for name in self._args:
      if name not in variables:
        raise UserError(
          f'data.template_args: the template reads no variable {name!r}; it '
          f'reads {", ".join(sorted(variables - jinja_environment.GIVEN))}'
        )
    text = self._text([Message('user', _QUESTION)], (), True)
    for name, part in ('question', _QUESTION), ('system message', system):
      if part.strip() not in text:
        raise UserError(
          f'template: the {name} does not appear in the prompts of the chat '
          'template'
        )
    # White space before an answer stands before what begins it, too.
    self._lead = self.space_around_answers()[0] if response_prefix else ''
    self._end = text.rpartition(_QUESTION)[2] + self._lead
    self.prompt_opens_think = template.prompt_opens_think(self.render('2+2?'))

  def render(
    self,
    question: str,
    messages: Sequence[Message] = (),
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> str:
    """Returns the prompt of a question or of a conversation.

    Args:
      question: The user's message; ignored if there are messages.
      messages: The conversation that leads to the response.
      tools: JSON schemas of the tools that the conversation may call.

    Raises:
      UserError: the template refuses the conversation.
    """
    turns = list(messages) or [Message('user', question)]
    return openings.join(
      self._text(turns, tools, True) + self._lead,
      self.response_prefix,
      self._end,
    )

  def conversation(
    self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
  ) -> str:
    """Returns a whole conversation, which the assistant's message ends.

    Raises:
      UserError: the template refuses it.
    """
    return self._text(list(turns), tools, False)

  def end_of_turn(self) -> str:
    """Returns what the template writes after an assistant's message.

    It is '' if the template takes no conversation of a question and an answer.
    """
    return self._end_of_turn

  def space_around_answers(self) -> tuple[str, str]:
    """Returns the white space that it writes before and after an answer.

    The first is '' where prompts begin an answer otherwise.
    """
    question, answer = Message('user', _QUESTION), Message('assistant', _ANSWER)
    end = self.end_of_turn()
    after = end[: len(end) - len(end.lstrip())]
    try:
      prompt = self._text([question], (), True)
      whole = self._text([question, answer], (), False)
    except UserError:
      return '', after
    before = whole.removeprefix(prompt).partition(_ANSWER)[0]
    return (before if before.isspace() else ''), after

  @functools.cached_property
  def _end_of_turn(self) -> str:
    turns = [Message('user', _QUESTION), Message('assistant', _ANSWER)]
    try:
      return self._text(turns, (), False).rpartition(_ANSWER)[2]
    except UserError:
      return ''

  def bos_in_turns(self) -> bool:
    """Returns whether turns after the first begin with BOS, as in Llama 2."""
    question = Message('user', _QUESTION)
    turns = [question, Message('assistant', _ANSWER), question]
    bos = self._tokens['bos_token']
    try:
      return (
        bool(bos) and bos in self._text(turns, (), True).lstrip()[len(bos) :]
      )
    except UserError:
      return False

  def as_source(self) -> str:
    """Returns Jinja source without further settings; see jinja_source."""
    literal, source = jinja_environment.literal, self.source
    # '+' keeps the line breaks and spaces that Jinja would trim beside blocks.
    for name, value in self._args.items():
      source = (
        f'{{% if {name} is not defined %}}{{% set {name} = {literal(value)} %}}'
        f'{{% endif +%}}{source}'
      )
    if self._system:
      system = literal({'role': 'system', 'content': self._system})
      source = (
        "{% if messages[0]['role'] != 'system' %}{% set messages = "
        f'[{system}] + messages %}}{{% endif +%}}{source}'
      )
    prompt = self.render(_QUESTION)
    rest = prompt.rpartition(_QUESTION)[2].removeprefix(self._end)
    if rest:
      source = (
        source.removesuffix('\n')
        + f'{{%+ if add_generation_prompt %}}{{{{ {literal(rest)} }}}}'
        '{% endif %}'
      )
    return source

  def _text(
    self, turns: list[Message], tools: Sequence[Mapping], generates: bool
  ) -> str:
    if self._system and turns[0].role != 'system':
      turns = [Message('system', self._system), *turns]
    try:
      return self._jinja.render(
        messages=[_with_reasoning(turn.to_dict()) for turn in turns],
        tools=list(tools) or None,
        documents=None,
        add_generation_prompt=generates,
        **self._tokens | self._args,
      )
    except Exception as error:  # A template may raise any exception.
      raise UserError(
        f'template: the chat template refuses the conversation: {error}'
      ) from error


_QUESTION, _ANSWER = 'q0q1q2q3', 'a0a1a2a3'
# The text around questions as a chat template; answers follow them as they are.
_FIXED_TEXT = """\
{{{{- {begin} }}}}
{{%- for message in messages %}}
    {{%- if message['role'] == 'user' %}}
        {{{{- {head} + message['content'] + {tail} }}}}
    {{%- elif message['role'] == 'assistant' %}}
        {{{{- message['content'] + {end} }}}}
    {{%- else %}}
        {{{{- raise_exception('no role ' + message['role']) }}}}
    {{%- endif %}}
{{%- endfor %}}
"""


def _with_reasoning(message: dict) -> dict:
  """Returns a message without keys that are None, and its reasoning by name."""
  message = {key: value for key, value in message.items() if value is not None}
  reasoning = [message[name] for name in _REASONING if name in message]
  if reasoning:
    message = {'thinking': reasoning[0], **message}
    message['reasoning_content'] = reasoning[0]
  return message


def load_template(
  name: str,
  tokenizer: Tokenizer,
  system: str = '',
  response_prefix: str = '',
  template_args: Mapping[str, Any] | None = None,
  chat_template_name: str = '',
) -> PromptTemplate:
  """Returns the prompt template that config.data names.

  Args:
    name: Name of a registered template; 'chat' for the tokenizer's own chat
      template; or the path of a Jinja file.
    tokenizer: Gives the special tokens, and the chat template for 'chat'.
    system: A system message; chat templates alone take one.
    response_prefix: Text that begins every response, such as '<think>\\n'.
    template_args: Variables of a chat template.
    chat_template_name: Which of several of the tokenizer's own; see own_source.

  Raises:
    UserError: there is no such template, or it takes no system message or no
      variables.
  """
  if name == 'chat':
    source = own_source(tokenizer, chat_template_name)
  elif name.endswith('.jinja'):
    source = readers.resolve(name).read_text(encoding='utf-8')
  else:
    return _named(name, system, response_prefix, template_args)
  return ChatTemplate(
    source,
    tokenizer.token_text(tokenizer.bos_id),
    tokenizer.token_text(tokenizer.eos_id),
    system,
    response_prefix,
    template_args,
    tokenizer.special_tokens,
  )


def own_source(tokenizer: Tokenizer, name: str = '') -> str:
  """Returns the Jinja source of a tokenizer's own chat template.

  Args:
    tokenizer: The tokenizer, which may have several.
    name: The name of one; '' chooses as transformers does: 'tool_use' for
      conversations with tools, if there is one, and 'default' for others.

  Raises:
    UserError: it has no such template.
  """
  templates = tokenizer.chat_templates
  if not templates:
    raise UserError(
      f'template: the tokenizer {tokenizer.source} has no chat template; '
      'name a .jinja file in --config.data.template'
    )
  if name and name not in templates:
    raise unknown('tokenizer.chat_template_name', name, templates)
  if name or DEFAULT in templates:
    source = templates[name or DEFAULT]
    with_tools = templates.get(_TOOL_USE)
    if name or with_tools is None:
      return source
    # '+' keeps the line breaks and spaces that Jinja would trim beside blocks.
    return (
      f'{{% if tools +%}}{with_tools.removesuffix(_BREAK)}{{%+ else +%}}'
      f'{source.removesuffix(_BREAK)}{{%+ endif %}}'
    )
  raise UserError(
    f'template: the tokenizer {tokenizer.source} has the chat templates '
    f'{", ".join(templates)}, but none named {DEFAULT}; choose one in '
    '--config.tokenizer.chat_template_name'
  )


def _named(
  name: str,
  system: str,
  response_prefix: str,
  template_args: Mapping[str, Any] | None,
) -> PromptTemplate:
  """Returns a registered template; see load_template."""
  if name not in registry.template:
    raise unknown('template', name, [*registry.template, 'chat'])
  named = registry.template.get(name)
  if system:
    raise UserError(
      f'template: {name!r} takes no data.system; put it into '
      "the questions, or use template='chat'"
    )
  if template_args:
    raise UserError(
      f'template: {name!r} takes no data.template_args; those are variables of '
      'chat templates'
    )
  if isinstance(named, template.SingleTurnTemplate):
    return dataclasses.replace(named, response_prefix=response_prefix)
  if response_prefix:
    raise UserError(
      f'template: {name!r} takes no data.response_prefix; put it into the '
      'template'
    )
  if _QUESTION not in named.render(_QUESTION):
    raise UserError(f'template: {name!r} leaves the question out')
  return named


def jinja_source(
  prompt_template: PromptTemplate, tokenizer: Tokenizer
) -> str | None:
  """Returns a chat template that renders the same prompts, for transformers.

  It holds the system message, the variables and the response prefix of the
  run. A template of fixed text becomes one that repeats it for each question.

  Args:
    prompt_template: The template of a run.
    tokenizer: The tokenizer of its prompts.

  Returns:
    Jinja source; None for a template that a plugin wrote in Python.
  """
  literal = jinja_environment.literal
  if isinstance(prompt_template, template.SingleTurnTemplate):
    head, _, tail = prompt_template.render(_QUESTION).partition(_QUESTION)
    begin = ''.join(map(tokenizer.token_text, tokenizer.prefix_ids))
    return _FIXED_TEXT.format(
      begin=literal(begin),
      head=literal(head),
      tail=literal(tail),
      end=literal(tokenizer.token_text(tokenizer.stop_ids[0])),
    )
  if isinstance(prompt_template, ChatTemplate):
    return prompt_template.as_source()
  return None
