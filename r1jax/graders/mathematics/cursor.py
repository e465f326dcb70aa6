"""The position in the tokens of an answer, and what every part of the parser uses."""

from r1jax.graders.mathematics.lexer import Token
from r1jax.graders.mathematics.nodes import (
  Node,
  NotRead,
  Number,
  Operation,
  TooLarge,
)

_END = Token('end', '')
_MAX_AHEAD = 3  # Tokens behind the next one that are looked at.
MAX_DEPTH = 40  # Nested brackets; gold answers have up to 4.


class Cursor:
  """A position in the tokens of one answer.

  Attributes:
    tokens: The tokens of the answer, and some of kind 'end' behind them.
    position: Index of the next one.
    depth: How many brackets and sums are open.
    brackets: How many brackets are open that separate items: in them, a comma
      never separates thousands.
    bars: How many absolute values are open.
  """

  def __init__(self, tokens: list[Token]):
    self.tokens, self.position = [*tokens, *[_END] * (_MAX_AHEAD + 1)], 0
    self.depth, self.brackets, self.bars = 0, 0, 0

  def _peek(self) -> Token:
    return self.tokens[self.position]

  def _second(self, ahead: int = 1) -> Token:
    return self.tokens[self.position + ahead]

  def _pop(self) -> Token:
    token = self.tokens[self.position]
    if token.kind != 'end':
      self.position += 1
    return token

  def _at(self, kind: str, text: str) -> bool:
    token = self.tokens[self.position]
    return token.text == text and token.kind == kind

  def _expect(self, text: str):
    token = self._pop()
    if token.text != text or token.kind not in ('sign', 'command'):
      raise NotRead(f'{text!r} is missing')

  def _enter(self):
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise TooLarge('brackets are nested too deeply')

  def _is_integer(self, node: Node) -> bool:
    return (
      isinstance(node, Number)
      and node.value.denominator == 1
      and not node.digits
    )

  def _is_proper(self, node: Node) -> bool:
    """Whether a node is a fraction of integers below 1."""
    match node:
      case Operation('div', (Number() as over, Number() as under)):
        return 0 < over.value < under.value and (
          self._is_integer(over) and self._is_integer(under)
        )
    return False

  def _subscript(self) -> str:
    """Pops a subscript and returns its text without braces and spaces."""
    token = self._pop()
    if token.text != '{':
      if token.kind == 'word' and len(token.text) > 1:
        self.position -= 1
        self.tokens[self.position] = Token('word', token.text[1:])
        return token.text[0]
      return token.text
    parts: list[str] = []
    depth = 1
    while True:
      token = self._pop()
      depth += (token.text == '{') - (token.text == '}')
      if not depth:
        return ''.join(parts)
      if token.kind == 'end':
        raise NotRead("'}' is missing")
      parts.append(token.text)

  # The levels of the grammar, which classes below define.

  def answer(self, closing: str = '') -> list[Node]:
    """Parses items up to a closing token, which it leaves there."""
    raise NotImplementedError

  def item(self) -> Node:
    """Parses a chain of relations, or the one side that it has."""
    raise NotImplementedError

  def sum(self) -> Node:
    """Parses a sum."""
    raise NotImplementedError

  def product(self, in_function: bool = False) -> Node:
    """Parses a product, and the unit behind it."""
    raise NotImplementedError

  def factor(self) -> Node:
    """Parses a primary with what is behind it: powers, !, %, degrees, primes."""
    raise NotImplementedError

  def _primary(self) -> Node:
    raise NotImplementedError

  def _number(self, token: Token) -> Node:
    raise NotImplementedError

  def _argument(self) -> Node:
    raise NotImplementedError

  def _exponent(self) -> Node:
    raise NotImplementedError

  def _subscripted(self, name: str) -> Node:
    raise NotImplementedError
