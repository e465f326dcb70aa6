"""Finds the answer in a text: its box, its statement, or its last formula.

Every function takes linear time, whatever the text. What they return is only
text; math_worker.py reads it, the whole of it or not at all.
"""

from collections.abc import Iterator
import re

MAX_CHARS = (
  300  # A longer answer is refused; gold answers of MATH have up to 159.
)
MAX_GOLD_CHARS = 4_000  # Gold answers of textbooks are whole sentences.


def extract_answer(text: str) -> str:
  """Returns the content of the last complete \\boxed{}, or else the whole text.

  Boxes that only 'and', 'or' or a comma separates are one answer together:
  '\\boxed{1} and \\boxed{2}' → '1 \\text{ and } 2'. The time is linear in
  len(text), however boxes are nested or left open.

  Args:
    text: A completion, or the text between its answer tags.
  """
  boxes = _boxes(text)
  if boxes:
    return _final(text, boxes) or _joined(text, boxes)
  return text.strip()


def _final(text: str, boxes: list[tuple[int, int, str]]) -> str:
  """Returns what is called the final answer behind all boxes; '' if nothing is."""
  behind = text[boxes[-1][1] :][-_TEXT_CHARS:]
  if not _FINAL.search(behind):
    return ''
  return next((part for part in statements(behind) if _DIGIT.search(part)), '')


def _joined(text: str, boxes: list[tuple[int, int, str]]) -> str:
  """Returns the contents of the last boxes that belong together."""
  contents = [boxes[-1][2]]
  for (_, end, content), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1]):
    if start - end > _MAX_GAP or not _JOINT.fullmatch(text[end:start]):
      break
    contents.append(content)
  return ' \\text{ and } '.join(contents[::-1]).strip()


def candidates(text: str, is_gold: bool = False) -> list[str] | None:
  """Returns texts of which the first that can be read is the answer.

  The content of a box is the answer, or the only formula in the prose within
  it. Of a text without a box, it is the text itself, what follows the last
  'answer is', or else the last formula or number in the prose. Only prose may
  stand around an answer: a formula is read whole.

  Args:
    text: A completion, an answer or a gold answer.
    is_gold: Whether it is a gold answer, of which no formula of several is
      chosen.

  Returns:
    Texts of at most MAX_CHARS characters, or MAX_GOLD_CHARS; None if the answer
    is longer.
  """
  boxes = _boxes(text)
  if boxes and (final := _final(text, boxes)):
    named = candidates(final, is_gold) or []
    joined = _joined(text, boxes)
    return named + [joined] * (len(joined) <= MAX_CHARS)
  answer = _joined(text, boxes) if boxes else text.strip()
  limit = MAX_GOLD_CHARS if is_gold else MAX_CHARS
  if len(answer) > limit and (boxes or not re.search(r'\s', answer)):
    return None
  answer = answer if boxes else answer[-_TEXT_CHARS:]
  found = [answer, *_unwrapped(answer)]
  prose = is_prose(answer)
  if prose and (boxes or is_gold):
    formulas = [] if _LIMITING.search(answer) else list(_formulas(answer))
    found += formulas if len(formulas) == 1 else ()
    found += statements(answer) if is_gold else ()
  elif prose:
    found += _in_prose(answer)
  unique = dict.fromkeys(part.strip() for part in found)
  return [part for part in unique if 0 < len(part) <= limit]


def _in_prose(answer: str) -> list[str]:
  """Returns what may be the answer in a text of sentences and formulas."""
  found = []
  for statement in statements(answer):
    found += [statement, *_unwrapped(statement)]
    if is_prose(statement):
      found += _last_formulas(statement)
  return found + _last_formulas(answer[-_TAIL_CHARS:])


def _last_formulas(text: str) -> list[str]:
  """Returns the last formula between dollars or brackets, and the last number.

  The one that comes later is first.
  """
  numbers = list(_formulas(text))[-1:]
  found = _LONE_NUMBER.findall(text)[-1:]
  segments = list(_SEGMENT.finditer(text))
  if not segments:
    return numbers + found
  content = next(filter(None, segments[-1].groups()), '')
  if _LONE_NUMBER.search(text, segments[-1].end()):
    return [*numbers, *found, content]
  return [content, *numbers, *found] if is_prose(content) else [content]


def is_prose(text: str) -> bool:
  """Whether words stand outside of the formulas of a text."""
  plain = _SEGMENT.sub(' ', _COMMAND_TEXT.sub(' ', text))
  return any(
    not word.isascii()
    or word.lower() in _SHORT_WORDS
    or (len(word) > 2 and re.search('[aeiouyAEIOUY]', word))
    for word in _WORD.findall(plain)
    if word.lower() not in ('and', 'or')
  )


_TEXT_CHARS = 10_000  # The end of a longer text is searched.
_TAIL_CHARS = 2_000
_MAX_GAP, _MAX_BOXES = 60, 30
_BRACE = re.compile(
  r'(?P<open>(?P<box>\\{1,2}(?:boxed|fbox)\s*)?\{)|\\.|(?P<close>\})', re.DOTALL
)
# Text that may stand between boxes of one answer: separators, 'and', a noun.
_JOINT = re.compile(
  r'[\s$.]*(?:\\[()\[\]\\,;!]|\\q?quad|[,;]|\s|\$|\w{1,8}\s?=)*'
  r'(?:(?:\\text\{)?\s*(?:for part \(?\w\)? |[a-z]{3,12} )?(?:and|or)'
  r'(?: also)?\s*\}?)?'
  r'(?:\\[()\[\]\\,;!]|\\q?quad|[,;\s$]|[a-zA-Z](?:_\{?\w\}?)?\s*=)*'
)
_LONE_NUMBER = re.compile(
  r'(?<![A-Za-z0-9.])-?\d[\d,]*+(?:\.\d++)?(?:/\d++)?(?![A-Za-z0-9]*\d)'
)
# Words in \\text are units; those of commands and environments are no words.
_COMMAND_TEXT = re.compile(
  r'\\(?:text\w*|mbox|math\w+|operatorname|begin|end|overline)\s*\{[^{}]*\}'
  r'|\\[a-zA-Z]+'
)
_WORD = re.compile(r'[^\W\d_]{2,}')
_SHORT_WORDS = frozenset('is it to of so we by be as in on at he my'.split())
_STATEMENT = re.compile(
  r'(?:answer|r[ée]ponse|answers|result|solution)\s*(?:is|are|est|:|=|to be|was)'
  r'(?: therefore| thus| also| indeed)?\s*:?|答案\s*(?:是|为|：|:)?|####'
  r'|(?:^|\n)[ \t*]{0,8}A[ \t*]{0,8}[:：]|final answer\s*:',
  re.IGNORECASE,
)
_FINAL = re.compile(r'final answer(?: is)?\s*:?\s', re.IGNORECASE)
_DIGIT = re.compile(r'\d')
_SENTENCE_END = re.compile(r'[.!?]["”]?\s+(?=[A-Z\[<])|[。！？\n]|<\|')
_SEGMENT = re.compile(
  r'\$\$(.{1,300}?)\$\$|\$([^$\n]{1,300})\$|\\\(([^\n]{1,300}?)\\\)'
  r'|\\\[(.{1,300}?)\\\]',
  re.DOTALL,
)
_FORMULA = re.compile(
  r'(?:\\[a-zA-Z]+|\\[{}%!,;$]|[\d.,+\-*/^=(){}\[\]<>%!|_ √π°²³½]|(?<=\d):(?=\d)'
  r'|(?<![^\W\d_])(?<![\x27\u2019])[b-zB-HJ-Z](?![^\W\d_]))+'
)
_FILLER = re.compile(
  r'^(?:\\text\{)?\s*(?:#{1,6}|(?:the )?(?:final )?answer(?: is)?|approximately|about'
  r'|around|exactly|roughly|approx\.?|almost|nearly|equals?|is|only|a total of'
  r'|therefore|thus|so|\\approx|=|≈|~)\s*[:,]?\s*\}?\s*[:,]?\s*',
  re.IGNORECASE,
)
# Words in \\text before a formula, such as 'There are', unless they bound it.
_TEXT_BEFORE = re.compile(r'\\text\{[^{}\d]{3,}\}\s*(?=[^\s=<>,])')
_LIMITING = re.compile(
  r'\b(?:not|no|less|more|greater|fewer|than|least|most|between|except|under|over'
  r"|minus|negative|and|or|if|for|undefined|mod)\b|n't"
)
_REMARK = re.compile(r'\((?:[^\W\d_]|[\s,.\'-]){3,}\)\s*\.?$')


def _boxes(text: str) -> list[tuple[int, int, str]]:
  """Returns start, end and content of the last boxes that are in no other box.

  The innermost last one of nested boxes stands for the outer one.
  """
  if 'boxed' not in text and 'fbox' not in text:
    return []
  opened: list[tuple[int, int]] = []
  found: list[tuple[int, int, int, int]] = []
  # Boxes end in a brace, so that what is left open costs nothing.
  for mark in _BRACE.finditer(text, 0, text.rfind('}') + 1):
    if mark['open']:
      opened.append((mark.start(), mark.end() if mark['box'] else -1))
    elif mark['close'] and opened:
      outer, content = opened.pop()
      if content < 0:
        continue
      inside = None
      while found and found[-1][0] > outer:
        inside = inside or found[-1]
        found.pop()
      found.append(
        (outer, mark.end(), content, mark.start())
        if inside is None
        else (outer, mark.end(), inside[2], inside[3])
      )
  return [
    (start, end, text[a:b].strip()) for start, end, a, b in found[-_MAX_BOXES:]
  ]


def _unwrapped(text: str) -> list[str]:
  """Returns a text without words before it and remarks behind it."""
  shorter = _REMARK.sub('', text).rstrip()
  while filler := _FILLER.match(shorter) or _TEXT_BEFORE.match(shorter):
    if not filler.end() or _LIMITING.search(filler[0]):
      break
    shorter = shorter[filler.end() :]
  return [shorter] if shorter != text and shorter else []


def statements(text: str) -> list[str]:
  """Returns what follows the last 'answer is', up to the end of its sentence.

  The list is empty if the text does not say what the answer is.
  """
  marks = list(_STATEMENT.finditer(text))
  if not marks:
    return []
  rest = text[marks[-1].end() :].strip(' *:')[: 2 * MAX_CHARS]
  end = _SENTENCE_END.search(rest)
  sentence = (rest[: end.start()] if end else rest).replace('\\"', '"')
  sentence = sentence.lstrip(' \n"“').rstrip(' .\n"”')
  return [sentence] if 0 < len(sentence) <= MAX_CHARS else []


def _formulas(text: str) -> Iterator[str]:
  """Yields the runs of a text that look like formulas with a digit."""
  for match in _FORMULA.finditer(text):
    before = text[match.start() - 1 : match.start()]
    if before.isascii() and before.isalpha() and match[0][0].isdigit():
      continue  # A part of a name, such as A4.
    formula = (
      match[0].strip(' .,:;=*+-')
      if not match[0].strip().startswith('-')
      else match[0].strip().rstrip(' .,:;=*+-')
    )
    if re.search(r'\d', formula):
      yield _balanced(formula)


def _balanced(text: str) -> str:
  """Removes a bracket at either end that has no other."""
  for opening, closing in ('()', '[]', '{}'):
    surplus = text.count(opening) - text.count(closing)
    if surplus > 0 and text.startswith(opening):
      text = text[1:]
    elif surplus < 0 and text.endswith(closing):
      text = text[:-1]
  return text.strip(' .,:;=')
