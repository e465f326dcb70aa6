"""Grades mathematical answers by math-verify, inside a worker process.

The guard and the time limits are in math_grader.py. Answers are equal when
math-verify finds them equal, with two exceptions, which it accepts and this
module does not. With gold 3:

  [3,3]   3,3      a list or an interval is no number  (\\{3\\} is one)
  5=3     x=5=3    a false equation that ends in it

These are correct on purpose: x=3 and y=3 (a name for it), 3=3 and 2+1=3 (true
equations that end in it), 300\\% (the same number), 3 cm (a unit). 50\\% equals
both 0.5 and 50, since questions ask for either; π equals 3.141593, to six
decimals.
"""

from collections.abc import Callable
import functools
import logging
import re

import math_verify
import sympy

from r1jax.graders.verdict import Verdict


def prepare() -> Callable[[dict], str]:
  """Warms up the caches of parser and engine and returns the job function."""
  # math-verify warns that its time-outs are off; the parent limits the time.
  logging.disable(logging.WARNING)
  for text, other in zip(_WARM_UP, _WARM_UP[1:] + _WARM_UP[:1]):
    for answer in (text, other, f'{text} .', '\\frac{2}{3}', '7'):
      handle({'answer': answer, 'gold': text})
  return handle


_WARM_UP = (
  '72',
  '-3.5',
  '\\frac{1}{2}',
  '3\\sqrt{2}',
  '\\frac{\\pi}{4}',
  '(1,-2)',
  'x^2+2x+1',
  '\\left( \\frac{3}{2}, \\sqrt{5} \\right)',
  '[0,\\infty)',
  '1,2,3',
  '(-\\infty,2)\\cup(3,4]',
  'y = 2x - 7',
  '60^\\circ',
  '50\\%',
  '5!',
  '2+3i',
  '\\begin{pmatrix} 1 & -2 \\\\ 3 & 4 \\end{pmatrix}',
  '\\text{Monday}',
  '10\\text{ cm}',
  '\\sin(x)+\\cos^2 y',
  '\\$1,250',
  '2^{10}',
  '\\log_2 8',
  '\\frac{x+1}{x-2}',
  '2 \\sqrt{3}+\\sqrt{5}',
  '(x-1)(x+2)',
  '\\frac{a}{b}',
)


def handle(job: dict) -> Verdict:
  """Grades job['answer'] against job['gold'], both stripped of white space.

  If the answer is None, the verdict is CORRECT if the gold answer can be parsed.
  """
  gold = parse(job['gold'])
  if job['answer'] is None:
    return Verdict.CORRECT if _is_parsed(gold) else Verdict.UNPARSABLE
  answer = parse(job['answer'])
  if math_verify.verify(gold, answer, timeout_seconds=None):
    surprising = (
      _is_parsed(gold)
      and _is_parsed(answer)
      and (_is_list(answer[0], job['answer'], gold[0]) or _is_false(answer[0]))
    )
    return Verdict.WRONG if surprising else Verdict.CORRECT
  return Verdict.WRONG if _is_parsed(answer) else Verdict.UNPARSABLE


@functools.lru_cache(1024)  # Samples of a prompt share its gold answer.
def parse(text: str) -> list:
  """Parses an answer to math-verify's list of expressions and the text itself."""
  text = normalize(text)
  parsed = []
  if not _FUNCTION.search(text):
    parsed = math_verify.parse(f'${text}$', parsing_timeout=None)
  if not _is_parsed(parsed):
    # The t of \\sin^2 t and the c of a + b + c are not units; braces say so.
    named = _LAST_LETTER.sub(r'{\1}', text)
    parsed = math_verify.parse(f'${named}$', parsing_timeout=None) or parsed
  return parsed


_FUNCTION = re.compile(r'\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp)')
_LAST_LETTER = re.compile(r'(?<![a-zA-Z\\])\s*([a-zA-Z])$')
_END = re.compile(r'(?<![\\.])[.,;]\s*$')
_GROUP = re.compile(r'(?<=\d)(?:\{,\}|,\\!|\\!,|\\,)(?=\d{3}(?!\d))')


def normalize(text: str) -> str:
  """Removes final punctuation and thousands separators, as in 5,\\!525."""
  return _GROUP.sub('', _END.sub('', text)).replace('\\!', '').strip()


def _is_parsed(parsed: list) -> bool:
  """Whether a parse has more than the text itself."""
  return any(not isinstance(part, str) for part in parsed)


_LIST = re.compile(r'[,;]|\\pm|\b(?:or|and)\b')


def _is_list(answer, text: str, gold) -> bool:
  """Whether an answer is a list or an interval though the gold one is not."""
  if isinstance(gold, sympy.Basic) and gold.has(sympy.Set, sympy.Tuple):
    return False
  return (
    isinstance(answer, sympy.Basic)
    and answer.has(sympy.Set)
    and bool(_LIST.search(normalize(text)))
  )


def _is_false(answer) -> bool:
  """Whether an answer contains a false equation between numbers."""
  return isinstance(answer, sympy.Basic) and not all(
    _holds(part) for part in answer.atoms(sympy.Eq) if not part.free_symbols
  )


def _holds(equation: sympy.Eq) -> bool:
  try:
    return abs(complex((equation.lhs - equation.rhs).doit())) < 1e-6
  except (TypeError, ValueError, OverflowError):
    return True  # Undecidable here, as for sets.
