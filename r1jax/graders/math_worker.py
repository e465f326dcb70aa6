"""Grades mathematical answers, inside a worker process.

  texts → normalize → compare → parse → equal.same

The texts of an answer are tried in order, and the first that is read whole is
the answer. It may have a second reading where notations differ: 1,22 is a list
of two numbers, and 1.22 where the comma is a decimal point.
"""

from collections.abc import Callable
import functools
import re

from r1jax.data.text.prose import is_prose
from r1jax.graders.mathematics import arithmetic, equal
from r1jax.graders.mathematics.nodes import (
  Node,
  NotRead,
  Number,
  Quantity,
  Relation,
  Sequence,
  TooLarge,
  Words,
  contains,
)
from r1jax.graders.mathematics.parser import parse
from r1jax.graders.mathematics.text import compact, normalize
from r1jax.graders.verdict import Verdict


def prepare() -> Callable[[dict], str]:
  """Warms up the caches of mpmath and returns the job function."""
  for text, other in zip(_WARM_UP, _WARM_UP[1:] + _WARM_UP[:1]):
    for answer in (text, other, f'{text} .', '\\frac{2}{3}', '7'):
      handle({'answers': [answer], 'golds': [text]})
  return handle


_WARM_UP = (
  '72',
  '\\frac{1}{2}',
  '3\\sqrt{2}',
  '(1,-2)',
  'x^2+2x+1',
  '(-\\infty,2)\\cup(3,4]',
  'y = 2x - 7',
  '5!',
  '2+3i',
  '\\begin{pmatrix} 1 & -2 \\\\ 3 & 4 \\end{pmatrix}',
  '\\text{Monday}',
  '10\\text{ cm}',
  '\\sin(x)+\\cos^2 y',
  '\\log_2 8',
  'e^{0.05t}',
)


def handle(job: dict) -> Verdict:
  """Grades an answer.

  Args:
    job: 'golds' and 'answers' are texts of which the first that can be read
      counts. Without 'answers', the verdict is CORRECT if the gold answer can
      be read and evaluated.
  """
  try:
    gold = read(tuple(job['golds']))
    arithmetic.begin_pair(gold[0].size if gold else 0)
    if not job.get('answers', True):
      return Verdict.UNPARSABLE
    if 'answers' not in job:
      if not gold:
        return Verdict.UNPARSABLE
      equal.evaluate(gold[0])
      return Verdict.CORRECT
    if job['golds'] and _same_text(job['answers'][0], job['golds'][0]):
      return Verdict.CORRECT
    answer = read(tuple(job['answers']))
    if not answer:
      return Verdict.UNPARSABLE
    is_right = _same(answer, gold) or _is_restated(job['answers'][0], gold)
    return Verdict.CORRECT if is_right else Verdict.WRONG
  except (TooLarge, RecursionError, OverflowError, MemoryError):
    return Verdict.REFUSED


def _same_text(answer: str, gold: str) -> bool:
  """Whether two texts are the same but for notation that has no meaning."""
  text = compact(normalize(answer))
  return bool(text) and text == compact(normalize(gold))


@functools.lru_cache(1024)  # Samples of a prompt share its gold answer.
def read(texts: tuple[str, ...]) -> tuple[Node, ...]:
  """Returns the readings of the first text that can be read; none if none can."""
  for text in texts:
    normal = normalize(text)
    try:
      return (_parsed(normal), *_other_readings(normal))
    except NotRead:
      continue
  for text in texts[:1]:
    if is_prose(text) or _HAS_TEXT.search(text):
      return (Words(' '.join(normalize(text).lower().split())),)
  return ()


def _parsed(normal: str) -> Node:
  clock = _CLOCK.fullmatch(normal)
  if clock:
    plain = re.sub(r'\\text|[^\w:]', '', normal.lower())
    return Words(plain)
  return parse(normal)


_CLOCK = re.compile(
  r'(?:\\text\{)?\s*\d{1,2}:\d\d\s*(?:\\text\{)?\s*[ap]\.?\s?m\.?\s*\}?', re.I
)
_HAS_TEXT = re.compile(r'\\(?:text|mathrm|mbox|begin\{align)')
_DECIMAL_COMMA = re.compile(r'-?(?:\d+,(?!\d{3}$)\d+|0,\d+)')
_GROUPS = re.compile(r'\d{1,3}(,\d{3})+')
_SINGLE_UNIT = re.compile(
  r'(.*\d)\s*(?:[mgshLlNJVWKAC]|[ck]?m|kg|ft)(?:\^\{?[23]\}?)?'
  r'(?:\s*/\s*[a-z]{1,4}(?:\^\{?[23]\}?)?)?'
)


def _other_readings(normal: str) -> list[Node]:
  """Returns readings that count against an answer of their own kind alone."""
  found = []
  for pattern, rewritten in (
    (_DECIMAL_COMMA, normal.replace(',', '.')),
    (_GROUPS, normal.replace(',', ', ')),
  ):
    if pattern.fullmatch(normal):
      found.append(parse(rewritten))
  unit = _SINGLE_UNIT.fullmatch(normal)
  if unit:
    try:
      found.append(Quantity(parse(unit[1]), normal[unit.end(1) :].strip()))
    except NotRead:
      pass
  return found


def _same(answer: tuple[Node, ...], gold: tuple[Node, ...]) -> bool:
  if not gold:
    return False
  if equal.same(answer[0], gold[0]):
    return True
  for nodes, other in ((answer, gold[0]), (gold, answer[0])):
    for node in nodes[1:]:
      if _is_kind_of(node, other) and equal.same(node, other):
        return True
  return False


def _is_restated(text: str, gold: tuple[Node, ...]) -> bool:
  """Whether 'or' joins different notations of the gold answer.

  '15\\frac{39}{40} or \\frac{639}{40}' is one number, and '3 or 3' two.
  """
  parts = _OR.split(normalize(text))
  if len(parts) < 2 or len({*map(compact, parts)}) < len(parts):
    return False
  return all((part := read((text,))) and _same(part, gold) for text in parts)


_OR = re.compile(r'\\text\{\s*or\s*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])')


def _is_kind_of(reading: Node, other: Node) -> bool:
  """Whether another reading may be meant, as the other answer is of its kind."""
  if isinstance(reading, Sequence):
    return isinstance(other, Sequence)
  if isinstance(reading, Number):
    return isinstance(other, Number) and bool(other.digits)
  return not contains(other, (Sequence, Relation))
