"""Parses factors: numbers, variables and what is behind them, such as powers."""

import re

from r1jax.graders.mathematics import lexer, units
from r1jax.graders.mathematics.functions import FunctionParser, begins_factor
from r1jax.graders.mathematics.lexer import Token
from r1jax.graders.mathematics.nodes import (
  Based,
  Node,
  NotRead,
  Number,
  Operation,
  Quantity,
  Symbol,
  Words,
)


class FactorParser(FunctionParser):
  """The part of the parser that reads factors."""

  def _starts_factor(self) -> bool:
    token = self._peek()
    if token.kind == 'number':
      return True
    if token.kind == 'word':
      return token.text not in ('and', 'or', 'mod', 'And', 'Or', 'OR', 'AND')
    if token.kind == 'command':
      return begins_factor(token.text) or (
        token.text == 'vert' and not self.bars
      )
    if token.kind == 'sign':
      if token.text == '(' and self._second().text in ('mod', 'bmod'):
        return False
      return token.text in ('(', '[', '{', '\\{') or (
        token.text in ('|', '\\|') and not self.bars
      )
    return False

  def factor(self) -> Node:
    """Parses a primary with what is behind it: powers, !, %, degrees, primes."""
    base = self._primary()
    while True:
      token = self._peek()
      if token.text == '^' and token.kind == 'sign':
        self._pop()
        base = self._power(base)
      elif token.text == '!' and token.kind == 'sign':
        self._pop()
        base = Operation('factorial', (base,))
      elif token.text == '%' and token.kind == 'sign':
        self._pop()
        base = Operation('percent', (base,))
      elif self._at('command', 'degree'):
        self._pop()
        if self._peek().text in ('C', 'F') and self._peek().kind == 'word':
          base = Quantity(base, '°' + self._pop().text)
        else:
          base = Operation('degree', (base,))
      elif token.text == "'" and isinstance(base, Symbol):
        self._pop()
        base = Symbol(base.name + "'")
      elif token == Token('sign', '_', token.spaced) and not isinstance(
        base, Number
      ):
        self._pop()
        base = Operation(f'subscript {self._subscript()}', (base,))
      else:
        return base

  def _power(self, base: Node) -> Node:
    if self._at('command', 'prime') and isinstance(base, Symbol):
      self._pop()
      return Symbol(base.name + "'")
    if self._peek().text in ('*', '+') and isinstance(base, Symbol):
      return Symbol(base.name + '^' + self._pop().text)
    return Operation('pow', (base, self._exponent()))

  def _exponent(self) -> Node:
    self._enter()
    negative = False
    while self._peek().text in ('+', '-') and self._peek().kind == 'sign':
      negative ^= self._pop().text == '-'
    exponent = self._primary()
    while self._at('sign', '!'):
      self._pop()
      exponent = Operation('factorial', (exponent,))
    if self._at('sign', '^'):
      self._pop()
      exponent = Operation('pow', (exponent, self._exponent()))
    self.depth -= 1
    return Operation('neg', (exponent,)) if negative else exponent

  def _primary(self) -> Node:
    token = self._pop()
    if token.kind == 'number':
      return self._number(token)
    if token.kind == 'word':
      return self._letter(token)
    if token.kind == 'text':
      return self._text(token)
    if token.kind == 'command':
      return self._command(token.text)
    if token.text in ('(', '['):
      return self._brackets(token.text)
    if token.text in ('{', '\\{'):
      return self._group() if token.text == '{' else self._set()
    if token.text in ('|', '\\|'):
      return self._bars(token.text)
    raise NotRead(f'{token.text or "the end"!r} stands where a value should')

  def _number(self, token: Token) -> Node:
    text = token.text
    # Outside of brackets, groups of three digits behind commas are thousands.
    while not self.brackets and self._is_group():
      self._pop()
      text += self._pop().text
    value, digits = lexer.number(text)
    if self._at('command', 'ldots') and digits and not self._peek().spaced:
      self._pop()
      repeated = re.search(r'(\d)\1\1+$', text)
      if not repeated:
        raise NotRead('a decimal that goes on')
      text = f'{text[: repeated.start()]}\\overline{{{repeated[1]}}}'
      value, digits = lexer.number(text)
    if self._at('sign', '_'):
      self._pop()
      base = self._subscript()
      if not base.isdigit() or not 2 <= int(base[:3]) <= 62:
        raise NotRead('a base that is no number')
      return Based(token.text.lstrip('0') or '0', int(base))
    return Number(value, digits)

  def _is_group(self) -> bool:
    comma, digits = self._peek(), self._second()
    if comma.text != ',':
      return False
    before = self.tokens[self.position - 1].text
    return (
      comma == Token('sign', ',')
      and digits.kind == 'number'
      and not digits.spaced
      and bool(re.fullmatch(r'\d{3}(\.\d+)?', digits.text))
      and bool(re.fullmatch(r'[1-9]\d{0,2}|\d{3}', before))
    )

  def _letter(self, token: Token) -> Node:
    """Takes the first letter of a word; the rest stays as another token."""
    if units.is_prose(self.tokens, self.position - 1):
      raise NotRead(f'the word {token.text!r}')
    if len(token.text) > 1:
      self.position -= 1
      self.tokens[self.position] = Token('word', token.text[1:])
    return self._subscripted(token.text[0])

  def _text(self, token: Token) -> Node:
    content = ' '.join(token.text.split())
    if re.fullmatch(r'[A-Za-z]', content) and self._at('sign', '_'):
      return self._subscripted(content)
    return Words(content.strip('() ').lower())

  def _subscripted(self, name: str) -> Node:
    if self._at('sign', '_'):
      self._pop()
      name = f'{name}_{self._subscript()}'
    ahead = [self._second(i) for i in range(3)]
    if (
      [token.text for token in ahead[::2]] == ['(', ')']
      and ahead[1].kind == 'number'
      and (ahead[1].text == '0' or name[0] in 'fghFGHPQWNV')
    ):  # f(0) is no product.
      self.position += 3
      value, digits = lexer.number(ahead[1].text)
      return Operation('apply', (Symbol(name), Number(value, digits)))
    return Symbol(name)

  def _argument(self) -> Node:
    """Parses the argument of a command: a group, a digit, or a primary."""
    token = self._peek()
    if token.kind == 'number' and token.text[0].isdigit():
      self._pop()
      if len(token.text) > 1:
        self.position -= 1
        self.tokens[self.position] = Token('number', token.text[1:])
      return Number(lexer.number(token.text[0])[0])
    return self._primary()
