"""Parses what stands in brackets: points, sets, absolute values, matrices."""

from r1jax.graders.mathematics.cursor import Cursor
from r1jax.graders.mathematics.lexer import Token
from r1jax.graders.mathematics.nodes import (
  Matrix,
  Node,
  NotRead,
  Operation,
  Relation,
  Sequence,
  Symbol,
  Words,
  symbols,
)

_CASE_WORDS = ('if', 'for', 'when', 'otherwise', 'else', 'if ', 'where')


class BracketParser(Cursor):
  """The part of the parser that reads brackets."""

  def _items(self, closing: str) -> list[Node]:
    """Parses what stands between brackets, and pops the closing one."""
    self._enter()
    bars, self.bars = self.bars, 0
    self.brackets += 1
    items = self.answer(closing)
    self.brackets -= 1
    self.bars = bars
    self.depth -= 1
    return items

  def _brackets(self, opening: str) -> Node:
    items = self._items_of_either()
    closing = self._pop().text
    if closing not in (')', ']') or not items:
      raise NotRead(f'{opening!r} is not closed')
    if len(items) == 1 and not isinstance(items[0], Words):
      if opening + closing in ('()', '[]'):
        return items[0]
      raise NotRead('brackets that do not match')
    if len(items) == 1:
      return items[0]
    return Sequence(opening + closing, tuple(items))

  def _items_of_either(self) -> list[Node]:
    """Parses items up to ')' or ']', whichever closes this bracket."""
    depth, closing = 0, ''
    for token in self.tokens[self.position :]:
      if token.kind != 'sign':
        continue
      if token.text in ('(', '['):
        depth += 1
      elif token.text in (')', ']'):
        if not depth:
          closing = token.text
          break
        depth -= 1
    if not closing:
      raise NotRead('a bracket is not closed')
    return self._items(closing)

  def _group(self) -> Node:
    grouped, self.brackets = self.brackets, self.brackets - 1
    items = self._items('}')
    self.brackets = grouped
    self._expect('}')
    if not items:
      return Sequence('', ())
    return items[0] if len(items) == 1 else Sequence('', tuple(items))

  def _set(self) -> Node:
    builder = self._builder_mark()
    if builder is None:
      items = self._items('\\}')
      self._expect('\\}')
      return Sequence('{}', tuple(items))
    head = self.item()
    self._pop()
    conditions = self._items('\\}')
    self._expect('\\}')
    if isinstance(head, Relation):  # Example: x ∈ ℝ | x > 2.
      if head.operators != ('in',):
        raise NotRead('a set of relations')
      head, domain = head.sides
      if domain != Symbol('\\mathbb{R}'):
        conditions.append(Relation((head, domain), ('in',)))
    if isinstance(head, Symbol) and not any(
      head.name in symbols(condition) for condition in conditions
    ):
      raise NotRead('a condition on something else')
    if isinstance(head, Symbol) and len(conditions) == 1:
      return conditions[0]
    return Operation('set_builder', (head, *conditions))

  def _builder_mark(self) -> int | None:
    """Finds the | or : of a set that is given by a condition."""
    marks, depth = [], 0
    for index in range(self.position, len(self.tokens)):
      token = self.tokens[index]
      depth += (token.text in ('(', '[', '{', '\\{')) - (
        token.text in (')', ']', '}')
      )
      if token.text == '\\}':
        if not depth:
          break
        depth -= 1
      elif not depth and token.text in ('|', ':', 'mid', 'vert'):
        marks.append(index)
      elif not depth and token.text == ',' and not marks:
        return None
    if not marks or len(marks) not in (1, 3):
      return None
    self.tokens[marks[0]] = Token('sign', ';;')  # It ends the head.
    return marks[0]

  def _bars(self, mark: str) -> Node:
    self._enter()
    self.bars += 1
    brackets, self.brackets = self.brackets, self.brackets + 1
    content = self.sum()
    self.brackets = brackets
    self.bars -= 1
    self.depth -= 1
    if self._pop().text not in (mark, 'vert', 'mid', '|'):
      raise NotRead('an absolute value is not closed')
    return Operation('abs', (content,))

  def _matrix(self) -> Node:
    self._braced('matrix')
    rows: list[list[Node]] = [[]]
    self._enter()
    while not self._at('command', 'end'):
      token = self._peek()
      if token.text == '\\\\':
        self._pop()
        rows.append([])
      elif token.text in ('&', ',', ';;') and token.kind == 'sign':
        self._pop()
      elif token.kind in ('text', 'word') and token.text.strip() in _CASE_WORDS:
        self._pop()
      elif token.kind == 'end':
        raise NotRead('a matrix without its end')
      else:
        rows[-1].append(self.item())
    self.depth -= 1
    self._pop()
    self._braced('matrix')
    return Matrix(tuple(tuple(row) for row in rows if row))

  def _braced(self, word: str):
    self._expect('{')
    if self._pop().text != word:
      raise NotRead('an unknown environment')
    self._expect('}')
