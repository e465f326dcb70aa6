"""Reading a completion back into reasoning and answer, whatever its form.

For those who use or show completions of any of the forms in forms.py. Rewards
read strictly, by the one form that was asked for. A completion that was cut
short before its reasoning ended has no answer.
"""

from typing import NamedTuple

SPECIAL_TOKEN = '|special_token|'  # DeepSeek-R1 section 2.3.1 writes it so.

_OPENINGS = {
  '<think>': '</think>',
  '<reasoning_process>': '</reasoning_process>',
  SPECIAL_TOKEN: SPECIAL_TOKEN,
}
_ANSWERS = ('answer', 'summary')


class Read(NamedTuple):
  """Stripped of blanks; None where a part is missing."""

  reasoning: str | None
  answer: str | None


def split(completion: str, opens_think: bool = False) -> Read:
  """Splits a completion, in time linear in its length.

  'a </think> 7' with opens_think → ('a', '7')
  '<think> a' → ('a', None), cut short
  '7' → (None, '7'), never reasoned

  Args:
    completion: Without its stop token.
    opens_think: The prompt ended in <think>.
  """
  text = completion.strip()
  if opens_think and not text.startswith('<think>'):
    text = '<think>' + text
  for opening, closing in _OPENINGS.items():
    if text.startswith(opening):
      inner = text[len(opening) :]
      break
  else:
    return Read(None, _answer(text))
  # The last one closes: a thought may speak of the tag, as here.
  reasoning, closed, rest = (
    inner.partition(closing)
    if opening == closing
    else inner.rpartition(closing)
  )
  if not closed:
    return Read(inner.strip(), None)
  return Read(reasoning.strip(), _answer(rest))


def _answer(text: str) -> str | None:
  """Within the last pair of answer tags, or all of it where there are none."""
  for tag in _ANSWERS:
    opening, closing = f'<{tag}>', f'</{tag}>'
    if opening not in text:
      continue
    before, _, _ = text.rpartition(closing)
    _, opened, inside = before.rpartition(opening)
    # Opened and never closed: cut short.
    return inside.strip() if opened else None
  return text.strip() or None
