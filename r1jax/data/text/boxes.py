"""Finds the boxes of a text, and which of them are one answer together.

  \\boxed{1} and \\boxed{2}             1 \\text{ and } 2
  \\boxed{7} or \\boxed{42}             7 \\text{ or } 42
  \\boxed{\\frac12} = \\boxed{0.5}       \\frac12 = 0.5
  \\boxed{7}. Wait, it is \\boxed{42}    42
  \\boxed{42}, not \\boxed{7}           42

Boxes are one answer if a sentence lists them, or if nothing but white space of
the same paragraph stands between them. Otherwise the last one replaces those
before it. The time is linear in the length of the text, however boxes are
nested or left open.
"""

from collections.abc import Sequence
import itertools
import re
from typing import NamedTuple


class Box(NamedTuple):
  """A box of a text.

  Attributes:
    start: Index in the text of the first character of the box.
    end: Index in the text of the first character behind the box.
    content: The text in the box, stripped.
  """

  start: int
  end: int
  content: str


MAX_BOXES = 30  # Boxes of one answer.
_MAX_GAP_CHARS = 200  # Between two boxes of one answer.
# A box or another brace that opens; a box of one word without braces; a brace
# that closes; an escaped character.
_BRACE = re.compile(
  r'(?P<open>(?P<box>\\{1,2}(?:boxed|fbox)\s*)?\{)'
  r'|\\{1,2}(?:boxed|fbox)\s+(?P<bare>[-+\w.,/]*\w)|\\.|(?P<close>\})',
  re.DOTALL,
)
_BARE_CHARS = 10_000  # The end of a text is searched for boxes without braces.


def find(text: str) -> list[Box]:
  """Returns the last complete boxes that are in no other box, in their order.

  The innermost last one of nested boxes stands for the outer one. A box that
  the text denies is left out: '\\boxed{42}, not \\boxed{7}' has one box.
  """
  if 'boxed' not in text and 'fbox' not in text:
    return []
  opened: list[tuple[int, int]] = []
  found: list[tuple[int, int, slice]] = []
  # No brace closes behind the last '}', so boxes left open there cost nothing.
  last = text.rfind('}') + 1
  rest = _BRACE.finditer(text, max(last, len(text) - _BARE_CHARS))
  for mark in itertools.chain(_BRACE.finditer(text, 0, last), rest):
    if mark['open']:
      opened.append((mark.start(), mark.end() if mark['box'] else -1))
    elif mark['bare']:
      found.append((mark.start(), mark.end(), slice(*mark.span('bare'))))
    elif mark['close'] and opened:
      outer, start = opened.pop()
      if start < 0:
        continue
      content = slice(start, mark.start())
      if found and found[-1][0] > outer:
        content = found[-1][2]
      while found and found[-1][0] > outer:
        found.pop()
      found.append((outer, mark.end(), content))
  return [
    Box(start, end, text[content].strip())
    for start, end, content in found[-MAX_BOXES:]
    if not _DENIED.search(text, max(0, start - _DENIED_CHARS), start)
  ]


_DENIED_CHARS = 40
_DENIED = re.compile(
  r'(?:\bnot|n[\'’]t|\bnever|\bnor|\binstead of|\brather than)'
  r'(?: be| equal(?: to)?)?[\s$\\(\[]*\Z'
)


def joined(text: str, boxes: Sequence[Box]) -> str:
  """Returns the contents of the last boxes that are one answer together.

  Args:
    text: The text of the boxes.
    boxes: The boxes that `find` returns for the text, at least one.
  """
  answer = boxes[-1].content
  first = boxes[-1]
  for box in boxes[-2::-1]:
    joint = _joint(text[box.end : first.start], box.content, first.content)
    in_sum = _OPERATOR.search(
      text, max(0, box.start - _DENIED_CHARS), box.start
    )
    if joint is None or (joint == _EQUALS and in_sum):
      break
    answer = box.content + joint + answer if joint else answer
    first = box
  return answer


_OPERATOR = re.compile(r'(?:[-+*/^×]|\\times|\\cdot)\s*\Z')
_AND, _OR, _EQUALS, _ABOUT = (
  ' \\text{ and } ',
  ' \\text{ or } ',
  ' = ',
  ' \\approx ',
)


def _joint(gap: str, left: str, right: str) -> str | None:
  """Returns what joins the contents of two boxes of one answer.

  Args:
    gap: The text between the boxes.
    left: The content of the first box.
    right: The content of the second.

  Returns:
    None if the second box replaces the first; '' if it repeats it.
  """
  if len(gap) > _MAX_GAP_CHARS:
    return None
  plain = _MARKUP.sub(' ', gap).strip()
  in_one_paragraph = not _PARAGRAPH.search(gap)
  if left == right and (not plain or _SAME.fullmatch(plain)):
    return ''
  if _SAME.fullmatch(plain):
    return _OR
  if plain == '=':
    return _EQUALS
  if _APPROXIMATELY.fullmatch(plain):
    return _OR if '=' in left + right else _ABOUT
  if _SEPARATOR.fullmatch(plain):
    return _or_and(plain) if plain or in_one_paragraph else None
  if not in_one_paragraph or _SENTENCE_END.search(plain):
    return None
  if _CONCLUSION.search(plain) or not _LISTING.search(plain):
    return None
  most = _MAX_WORDS if _CONJUNCTION.search(plain) else _MAX_WORDS_OF_COMMA
  return _or_and(plain) if len(_WORD.findall(plain)) <= most else None


def _or_and(plain: str) -> str:
  return _OR if _OR_WORD.search(plain) else _AND


_PARAGRAPH = re.compile(r'\n[ \t]*\n')
# Delimiters of formulas, spaces and other marks that say nothing.
_MARKUP = re.compile(
  r'\\[()\[\],;:!> ]|\\q?quad(?![a-zA-Z])|\\\\|[${}*&]|\n\s*[-•]\s'
  r'|\\(?:text\w*|mathrm|mbox|left|right)(?![a-zA-Z])'
)
_AND_WORDS = r'and|[Aa]nd also|AND|&|和|与|と|및|et|und|y|e|и|و'
_OR_WORDS = (
  r'or|OR|[Oo]r also|or else|[Mm]aybe|[Pp]erhaps|[Pp]ossibly|[Aa]lternatively'
  r'|otherwise|或|或者|または|또는|ou|oder|o|или|أو'
)
_CONJUNCTION = re.compile(
  rf'(?<![^\W_])(?:{_AND_WORDS}|And|{_OR_WORDS}|Or)(?![^\W_])'
)
_OR_WORD = re.compile(rf'(?<![^\W_])(?:{_OR_WORDS}|Or|either)(?![^\W_])')
_LISTING = re.compile(rf'[,;/|、،]|{_CONJUNCTION.pattern}')
# A name before its value, such as 'x =', 'y_2 =' or 'f(x) =', and the letter or
# number of a part, such as '(b)' and 'Case 2:'.
_NAME = r'[^\W\d_](?:\w{0,7}(?:_\{?\w+\}?)?(?:\(\w\))?\s*=|:)'
_PART = (
  r'(?:for |in )?(?:(?:[Pp]art|[Oo]ption|[Cc]ase|[Ss]olution|[Rr]oot|[Aa]nswer)'
  r' \(?\w{1,3}\)?|\(?(?:[a-h]|[ivx]{1,4}|\d)[.)]):?'
)
_ITEM = rf'(?:{_AND_WORDS}|And|{_OR_WORDS}|Or|{_NAME}|{_PART})'
# Nothing but what separates the items of a list.
_SEPARATOR = re.compile(
  r'[\s,;/|、،(]*|\s*[-–—|+]{3,}\s*'
  rf'|[\s.,;/|、،(]*(?:{_ITEM}[\s.,;:/|、،(]*)+'
)
_SAME = re.compile(
  r'[\s,;:(]*(?:or|and|which is|that is|i\.?e\.?|this is)?[\s,]*(?:equivalently'
  r'|i\.?e\.?|that is|which is|in other words|equal to|which equals'
  r'|the same as)[\s,:(]*'
)
_APPROXIMATELY = re.compile(
  r'[\s,;(]*(?:or|which is|that is)?[\s,]*(?:≈|\\approx|approximately|about'
  r'|roughly)[\s,:(]*'
)
_SENTENCE_END = re.compile(r'[.!?](?:\s|\Z)|[。！？]')
# Words of one who goes on to another value, or takes one back.
_CONCLUSION = re.compile(
  r'\b(?:wait|no|nope|not|actually|instead|rather|sorry|correct\w*|incorrect\w*'
  r'|wrong|mistake\w*|error|but|however|hmm+|oops|then|so|thus|hence|therefore'
  r'|which|giv(?:es|ing)|yield\w*|we|mean(?:s|ing)|impl(?:y|ies|ying)|finally'
  r'|(?:the|our|my|final) (?:answer|result)|final|total|altogether|sum'
  r'|check\w*|verif\w*|again|now|simplif\w*|becomes?|follows?|conclu\w*'
  r'|overall|revis\w*)\b|n[\'’]t\b|⇒|→|\\(?:Rightarrow|implies|to)\b',
  re.IGNORECASE,
)
_WORD = re.compile(r'[^\W\d_]+')
_MAX_WORDS, _MAX_WORDS_OF_COMMA = 12, 5
