"""One message of a conversation; light enough for worker processes."""

from typing import NamedTuple


class Message(NamedTuple):
  """One message of a conversation.

  Attributes:
    role: 'system', 'user' or 'assistant'.
    content: Its text.
  """

  role: str
  content: str
