"""Mathematical equivalence by math-verify, in a worker: no guard, no clock.

What counts as equal is math-verify's judgement, but for two things that pass
there and not here, with gold 3:

  [3,3]   3,3      a list or an interval is no number  (\\{3\\} is one)
  5=3     x=5=3    a false equation that ends in it

And these pass on purpose: x=3 and y=3 (a name for it), 3=3 and 2+1=3 (true, and
they end in it), 300\\% (the same number), 3 cm (a unit). 50\\% is both 0.5
and 50, since questions ask for either; π is 3.141593, to six decimals.
"""

from collections.abc import Callable
import functools
import logging
import re

import math_verify
import sympy

from r1jax.graders.verdict import Verdict


def prepare() -> Callable[[dict], str]:
  logging.disable(logging.WARNING)  # Time-outs are off: the parent keeps them.
  # Fills the tables of parser and engine: every fork begins with them.
  for text, other in zip(_KINDS, _KINDS[1:] + _KINDS[:1]):
    for answer in (text, other, f'{text} .', '\\frac{2}{3}', '7'):
      handle({'answer': answer, 'gold': text})
  return handle


_KINDS = (
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
  """Grades job['answer'] against job['gold'], both stripped.

  Without an answer: CORRECT if the gold answer can be read at all.
  """
  wanted = read(job['gold'])
  if job['answer'] is None:
    return Verdict.CORRECT if _is_read(wanted) else Verdict.UNPARSABLE
  found = read(job['answer'])
  if math_verify.verify(wanted, found, timeout_seconds=None):
    surprising = (
      _is_read(wanted)
      and _is_read(found)
      and (_is_list(found[0], job['answer'], wanted[0]) or _is_false(found[0]))
    )
    return Verdict.WRONG if surprising else Verdict.CORRECT
  return Verdict.WRONG if _is_read(found) else Verdict.UNPARSABLE


@functools.lru_cache(1024)  # A gold answer comes with each of its samples.
def read(text: str) -> list:
  """Expressions and the text itself, in math-verify's form."""
  text = normal(text)
  found = []
  if not _FUNCTION.search(text):
    found = math_verify.parse(f'${text}$', parsing_timeout=None)
  if not _is_read(found):
    # The t of \\sin^2 t and the c of a + b + c are no unit; braces say so.
    named = _LAST_LETTER.sub(r'{\1}', text)
    found = math_verify.parse(f'${named}$', parsing_timeout=None) or found
  return found


_FUNCTION = re.compile(r'\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp)')
_LAST_LETTER = re.compile(r'(?<![a-zA-Z\\])\s*([a-zA-Z])$')
_END = re.compile(r'(?<![\\.])[.,;]\s*$')
_GROUP = re.compile(r'(?<=\d)(?:\{,\}|,\\!|\\!,|\\,)(?=\d{3}(?!\d))')


def normal(text: str) -> str:
  """Without a sentence's end and without marks between digits: 5,\\!525."""
  return _GROUP.sub('', _END.sub('', text)).replace('\\!', '').strip()


def _is_read(found: list) -> bool:
  """There is more than the text itself."""
  return any(not isinstance(part, str) for part in found)


_LIST = re.compile(r'[,;]|\\pm|\b(?:or|and)\b')


def _is_list(found, text: str, wanted) -> bool:
  """Written as several values, or as an interval, where one is wanted."""
  if isinstance(wanted, sympy.Basic) and wanted.has(sympy.Set, sympy.Tuple):
    return False
  return (
    isinstance(found, sympy.Basic)
    and found.has(sympy.Set)
    and bool(_LIST.search(normal(text)))
  )


def _is_false(found) -> bool:
  """It holds an equation between numbers that does not hold."""
  return isinstance(found, sympy.Basic) and not all(
    _holds(part) for part in found.atoms(sympy.Eq) if not part.free_symbols
  )


def _holds(equation: sympy.Eq) -> bool:
  try:
    return abs(complex((equation.lhs - equation.rhs).doit())) < 1e-6
  except (TypeError, ValueError, OverflowError):
    return True  # Sets, for example: not for us to say.
