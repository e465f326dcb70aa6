"""Graders of answers that are no mathematics, chosen by name.

  text       a name or a phrase: 'Paris' for 'paris.'
  choice     a letter of multiple choice: '(C)', 'C. Paris', 'The answer is C'
  yes_no     yes or no, true or false
  word_list  words in any order: 'red, green' for 'Green and red'

A row of a data file names its grader in the field 'grader'; a dataset names that
of its other rows. All take a whole completion: a box or what follows 'the answer
is' counts before the rest.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import json
import re
import unicodedata

from r1jax import registry
from r1jax.data.text import final_answer
from r1jax.graders import instructions
from r1jax.graders.verdict import Grade, Verdict

Pair = tuple[str | None, str]
_LETTERS = 'A-J'
_MAX_CHARS = 20_000  # The end of a longer completion is read.
_SHORT_CHARS = 40


def gold_problem(grader: str, gold: str) -> str:
  """Returns why a grader cannot read a gold answer; '' if it can."""
  if grader == 'choice' and not choices(gold):
    return 'needs a letter from A to J, such as C or (C)'
  if grader == 'ifeval':
    return instructions.gold_problem(gold)
  if grader == 'yes_no' and _yes_no(gold) is None:
    return 'needs yes or no, or true or false'
  if grader in ('text', 'word_list') and not all(map(words, _golds(gold))):
    return 'has no word'
  return ''


def batch_grader(grade: Callable[[str, str], Verdict]):
  """Returns the batch grader of a function from an answer and a gold answer."""

  def grader(pairs: Sequence[Pair], partial: bool) -> list[Grade]:
    del partial
    grades = []
    for answer, gold in pairs:
      text = (answer or '').strip()[-_MAX_CHARS:]
      verdict = grade(text, gold) if text else Verdict.UNPARSABLE
      grades.append(Grade(verdict, verdict.score))
    return grades

  return grader


def words(text: str) -> str:
  """Returns a text in lower case without accents, articles and punctuation.

  'The  Eiffel Tower.' → 'eiffel tower'
  """
  text = re.sub(r'\\(?:text\w*|mathrm|mbox)\s*\{([^{}]*)\}', r' \1 ', text)
  plain = unicodedata.normalize('NFKD', text.casefold())
  plain = ''.join(c for c in plain if not unicodedata.combining(c))
  plain = re.sub(r"(?<=\w)['’](?=\w)", '', plain)
  found = re.findall(r'[^\W_]+', plain)
  while len(found) > 1 and found[0] in ('the', 'a', 'an'):
    found = found[1:]
  return ' '.join(found)


def _golds(gold: str) -> list[str]:
  """Returns the accepted answers: those of a JSON list, or the one text."""
  if gold.strip().startswith('['):
    try:
      accepted = json.loads(gold)
    except ValueError:
      return [gold]
    if accepted and all(isinstance(text, str) for text in accepted):
      return accepted
  return [gold]


def _statements(text: str) -> list[str]:
  """Returns the parts of a completion that may be the answer, best first."""
  answer = final_answer.boxed(text)
  if answer is not None:
    return [final_answer.unboxed(answer)]
  statement = final_answer.statement(text)
  return [statement, text] if statement else [text]


def _text(answer: str, gold: str) -> Verdict:
  accepted = {words(text) for text in _golds(gold)}
  found = [words(part) for part in _statements(answer)]
  found += [
    words(part) for part in _IS.findall(answer)
  ]  # The capital is Paris.
  if not any(found):
    return Verdict.UNPARSABLE
  return Verdict.CORRECT if accepted & set(found) else Verdict.WRONG


_IS = re.compile(
  r'^[^.!?\n]{1,200}\s(?:is|was|are|were)\s+([^.!?\n]{1,200})[.!]?$'
)


def choices(text: str) -> tuple[str, ...]:
  """Returns the letters that an answer of multiple choice chooses.

  '(C)', 'C. Paris' and 'I think it is C' → ('C',); 'A, C' → ('A', 'C')
  """
  *statements, answer = _statements(text)
  short = re.sub(r'\\text\w*|\\mathrm|\\mathbf|[{}$*]', '', answer).strip()
  if len(short) <= _SHORT_CHARS and _SHORT.fullmatch(short):
    return tuple(sorted(set(re.findall(f'[{_LETTERS}a-j]', short.upper()))))
  for statement in statements:
    found = _MARKED.search(statement) or _LONE.search(statement)
    if found:
      return (found[1],)
  leading = _LEADING.match(short)
  if leading:
    return (leading[1],)
  for pattern in (_MARKED, _LONE):
    lone = [
      mark[1]
      for mark in pattern.finditer(short)
      if not _DENIED.search(short[max(0, mark.start() - 30) : mark.start()])
    ]
    if lone:
      return (lone[-1],)
  return ()


_SHORT = re.compile(
  rf'[(\[]?[{_LETTERS}a-j][)\].:]?(?:\s*(?:,|;|and|&|\s)\s*[(\[]?[{_LETTERS}a-j]'
  rf'[)\].:]?)*|[{_LETTERS}]{{2,5}}'
)
_MARKED = re.compile(rf'[(\[]([{_LETTERS}])[)\]]')
# A letter alone; A and I before a small letter are words.
_LONE = re.compile(
  rf"(?<![A-Za-z'’])([{_LETTERS}])(?![A-Za-z'’])(?!(?<=A) [a-z])(?!(?<=I) )"
)
_LEADING = re.compile(
  rf'[(\[*]*([{_LETTERS}])(?:[)\].:。]|,\s(?![{_LETTERS}]\b)|[^\x00-\x7f]'
  r'|\s+(?=[A-Z])|\s*$|\s*\n)'
)
_DENIED = re.compile(
  r"(?:\b(?:can)?not|n['’]t|\bnor|\bneither|\bnon|\brather than|\binstead of)"
  rf'(?: be| option| choice)*(?: [(\[]?[{_LETTERS}][)\]]?,?(?: or| nor| and)?)*'
  r'\s*[(\[]?$'
)


def choice_vote(answer: str) -> str:
  """Returns what an answer of multiple choice votes for: its letters.

  An answer that names no letter votes for what it states, as words.
  """
  return ', '.join(choices(answer)) or words(_statements(answer)[0])


def choice(answer: str, gold: str) -> Verdict:
  """Compares the letters that two answers choose, or the text of an option."""
  wanted, chosen = choices(gold), choices(answer)
  option = words(re.sub(rf'^\W*[{_LETTERS}]\W+', '', gold.strip()))
  if len(option) > 1 and words(_statements(answer)[0]) == option:
    return Verdict.CORRECT
  if not chosen:
    return Verdict.UNPARSABLE
  return Verdict.CORRECT if chosen == wanted else Verdict.WRONG


_YES = re.compile(r'\b(?:yes|true|correct|yeah)\b')
_NO = re.compile(r'\b(?:no|false|incorrect|not (?:true|correct))\b')


def _yes_no(text: str) -> bool | None:
  """Returns whether a completion says yes; None if it says neither or both."""
  for part in _statements(text):
    plain = words(part)
    denied = _NO.sub(lambda match: ' ' * len(match[0]), plain)
    found = [(match.start(), True) for match in _YES.finditer(denied)]
    found += [(match.start(), False) for match in _NO.finditer(plain)]
    if not found:
      continue
    kinds = {kind for _, kind in found}
    if len(kinds) == 1 or (min(found)[0] == 0 and not _BOTH.match(plain)):
      return min(found)[1]
    return None
  return None


_BOTH = re.compile(
  r'(?:yes|true) (?:and|or) (?:no|false)|(?:no|false) (?:and|or)'
)


def _truth(answer: str, gold: str) -> Verdict:
  said = _yes_no(answer)
  if said is None:
    return Verdict.UNPARSABLE
  return Verdict.CORRECT if said == _yes_no(gold) else Verdict.WRONG


def _listed(text: str) -> Counter[str]:
  """Returns the words of a list and how often each is there."""
  plain = re.sub(r'\\text\w*\s*\{([^{}]*)\}', r' \1 ', text)
  parts = re.split(r'[,;、，\n]|\s(?:and|&)\s|(?<=\s)[-*•]\s', f' {plain} ')
  return Counter(filter(None, map(words, parts)))


def _word_list(answer: str, gold: str) -> Verdict:
  accepted = _golds(gold)
  wanted = (
    Counter(map(words, accepted)) if len(accepted) > 1 else _listed(accepted[0])
  )
  found = [_listed(part) for part in _statements(answer)]
  if not any(found):
    return Verdict.UNPARSABLE
  return Verdict.CORRECT if wanted in found else Verdict.WRONG


for _name, _grade in (
  ('text', _text),
  ('yes_no', _truth),
  ('word_list', _word_list),
):
  registry.grader(_name, batch=True)(batch_grader(_grade))
# A letter needs no box, even where the format of other answers is one.
registry.grader(
  'choice', batch=True, whole_response=True, final_answer=choice_vote
)(batch_grader(choice))
