"""Cuts a normalized answer into tokens: numbers, commands, words and signs."""

from fractions import Fraction
import re
from typing import NamedTuple

from r1jax.graders.mathematics.nodes import NotRead


class Token(NamedTuple):
  """A token.

  Attributes:
    kind: 'number', 'command', 'word' for a run of letters, 'text' for what
      stands in \\text, or 'sign'.
    text: A number's digits, a command's name, a word, or the sign.
    spaced: Whether white space stands before it.
  """

  kind: str
  text: str
  spaced: bool = False


# Separates groups of digits in plain text; whether it does depends on where.
GROUPED = re.compile(r'\d{1,3}(?:,\d{3})+(?:\.\d+)?')
_TOKEN = re.compile(
  r'(?P<space>\s+)'
  r'|(?P<number>(?:\d+\.\d*|\.\d+)\\overline\s*\{\d+\}'
  r'|(?:\d+(?:\.\d+|\.(?=[/*^)]))?|\.\d+)(?:[eE][+-]?\d{1,9}(?![\w.]))?)'
  r'|\\text\s*\{(?P<text>[^{}]*)\}'
  r'|\\(?P<command>[a-zA-Z]+)'
  r'|(?P<sign>\\[{}|\\]|;;|[^\w\s\\]|_)'
  r'|(?P<word>[^\W\d_]+)',
  re.DOTALL,
)
_FUNCTIONS = (
  'arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|sqrt'
)
# Words of plain text that LaTeX has commands for.
_COMMAND_WORDS = frozenset(
  _FUNCTIONS.split('|')
  + 'exp pi theta alpha beta gamma delta lambda sigma omega infty floor ceil '
  'abs binom gcd lcm min max det union'.split()
)
_JOINED_FUNCTION = re.compile(rf'({_FUNCTIONS})([a-zA-Z]{{1,2}})')
_GLUED = re.compile(r'(and|or)([A-Z])')
_INFINITY = ('infinity', 'inf', 'Infinity', 'oo')


def tokens(text: str) -> list[Token]:
  """Cuts a normalized answer into tokens.

  Raises:
    NotRead: a character stands for nothing.
  """
  found: list[Token] = []
  position, spaced = 0, False
  while position < len(text):
    match = _TOKEN.match(text, position)
    if not match:
      raise NotRead(f'unknown character {text[position]!r}')
    kind = str(match.lastgroup)
    content = match[kind]
    position = match.end()
    if kind == 'space':
      spaced = True
      continue
    if kind == 'word':
      found += _words(content, spaced)
    else:
      found.append(Token(kind, content, spaced))
    spaced = False
  return found


def _words(word: str, spaced: bool) -> list[Token]:
  if word in _COMMAND_WORDS:
    return [Token('command', word, spaced)]
  if word in _INFINITY:
    return [Token('command', 'infty', spaced)]
  glued = _GLUED.fullmatch(word)
  if glued:  # Example: x=1orY=2.
    return [Token('word', glued[1], True), Token('word', glued[2], True)]
  joined = _JOINED_FUNCTION.fullmatch(word)
  if joined:  # Example: sinx.
    return [Token('command', joined[1], spaced), Token('word', joined[2])]
  return [Token('word', word, spaced)]


def number(text: str) -> tuple[Fraction, int]:
  """Returns the exact value of a number and the digits of its decimal.

  '0.25' → (1/4, 2), '12' → (12, 0), '0.1\\overline{6}' → (1/6, 0),
  '1.6e-19' → (1.6 · 10⁻¹⁹, 2)
  """
  if text.isdigit():
    return Fraction(int(text)), 0
  if '\\' in text:
    digits, _, repeated = text.rstrip('}').partition('\\overline')
    repeated = repeated.strip().lstrip('{')
    whole, _, places = digits.partition('.')
    scale = 10 ** len(places)
    period = Fraction(int(repeated), 10 ** len(repeated) - 1)
    return (int(whole + places or 0) + period) / scale, 0
  mantissa, _, exponent = text.lower().partition('e')
  if abs(int(exponent or 0)) > 5000:
    raise NotRead('too large an exponent')
  value = Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
  if '.' not in mantissa.rstrip('.'):
    return value, 0
  return value, len(mantissa.replace('.', '').lstrip('0'))
