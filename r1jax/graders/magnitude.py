r"""Bounds on the size of a mathematical answer, before it is evaluated.

A symbolic engine evaluates 9^{9^9} while it parses it, in products of integers
that fill the memory, and expands (a+b+c)^{99} while it compares it. So the size
of a text is bounded first. With n < 10 ^ digits(n),

  digits(a · b), digits(a + b)  ≤ digits(a) + digits(b)
  digits(a ^ b)                 ≤ digits(a) · b
  digits(n!)                    ≤ digits(n) · n

and for a text that stands for a fraction of two sums, of p and q terms when
expanded,

  a + b         p_a · q_b + p_b · q_a    over  q_a · q_b
  a · b         p_a · p_b                over  q_a · q_b
  a / b         p_a · q_b                over  q_a · p_b
  a ^ b         C(p_a + b − 1, b)        over  C(q_a + b − 1, b)
  \sin a        4 max(p_a, q_a)

the last because the engine tries identities of such functions, one inside
another. A letter or a command counts as one digit. The notation is LaTeX or
plain text; where the two readings differ, the larger one counts.
"""

import math
import re
from typing import NamedTuple

_TOKEN = re.compile(
  r'(?P<power>\^|\*\*)|(?P<number>[\d,.]*\d)|(?P<command>\\[a-zA-Z]+)'
  r'|\\.'  # Escaped signs are ignored: \! is a space.
  r'|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<letter>[^\W\d_])|(?P<sign>\S)'
)
_FUNCTION = re.compile(
  r'\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?$|\\(?:log|ln|lg|exp)$'
)
_FRACTION = re.compile(r'\\[dtc]?frac$')
_PLUS = '+-−±'


class Size(NamedTuple):
  """Upper bounds for an expression or a part of it.

  Attributes:
    digits: Digits of any number that it stands for.
    value: The largest number that it stands for.
    terms: Terms of its numerator when expanded.
    denominator_terms: Terms of its denominator when expanded.
  """

  digits: float
  value: float
  terms: float = 1.0
  denominator_terms: float = 1.0


_EMPTY = Size(0, 0)


def bound(text: str) -> Size:
  """Bounds the size of an expression.

  '2^{10}' → 10 digits, '20!' → 40, '9^9^9' → 10⁹; '(a+b)^2' → 3 terms,
  '(a+b)(c+1)-3' → 5.
  """
  tokens = [
    (match.lastgroup, match.group())
    for match in _TOKEN.finditer(text)
    if match.lastgroup
  ][::-1]
  size = _sum(tokens)
  while tokens:  # An unmatched closing bracket ended the sum.
    size = _plus(size, _sum(tokens))
  if size.denominator_terms > 1:  # A quotient of sums has up to its degree.
    size = size._replace(terms=max(size.terms, size.digits))
  return size


def _sum(tokens: list) -> Size:
  """Parses a sum: pops tokens up to the closing bracket."""
  total = product = last = None  # The sum, its last product, its last factor.
  divided = False  # Whether the last factor is a divisor.
  while tokens:
    kind, text = tokens[-1]
    if kind == 'power':
      tokens.pop()
      # After a sign, as in |x|^2, the power applies to all before it.
      last = _power(last or _add_product(total, product), _exponent(tokens))
    elif text == '!':
      tokens.pop()
      last = _factorial(last or _EMPTY)
    elif text == '_':
      tokens.pop()
      last = _times(last or _EMPTY, _factor(tokens))
    elif kind == 'close':
      tokens.pop()
      break
    else:
      if last:
        product = _times(product, _inverse(last) if divided else last)
        divided = False
      last = None
      if kind == 'sign':
        tokens.pop()
        divided = divided or text == '/'
        if text in _PLUS and product:
          total, product, divided = _plus(total, product), None, False
      else:
        last = _factor(tokens)
  if last:
    product = _times(product, _inverse(last) if divided else last)
  return _add_product(total, product)


def _add_product(total: Size | None, product: Size | None) -> Size:
  return _plus(total, product) if product else total or _EMPTY


def _factor(tokens: list) -> Size:
  """Parses a factor: pops a number, letter, bracket or command with brackets."""
  if not tokens or tokens[-1][0] not in ('number', 'letter', 'open', 'command'):
    return _EMPTY
  kind, text = tokens.pop()
  if kind == 'open':
    return _sum(tokens)
  if kind == 'number':
    whole, dot, _ = text.replace(',', '').partition('.')
    return Size(len(text), float(whole[:300] or 0) + bool(dot))
  size, parts = _sized(1), []
  while kind == 'command' and tokens and tokens[-1][0] == 'open':
    parts.append(_factor(tokens))
  for i, part in enumerate(parts):
    in_denominator = i and _FRACTION.match(text)
    size = _times(size, _inverse(part) if in_denominator else part)
  if size.terms > 1 and text == '\\sqrt':  # The engine searches it for factors.
    size = size._replace(terms=max(size.terms, size.digits))
  if _FUNCTION.match(text):
    size = size._replace(
      terms=4 * max(size.terms, size.denominator_terms), denominator_terms=1.0
    )
  return size


def _exponent(tokens: list) -> float:
  """Parses an exponent with its own exponents; returns its largest value."""
  while tokens and tokens[-1][1] in '+-':
    tokens.pop()
  exponent = _factor(tokens)
  if tokens and tokens[-1][1] == '!':
    tokens.pop()
    exponent = _factorial(exponent)
  if tokens and tokens[-1][0] == 'power':
    tokens.pop()
    exponent = _power(exponent, _exponent(tokens))
  return exponent.value


def _times(a: Size | None, b: Size) -> Size:
  return (
    _sized(
      a.digits + b.digits,
      a.terms * b.terms,
      a.denominator_terms * b.denominator_terms,
    )
    if a
    else b
  )


def _plus(a: Size | None, b: Size) -> Size:
  return (
    _sized(
      a.digits + b.digits,
      a.terms * b.denominator_terms + b.terms * a.denominator_terms,
      a.denominator_terms * b.denominator_terms,
    )
    if a
    else b
  )


def _inverse(a: Size) -> Size:
  return a._replace(terms=a.denominator_terms, denominator_terms=a.terms)


def _power(base: Size, exponent: float) -> Size:
  exponent = max(exponent, 1)

  def count(terms: float) -> float:
    if terms <= 1:
      return 1.0
    log = (
      math.lgamma(exponent + terms)
      - math.lgamma(exponent + 1)
      - math.lgamma(terms)
    )
    # For huge exponents the difference above rounds to 0.
    return max(math.exp(min(log, _LARGEST)), exponent + 1)

  return _sized(
    base.digits * exponent, count(base.terms), count(base.denominator_terms)
  )


_LARGEST = 300.0  # The product of two such numbers still fits a float.


def _factorial(n: Size) -> Size:
  return _sized(n.digits * max(n.value, 1))


def _sized(
  digits: float, terms: float = 1.0, denominator_terms: float = 1.0
) -> Size:
  limit = math.exp(_LARGEST)
  return Size(
    digits,
    10.0 ** min(digits, 300),
    min(terms, limit),
    min(denominator_terms, limit),
  )
