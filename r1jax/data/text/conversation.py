"""Conversations of rows: parsed, and rendered without losing a turn.

A chat template may leave out what it does not know: a role, tools, content
that is a list. A prompt without a turn of its conversation is another prompt,
so that each is rendered a second time with a mark in every turn, and refused if
one of the marks is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from typing import Any

from r1jax.data.text.template import PromptTemplate, holds
from r1jax.errors import UserError
from r1jax.records import Message

Tools = Sequence[Mapping[str, Any]]


def parse(value: Any) -> tuple[Message, ...]:
  """Returns the messages of a row, which may end in the assistant's answer.

  Raises:
    ValueError: they are no conversation; the message names what is wrong.
  """
  if not isinstance(value, (list, tuple)) or not value:
    raise ValueError(
      f"needs 'messages' of 'role' and 'content', got {value!r:.200}"
    )
  return tuple(_message(number, turn) for number, turn in enumerate(value, 1))


def _message(number: int, turn: Any) -> Message:
  if isinstance(turn, Message):
    return turn
  if not isinstance(turn, Mapping) or 'role' not in turn:
    raise ValueError(
      f"needs 'messages' of 'role' and 'content', got {turn!r:.200}"
    )
  role, content = turn['role'], turn.get('content')
  # Parquet gives every message the keys of all, with None for what it lacks.
  extra = {
    key: value
    for key, value in turn.items()
    if key not in ('role', 'content') and value is not None
  }
  where = f'message {number} ({role!r:.40})'
  if not isinstance(role, str) or not role.strip():
    raise ValueError(f"has a message {number} whose 'role' is {role!r:.40}")
  if isinstance(content, (list, tuple)):
    content = [_part(where, part) for part in content]
  elif content is None:
    if not extra.get('tool_calls'):
      raise ValueError(
        f"needs 'messages' of 'role' and 'content'; {where} has no content"
      )
  elif not isinstance(content, str):
    raise ValueError(
      f"has a 'content' in {where} that is neither text nor a list of parts: "
      f'{content!r:.100}'
    )
  return Message(role, content, extra or None)


def _part(where: str, part: Any) -> dict:
  text = part.get('text') if isinstance(part, Mapping) else part
  kind = part.get('type') if isinstance(part, Mapping) else 'text'
  if kind not in ('text', None) or not isinstance(text, str):
    raise ValueError(
      f'has a part of {where} that is no text: {part!r:.100}; models here read '
      'text alone'
    )
  return {'type': 'text', 'text': text}


def parse_tools(value: Any) -> tuple[dict, ...]:
  """Returns the JSON schemas of a row's tools: a list, or its JSON as text.

  Raises:
    ValueError: they are no list of objects.
  """
  if isinstance(value, str) and value:
    try:
      value = json.loads(value)
    except ValueError as error:
      raise ValueError(f"has 'tools' that are not JSON: {error}") from error
  if not value:
    return ()
  if not isinstance(value, (list, tuple)) or not all(
    isinstance(tool, Mapping) for tool in value
  ):
    raise ValueError(f"needs 'tools' that are JSON schemas, got {value!r:.200}")
  return tuple(_without_none(dict(tool)) for tool in value)


def _without_none(value: Any) -> Any:
  """Removes the keys that Parquet adds for the sake of other rows."""
  if isinstance(value, Mapping):
    return {k: _without_none(v) for k, v in value.items() if v is not None}
  if isinstance(value, (list, tuple)):
    return [_without_none(item) for item in value]
  return value


def check_ends_open(messages: Sequence[Message]):
  """Refuses a conversation that ends in the assistant's turn.

  Raises:
    ValueError: it does; the response would be a second turn of it.
  """
  if messages and messages[-1].role == 'assistant':
    raise ValueError(
      "needs 'messages' that end with the user's turn or a tool's, not with the "
      "assistant's, where the response belongs; leave that one out"
    )


def check_question(question: str, messages: Sequence[Message]):
  """Refuses a question beside messages that do not hold it.

  Chat templates render the messages alone, so that it would be lost.

  Raises:
    ValueError: the question is in no message, nor is it their whole text.
  """
  if not messages or not question.strip() or holds(question, messages):
    return
  if not any(question.strip() in turn.text for turn in messages):
    raise ValueError(
      f"has a 'question' that is in none of its 'messages': "
      f'{question.strip()!r:.100}; leave one of them out'
    )


def render(
  template: PromptTemplate,
  question: str,
  messages: Sequence[Message] = (),
  tools: Tools = (),
) -> str:
  """Returns the prompt of a row, in which every turn and tool appears.

  Content that is a list of texts is handed on as it is, or as one text if the
  template does not read lists.

  Raises:
    UserError: the template refuses the conversation, or leaves something out;
      the message names it.
  """
  if not messages and not tools:
    return template.render(question)
  messages = messages or (Message('user', question),)
  if messages[-1].role == 'assistant':
    raise UserError(
      "template: the messages end in the assistant's turn, where the response "
      'belongs; leave that turn out'
    )
  problem: UserError | None = None
  for variant in _variants(messages):
    try:
      prompt = _render(template, question, variant, tools)
      missing = _missing(template, question, variant, tools, prompt)
    except UserError as error:
      problem = problem or error
      continue
    if not missing:
      return prompt
    problem = problem or UserError(
      f'template: {", ".join(missing)} would not appear in the prompt; use a '
      'template that knows it, or change the row'
    )
  assert problem is not None
  raise problem


def _variants(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
  """Yields the messages as they are, then with content as plain text."""
  yield tuple(messages)
  if any(not isinstance(turn.content, str) for turn in messages):
    yield tuple(turn._replace(content=turn.text) for turn in messages)


def _render(
  template: PromptTemplate,
  question: str,
  messages: Sequence[Message],
  tools: Tools,
) -> str:
  if tools:
    return template.render(question, messages, tools)
  return template.render(question, messages)


def _missing(
  template: PromptTemplate,
  question: str,
  messages: Sequence[Message],
  tools: Tools,
  prompt: str,
) -> list[str]:
  """Returns the turns and tools that do not reach the prompt."""
  marks = _Marks(json.dumps([messages, tools], default=str))
  marked = [
    marks.message(f'message {number} ({turn.role!r})', turn)
    for number, turn in enumerate(messages, 1)
  ]
  marked_tools = [marks.tool(f'tool {i}', t) for i, t in enumerate(tools, 1)]
  try:
    text = _render(template, question, marked, marked_tools)
  except UserError:  # Marks may be what a template of fixed text refuses.
    text = prompt
  missing = [name for mark, name in marks.names.items() if mark not in text]
  # A template of fixed text takes the question instead, which may hold all.
  if missing and not tools and text == prompt and holds(prompt, messages):
    return []
  return list(dict.fromkeys(missing))


class _Marks:
  """Makes copies of turns and tools that hold a mark each.

  Attributes:
    names: The meaning of each mark.
  """

  def __init__(self, text: str):
    """Makes marks that a text does not hold."""
    self.names: dict[str, str] = {}
    self._stem = 'qx'
    while self._stem in text:
      self._stem += 'z'

  def _mark(self, name: str, before: str = '') -> str:
    mark = f'{before}{self._stem}{len(self.names)}q'
    self.names[mark] = name
    return mark

  def message(self, name: str, turn: Message) -> Message:
    """Returns a message with marks in its content and its tool calls."""
    content, extra = turn.content, dict(turn.extra or {})
    if isinstance(content, list):
      # The break is not in the prompt if it holds the list as Python writes it.
      content = [
        part | {'text': part['text'] + self._mark(name, '\n')}
        for part in content
      ]
    elif content or not extra.get('tool_calls'):
      content = f'{content}{self._mark(name)}'
    if isinstance(extra.get('tool_calls'), (list, tuple)):
      extra['tool_calls'] = [
        self.tool(f'a tool call of {name}', call)
        for call in extra['tool_calls']
      ]
    return Message(turn.role, content, extra or None)

  def tool(self, name: str, tool: Any) -> Any:
    """Returns a tool, or the call of one, with a mark in its name."""
    if not isinstance(tool, Mapping):
      return tool
    inner = tool.get('function')
    if isinstance(inner, Mapping):
      return {**tool, 'function': self.tool(name, inner)}
    if isinstance(tool.get('name'), str):
      return {**tool, 'name': tool['name'] + self._mark(name)}
    return tool
