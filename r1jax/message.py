"""One message of a conversation; light enough for worker processes."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Message(NamedTuple):
  """One message of a conversation.

  Attributes:
    role: 'system', 'user', 'assistant', 'tool', or what else a template knows.
    content: Its text; None for a message of tool calls alone; or a list of
      parts, {'type': 'text', 'text': ...} each.
    extra: Other keys of the message, as JSON, such as 'tool_calls',
      'reasoning_content' or 'name'; None without any.
  """

  role: str
  content: Any
  extra: Mapping[str, Any] | None = None

  @property
  def text(self) -> str:
    """The content as one text; '' if there is none."""
    if isinstance(self.content, str):
      return self.content
    return ''.join(part['text'] for part in self.content or ())

  def to_dict(self) -> dict[str, Any]:
    """Returns the message as chat templates and JSON files have it."""
    return {'role': self.role, 'content': self.content, **(self.extra or {})}
