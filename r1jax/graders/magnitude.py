r"""How large could an answer become? Bounds, before anyone computes it.

A symbolic engine evaluates 9^{9^9} while it reads it, in products of integers
that fill the memory, and multiplies (a+b+c)^{99} out while it compares it. So a
text is bounded first. With n < 10 ^ digits(n),

  digits(a · b), digits(a + b)  ≤ digits(a) + digits(b)
  digits(a ^ b)                 ≤ digits(a) · b
  digits(n!)                    ≤ digits(n) · n

and for a text that stands for a fraction of two sums, of p and of q terms when
they are multiplied out,

  a + b         p_a · q_b + p_b · q_a    over  q_a · q_b
  a · b         p_a · p_b                over  q_a · q_b
  a / b         p_a · q_b                over  q_a · p_b
  a ^ b         C(p_a + b − 1, b)        over  C(q_a + b − 1, b)
  \sin a        4 max(p_a, q_a)

the last because identities of such functions are tried, one inside another. A
letter or a command counts as one digit. The notation is LaTeX or plain, and
where the two differ the larger reading counts.
"""

import math
import re
from typing import NamedTuple

_TOKEN = re.compile(
  r'(?P<power>\^|\*\*)|(?P<number>[\d,.]*\d)|(?P<command>\\[a-zA-Z]+)'
  r'|\\.'  # An escaped sign means nothing here: \! is a space.
  r'|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<letter>[^\W\d_])|(?P<sign>\S)'
)
_FUNCTION = re.compile(
  r'\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?$|\\(?:log|ln|lg|exp)$'
)
_FRACTION = re.compile(r'\\[dtc]?frac$')
_PLUS = '+-−±'


class Size(NamedTuple):
  """Bounds of a text or of a part of it.

  Attributes:
    digits: No number that it stands for has more of them.
    value: Nor is larger.
    terms: Of the sum that it is, or is the numerator of, multiplied out.
    below: Of its denominator.
  """

  digits: float
  value: float
  terms: float = 1.0
  below: float = 1.0


_NOTHING = Size(0, 0)


def bound(text: str) -> Size:
  """Of '2^{10}' 10 digits, of '20!' 40, of '9^9^9' 10⁹; of '(a+b)^2' 3 terms,
  of '(a+b)(c+1)-3' 5."""
  tokens = [
    (match.lastgroup, match.group())
    for match in _TOKEN.finditer(text)
    if match.lastgroup
  ][::-1]
  found = _sum(tokens)
  while tokens:  # Only after a bracket that closes what nothing opened.
    found = _plus(found, _sum(tokens))
  if found.below > 1:  # A quotient of sums has as many as its degree.
    found = found._replace(terms=max(found.terms, found.digits))
  return found


def _sum(tokens: list) -> Size:
  """Takes tokens up to the bracket that closes."""
  total = product = last = None  # Terms, factors of the latest, the last one.
  divided = False  # By the last one.
  while tokens:
    kind, text = tokens[-1]
    if kind == 'power':
      tokens.pop()
      # After a sign, as in |x|^2, all of it.
      last = _power(last or _joined(total, product), _exponent(tokens))
    elif text == '!':
      tokens.pop()
      last = _factorial(last or _NOTHING)
    elif text == '_':
      tokens.pop()
      last = _times(last or _NOTHING, _factor(tokens))
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
  return _joined(total, product)


def _joined(total: Size | None, product: Size | None) -> Size:
  return _plus(total, product) if product else total or _NOTHING


def _factor(tokens: list) -> Size:
  """Takes a number, a letter, a bracket, or a command with its brackets."""
  if not tokens or tokens[-1][0] not in ('number', 'letter', 'open', 'command'):
    return _NOTHING
  kind, text = tokens.pop()
  if kind == 'open':
    return _sum(tokens)
  if kind == 'number':
    whole, dot, _ = text.replace(',', '').partition('.')
    return Size(len(text), float(whole[:300] or 0) + bool(dot))
  made, parts = _sized(1), []
  while kind == 'command' and tokens and tokens[-1][0] == 'open':
    parts.append(_factor(tokens))
  for i, part in enumerate(parts):
    below = i and _FRACTION.match(text)
    made = _times(made, _inverse(part) if below else part)
  if made.terms > 1 and text == '\\sqrt':  # It is searched for factors.
    made = made._replace(terms=max(made.terms, made.digits))
  if _FUNCTION.match(text):
    made = made._replace(terms=4 * max(made.terms, made.below), below=1.0)
  return made


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
    exponent = _power(exponent, _exponent(tokens))
  return exponent.value


def _times(a: Size | None, b: Size) -> Size:
  return (
    _sized(a.digits + b.digits, a.terms * b.terms, a.below * b.below)
    if a
    else b
  )


def _plus(a: Size | None, b: Size) -> Size:
  return (
    _sized(
      a.digits + b.digits,
      a.terms * b.below + b.terms * a.below,
      a.below * b.below,
    )
    if a
    else b
  )


def _inverse(a: Size) -> Size:
  return a._replace(terms=a.below, below=a.terms)


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
    # Of huge exponents nothing is left of the difference but this.
    return max(math.exp(min(log, _LARGEST)), exponent + 1)

  return _sized(base.digits * exponent, count(base.terms), count(base.below))


_LARGEST = 300.0  # So that a product of two has a value, too.


def _factorial(n: Size) -> Size:
  return _sized(n.digits * max(n.value, 1))


def _sized(digits: float, terms: float = 1.0, below: float = 1.0) -> Size:
  limit = math.exp(_LARGEST)
  return Size(
    digits, 10.0 ** min(digits, 300), min(terms, limit), min(below, limit)
  )
