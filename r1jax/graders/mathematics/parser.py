"""Parses a normalized mathematical answer; the whole of it or not at all.

  answer    item (separator item)*       1, 2 · (1,2) or (2,1) · x=1; y=2
  item      side (relation side)*        0 < x ≤ 1 · x = 3 · x ≡ 2 (mod 5)
  side      range (':' range)*           7:32
  range     sum (∪ sum)*                 (0,1) ∪ [2,3)
  sum       product (± product)*
  product   factor (· factor)*  unit     3 \\sqrt{2} cm
  factor    primary ^ factor, primary !, primary %, primary °

The time is linear in the length of the text. Nothing is evaluated here.
"""

from r1jax.graders.mathematics import units
from r1jax.graders.mathematics.factors import FactorParser
from r1jax.graders.mathematics.functions import FUNCTIONS
from r1jax.graders.mathematics.lexer import Token, tokens
from r1jax.graders.mathematics.nodes import (
  Node,
  NotRead,
  Operation,
  Quantity,
  Relation,
  Sequence,
  Words,
)

_RELATIONS = {
  '=': '=',
  '<': '<',
  '>': '>',
  'le': '<=',
  'ge': '>=',
  'ne': '!=',
  'in': 'in',
  'notin': 'notin',
  'equiv': 'equiv',
  'approx': 'approx',
  'sim': 'sim',
  'simeq': 'sim',
  'cong': 'cong',
  'to': 'to',
  'mapsto': 'mapsto',
  'subset': 'subset',
  'subseteq': 'subseteq',
  'parallel': 'parallel',
  'perp': 'perp',
  'propto': 'propto',
  'mid': 'mid',
  '@': 'at',
  'Rightarrow': 'implies',
  'implies': 'implies',
}
_RANGES = {
  'cup': 'union',
  'union': 'union',
  'cap': 'intersection',
  'setminus': 'difference',
}
_AND = ('and', 'or', 'And', 'Or', 'AND', 'OR')
_TIMES = ('cdot', 'times', 'cdotp')


class Parser(FactorParser):
  """Parses the tokens of one answer by recursive descent."""

  def answer(self, closing: str = '') -> list[Node]:
    """Parses items up to a closing token, which it leaves there."""
    groups: list[list[Node]] = [[]]
    separators = set()
    while not self._ends(closing):
      if self._is_separator():
        separator = self._pop()
        kind = ',' if separator.text == ',' else ';'
        if separator.text == ';' or separator.kind != 'sign':
          kind = 'and' if separator.kind != 'sign' else ';'
          groups.append([])
        separators.add(kind)
        continue
      groups[-1].append(self.item())
      if not self._ends(closing) and not self._is_separator():
        raise NotRead(f'{self._peek().text!r} stands where an item ends')
    return _grouped([group for group in groups if group], separators)

  def _ends(self, closing: str) -> bool:
    token = self._peek()
    return token.kind == 'end' or bool(
      closing and token.text == closing and token.kind in ('sign', 'command')
    )

  def _is_separator(self) -> bool:
    token = self._peek()
    if token.kind == 'sign':
      return token.text in (',', ';', ';;', '\\\\')
    if token.kind == 'text':
      return token.text.strip(' ,;').lower() in ('and', 'or', '', 'and/or')
    return token.kind in ('word', 'command') and token.text in _AND

  def item(self) -> Node:
    """Parses a chain of relations, or the one side that it has."""
    sides, operators = [self.side()], []
    while (operator := self._relation()) is not None:
      operators.append(operator)
      sides.append(self.side())
    modulus = self._modulus()
    if not operators and modulus is None:
      return sides[0]
    return Relation(tuple(sides), tuple(operators), modulus)

  def _relation(self) -> str | None:
    token = self._peek()
    if token.kind in ('sign', 'command') and token.text in _RELATIONS:
      if token.text == 'mid' and self.bars:
        return None
      return _RELATIONS[self._pop().text]
    return None

  def _modulus(self) -> Node | None:
    if self._peek().text not in ('pmod', 'bmod', 'mod', '('):
      return None
    if self._at('command', 'pmod') or self._at('command', 'bmod'):
      self._pop()
      return self._argument()
    if self._at('command', 'mod') or self._at('word', 'mod'):
      self._pop()
      return self.sum()
    if self._at('sign', '(') and self._second().text in ('mod', 'bmod'):
      self._pop()
      self._pop()
      modulus = self.sum()
      self._expect(')')
      return modulus
    return None

  def side(self) -> Node:
    """Parses a ratio, or the one part that it has."""
    parts = [self.range()]
    while self._at('sign', ':'):
      self._pop()
      parts.append(self.range())
    return parts[0] if len(parts) == 1 else Operation('ratio', tuple(parts))

  def range(self) -> Node:
    """Parses unions and intersections of sets, or one sum."""
    left = self.sum()
    while self._peek().kind == 'command' and self._peek().text in _RANGES:
      name = _RANGES[self._pop().text]
      while self._at('sign', ','):  # Example: A \\cup, B.
        self._pop()
      left = Operation(name, (left, self.sum()))
    if self._at('command', 'choose'):
      self._pop()
      left = Operation('binom', (left, self.sum()))
    return left

  def sum(self) -> Node:
    """Parses a sum."""
    self._enter()
    parts: list[Node] = []
    pending = self._sign()
    while True:
      part = self.product()
      if pending in ('-', 'pm', 'mp'):
        part = Operation({'-': 'neg'}.get(pending, pending), (part,))
      parts.append(part)
      token = self._peek()
      if (token.text in '+-' and token.kind == 'sign') or (
        token.kind == 'command' and token.text in ('pm', 'mp')
      ):
        pending = self._sign()
        continue
      break
    self.depth -= 1
    return parts[0] if len(parts) == 1 else Operation('add', tuple(parts))

  def _sign(self) -> str:
    """Pops the signs before a product and returns '+', '-', 'pm' or 'mp'."""
    sign = '+'
    while True:
      token = self._peek()
      if token.kind == 'sign' and token.text in ('+', '-'):
        self._pop()
        if token.text == '-':
          sign = {'+': '-', '-': '+', 'pm': 'mp', 'mp': 'pm'}[sign]
      elif token.kind == 'command' and token.text in ('pm', 'mp'):
        sign = self._pop().text
      else:
        return sign

  def product(self, in_function: bool = False) -> Node:
    """Parses a product, and the unit behind it.

    Args:
      in_function: Whether it is the argument of a function without brackets,
        which ends at the next function: sin x cos y.
    """
    left = self.factor()
    while True:
      token = self._peek()
      if (token.kind == 'command' and token.text in _TIMES) or (
        token == Token('sign', '*', token.spaced)
      ):
        self._pop()
        left = Operation('mul', (left, self._signed_factor()))
      elif token.kind == 'sign' and token.text == '/':
        self._pop()
        left = Operation('div', (left, self._signed_factor()))
      elif in_function and token.kind == 'command' and token.text in FUNCTIONS:
        return left
      elif (unit := self._unit(left)) is not None:
        return Quantity(left, unit)
      elif self._starts_factor():
        if isinstance(left, Words):
          raise NotRead('words before a formula')
        left = self._joined(left)
      else:
        return left

  def _signed_factor(self) -> Node:
    negative = self._sign() == '-'
    factor = self.factor()
    return Operation('neg', (factor,)) if negative else factor

  def _joined(self, left: Node) -> Node:
    """Parses a factor behind another: a product, or a mixed number."""
    spaced = self._peek().spaced
    is_fraction = self._at('command', 'frac')
    both_numbers = self._peek().kind == 'number' and self._is_integer(left)
    right = self.factor()
    if is_fraction and self._is_integer(left) and self._is_proper(right):
      return Operation('add', (left, right))
    if both_numbers:  # 3 1/2 is a mixed number; nothing else stands so.
      if spaced and self._at('sign', '/'):
        self._pop()
        right = Operation('div', (right, self.factor()))
        if self._is_proper(right):
          return Operation('add', (left, right))
      raise NotRead('two numbers beside each other')
    return Operation('mul', (left, right))

  def _unit(self, left: Node) -> str | None:
    """Pops a unit or a noun that stands behind a value, if one does."""
    if self._peek().kind not in ('word', 'text'):
      return None
    end = units.end(self.tokens, self.position, left)
    if end is None:
      return None
    parts = self.tokens[self.position : end]
    self.position = end
    return ''.join(token.text.strip() for token in parts)


def _grouped(groups: list[list[Node]], separators: set[str]) -> list[Node]:
  """Joins items that one answer of several has: p=5, q=2; p=7, q=2.

  A semicolon separates such answers, and so does 'and' between equations.
  """
  items = [item for group in groups for item in group]
  sizes = {len(group) for group in groups}
  if max(sizes, default=1) == 1 or len(groups) == 1:
    return items
  by_and = 'and' in separators and (
    len(sizes) > 1 or not all(isinstance(item, Relation) for item in items)
  )
  if by_and:
    return items
  return [
    group[0] if len(group) == 1 else Sequence('()', tuple(group))
    for group in groups
  ]


def parse(text: str) -> Node:
  """Parses a normalized answer.

  Raises:
    NotRead: a part of the text is not the notation of an answer.
  """
  words = units.words(text)
  if words is not None:
    return Words(words)
  parser = Parser(tokens(text))
  items = parser.answer()
  rest = parser.tokens[parser.position]
  if rest.kind != 'end':
    raise NotRead(f'{rest.text!r} is not closed')
  if not items:
    raise NotRead('nothing is there')
  return items[0] if len(items) == 1 else Sequence('', tuple(items))
