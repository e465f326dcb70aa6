"""How large a number could an answer be? A bound, before anyone computes it.

A symbolic engine evaluates 9^{9^9} while it reads it, in products of integers
that fill the memory. So a text is bounded first, in decimal digits:

  digits(a · b), digits(a + b)  ≤ digits(a) + digits(b)
  digits(a ^ b)                 ≤ digits(a) · b
  digits(n!)                    ≤ digits(n) · n
  n                             < 10 ^ digits(n)

A letter or a command counts as one digit. The notation is LaTeX or plain, and
where the two differ the larger reading counts.
"""

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r'(?P<power>\^|\*\*)|(?P<number>[\d,.]*\d)|(?P<command>\\[a-zA-Z]+)'
    r'|\\.'  # An escaped sign means nothing here: \! is a space.
    r'|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<letter>[^\W\d_])|(?P<sign>\S)')


class _Size(NamedTuple):
  """Of a part of the text: the most digits, and the largest value."""

  digits: float
  value: float


def digits(text: str) -> float:
  """No number that `text` stands for has more digits than this.

  '2^{10}' → 10, '(2^3)^4' → 12, '20!' → 40, '9^9^9' → 10⁹
  """
  tokens = [(match.lastgroup, match.group()) for match in
            _TOKEN.finditer(text) if match.lastgroup][::-1]
  total = 0.0
  while tokens:  # Again only after a bracket that closes what nothing opened.
    total += _sum(tokens).digits
  return total


def _sum(tokens: list) -> _Size:
  """Takes tokens up to the bracket that closes: factors, terms, all alike."""
  before, last = 0.0, _Size(0, 0)  # Digits before the latest factor; it.
  while tokens:
    kind, text = tokens[-1]
    if kind == 'power':
      tokens.pop()
      base = last.digits or before  # After a sign, as in |x|^2, all of it.
      last = _sized(base * max(_exponent(tokens), 1))
    elif text == '!':
      tokens.pop()
      last = _factorial(last)
    elif text == '_':
      tokens.pop()
      last = _sized(last.digits + _factor(tokens).digits)
    elif kind == 'sign':
      tokens.pop()
      before, last = before + last.digits, _Size(0, 0)
    elif kind == 'close':
      tokens.pop()
      break
    else:
      before, last = before + last.digits, _factor(tokens)
  return _sized(before + last.digits) if before else last


def _factor(tokens: list) -> _Size:
  """Takes a number, a letter, a bracket, or a command with its brackets."""
  if not tokens or tokens[-1][0] not in ('number', 'letter', 'open', 'command'):
    return _Size(0, 0)
  kind, text = tokens.pop()
  if kind == 'open':
    return _sum(tokens)
  if kind == 'number':
    whole, dot, _ = text.replace(',', '').partition('.')
    return _Size(len(text), float(whole[:300] or 0) + bool(dot))
  size = 1.0
  while kind == 'command' and tokens and tokens[-1][0] == 'open':
    size += _factor(tokens).digits
  return _sized(size)


def _exponent(tokens: list) -> float:
  """Takes an exponent, and its own if it has one; its largest value."""
  while tokens and tokens[-1][1] in '+-':
    tokens.pop()
  exponent = _factor(tokens)
  if tokens and tokens[-1][1] == '!':
    tokens.pop()
    exponent = _factorial(exponent)
  if tokens and tokens[-1][0] == 'power':
    tokens.pop()
    exponent = _sized(exponent.digits * max(_exponent(tokens), 1))
  return exponent.value


def _factorial(n: _Size) -> _Size:
  return _sized(n.digits * max(n.value, 1))


def _sized(count: float) -> _Size:
  return _Size(count, 10.0 ** min(count, 300))
