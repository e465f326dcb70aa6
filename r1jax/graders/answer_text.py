"""Turns the final answer of a text into texts that the grader tries to read.

  text → final_answer.stated → candidates → math_worker

final_answer.py finds the answer in a completion, for response formats as well.
Here prose around a value is left out, so that 'There are 7 left' is 7. Every
function takes linear time, whatever the text. What they return is only text;
math_worker.py reads it, the whole of it or not at all.
"""

import re

from r1jax.data.text import boxes, final_answer, prose

MAX_CHARS = (
  300  # A longer answer is refused; gold answers of MATH have up to 159.
)
MAX_GOLD_CHARS = 4_000  # Gold answers of textbooks are whole sentences.


def extract_answer(text: str) -> str:
  """Returns the final answer of a text; '' if it has none.

  Args:
    text: A completion, or the text between its answer tags.
  """
  return final_answer.stated(text) or ''


def candidates(text: str, is_gold: bool = False) -> list[str] | None:
  """Returns texts of which the first that can be read is the answer.

  They are the final answer of the text, the same without words before and
  behind it, and the only formula in it; of a text that final_answer.py leaves
  whole although it is long, such as a program, also the last formula.

  Args:
    text: A completion, an answer or a gold answer.
    is_gold: Whether it is a gold answer, which is a final answer as it stands
      unless it has a box.

  Returns:
    Texts of at most MAX_CHARS characters, or MAX_GOLD_CHARS; None if the answer
    is longer.
  """
  find = final_answer.boxed if is_gold else final_answer.stated
  answer = find(text)
  if answer is None and is_gold:  # A box that is left open is one of the data.
    answer = _OPEN_BOX.sub('', text.strip())
  answer = answer or ''
  is_boxed = bool(boxes.find(answer))
  answer = final_answer.unboxed(answer)
  limit = MAX_GOLD_CHARS if is_gold else MAX_CHARS
  is_prose = prose.is_prose(answer)
  if len(answer) > limit and not is_prose:
    return None
  found = [answer, *_unwrapped(answer)]
  if is_prose:
    values = prose.values(answer)
    is_short = prose.num_words(answer) <= final_answer.MAX_WORDS
    if not (is_boxed or is_gold or is_short):
      found += values[-1:]
    elif len(values) == 1 and not _LIMITING.search(answer):
      found += values
  if is_prose and is_gold:
    statement = final_answer.statement(answer)
    found += [statement] if statement else ()
  unique = dict.fromkeys(part.strip() for part in found)
  return [part for part in unique if 0 < len(part) <= limit]


_OPEN_BOX = re.compile(r'^.*\\(?:boxed|fbox)\s*\{', re.DOTALL)
_FILLER = re.compile(
  r'^(?:\\text\{)?\s*(?:#{1,6}|(?:the )?(?:final )?answer(?: is)?|approximately|about'
  r'|around|exactly|roughly|approx\.?|almost|nearly|equals?|is\b|only\b|a total of'
  r'|therefore\b|thus\b|so\b|\\approx|=|≈|~)\s*[:,]?\s*\}?\s*[:,]?\s*',
  re.IGNORECASE,
)
# Words in \\text before a formula, such as 'There are', unless they bound it.
_TEXT_BEFORE = re.compile(r'\\text\{[^{}\d]{3,}\}\s*(?=[^\s=<>,])')
_LIMITING = re.compile(
  r'\b(?:not|no|less|more|greater|fewer|than|least|most|between|except|under|over'
  r"|minus|negative|or|if|for|undefined|mod)\b|n't"
)
_REMARK = re.compile(r'\((?:[^\W\d_]|[\s,.\'-]){3,}\)\s*\.?$')


def _unwrapped(text: str) -> list[str]:
  """Returns a text without words before it and remarks behind it."""
  shorter = _REMARK.sub('', text).rstrip()
  while filler := _FILLER.match(shorter) or _TEXT_BEFORE.match(shorter):
    if not filler.end() or _LIMITING.search(filler[0]):
      break
    shorter = shorter[filler.end() :]
  return [shorter] if shorter != text and shorter else []
