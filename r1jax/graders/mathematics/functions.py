"""Parses commands and functions: fractions, roots, sines, logarithms, sums."""

from r1jax.graders.mathematics import lexer
from r1jax.graders.mathematics.brackets import BracketParser
from r1jax.graders.mathematics.nodes import (
  Node,
  NotRead,
  Number,
  Operation,
  Sequence,
  Symbol,
)

FUNCTIONS = frozenset(
  'sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh '
  'tanh coth sech csch arsinh arcosh artanh log ln lg exp'.split()
)
_LISTED = frozenset('min max gcd lcm det floor ceil abs Re Im arg deg'.split())
# Operators with bounds whose values are not computed, but for two of them.
_BIG = frozenset(
  'sum prod int iint iiint oint lim limsup liminf bigcup bigcap'.split()
)
_INVERSE = {
  'sin': 'arcsin',
  'cos': 'arccos',
  'tan': 'arctan',
  'cot': 'arccot',
  'sec': 'arcsec',
  'csc': 'arccsc',
}
_PAIRS = {'langle': 'rangle', 'lfloor': 'rfloor', 'lceil': 'rceil'}
_SYMBOLS = frozenset(
  'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi '
  'rho sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma '
  'Upsilon Phi Psi Omega ell hbar infty emptyset partial nabla imath jmath '
  'aleph prime angle triangle'.split()
)
_OTHER_FACTORS = frozenset(
  'frac sqrt binom ldots mathbb begin operatorname'.split()
)
_ACCENTS = frozenset(
  'overline bar vec hat tilde overrightarrow widehat dot ddot check mathring'.split()
)
_ONE = lexer.number('1')[0]
_TEN = lexer.number('10')[0]


class FunctionParser(BracketParser):
  """The part of the parser that reads commands."""

  def _command(self, name: str) -> Node:
    if name == 'frac':
      over = self._argument()
      return Operation('div', (over, self._argument()))
    if name == 'sqrt':
      return self._root()
    if name == 'binom':
      return self._binomial()
    if name in FUNCTIONS:
      return self._function(name)
    if name in _LISTED:
      return self._listed(name)
    if name == 'operatorname':
      return self._listed('the function ' + self._subscript())
    if name in _BIG:
      return self._big(name)
    if name in _PAIRS:
      items = self._items(_PAIRS[name])
      self._expect(_PAIRS[name])
      if name == 'langle':
        return Sequence('<>', tuple(items))
      if len(items) != 1:
        raise NotRead('the floor of several values')
      return Operation(name[1:], (items[0],))
    if name in ('vert', 'mid'):
      return self._bars('vert')
    if name == 'mathbb':
      return Symbol(f'\\mathbb{{{self._subscript()}}}')
    if name in _ACCENTS:
      accented = self._subscript()
      return self._subscripted(f'\\{name}{{{accented}}}')
    if name == 'emptyset':
      return Sequence('{}', ())
    if name == 'begin':
      return self._matrix()
    if name == 'ldots':
      return Symbol('\\ldots')
    if name in _SYMBOLS:
      return self._subscripted('\\' + name)
    raise NotRead(f'unknown command \\{name}')

  def _root(self) -> Node:
    if self._at('sign', '['):
      self._pop()
      index = self.sum()
      self._expect(']')
      return Operation('root', (self._argument(), index))
    if self._peek().kind == 'number':  # √12 is not √1 · 2.
      return Operation('sqrt', (self._number(self._pop()),))
    return Operation('sqrt', (self._primary(),))

  def _binomial(self) -> Node:
    if self._at('sign', '('):  # binom(5, 2)
      items = self._primary()
      if isinstance(items, Sequence) and len(items.items) == 2:
        return Operation('binom', items.items)
      raise NotRead('a binomial without two arguments')
    above = self._argument()
    return Operation('binom', (above, self._argument()))

  def _function(self, name: str) -> Node:
    base = power = None
    while self._peek().text in ('^', '_') and self._peek().kind == 'sign':
      if self._pop().text == '^':
        power = self._exponent()
      else:
        base = self._log_base()
    if power == Operation('neg', (Number(_ONE),)) and name in _INVERSE:
      name, power = _INVERSE[name], None
    argument = self._function_argument()
    if name == 'log' and base is not None:
      node = Operation('log', (argument, base))
    else:
      node = Operation({'log': 'ln'}.get(name, name), (argument,))
      if name in ('log', 'lg'):
        node = Operation(name, (argument, Number(_TEN)))
      if base is not None:
        raise NotRead(f'a base of {name}')
    return node if power is None else Operation('pow', (node, power))

  def _log_base(self) -> Node:
    token = self._peek()
    if token.kind == 'number' and len(token.text) > 1:
      behind = self._second()
      if behind.kind == 'number' or behind.text in ('(', '{'):
        return self._number(self._pop())
    return self._argument()

  def _function_argument(self) -> Node:
    token = self._peek()
    if token.kind == 'sign' and token.text in ('(', '{', '['):
      return self._one(self._primary())
    self._enter()
    if token.kind == 'sign' and token.text == '-':
      self._pop()
      return self._closed(Operation('neg', (self.product(in_function=True),)))
    return self._closed(self.product(in_function=True))

  def _closed(self, node: Node) -> Node:
    self.depth -= 1
    return node

  def _one(self, node: Node) -> Node:
    if isinstance(node, Sequence):
      raise NotRead('a function of several values')
    return node

  def _listed(self, name: str) -> Node:
    if self._at('sign', '.'):
      self._pop()
    if self._at('sign', '('):
      self._pop()
      items = self._items(')')
      self._expect(')')
      return Operation(name, tuple(items))
    node = self._primary()
    if isinstance(node, Sequence) and node.brackets in ('{}', ''):
      return Operation(name, node.items)
    return Operation(name, (node,))

  def _big(self, name: str) -> Node:
    bounds: dict[str, Node] = {}
    while self._peek().text in ('^', '_') and self._peek().kind == 'sign':
      mark = self._pop().text
      bounds[mark] = self._group() if self._at_group() else self._argument()
    self._enter()
    body = self.product()
    self.depth -= 1
    parts = [bounds[mark] for mark in '_^' if mark in bounds]
    kind = f'{name}:{"".join(sorted(bounds))}'
    return Operation(kind, (body, *parts))

  def _at_group(self) -> bool:
    if self._at('sign', '{'):
      self._pop()
      return True
    return False


def begins_factor(name: str) -> bool:
  """Whether a command stands for a value or begins one."""
  return name in _BEGINNINGS


_BEGINNINGS = (
  FUNCTIONS | _LISTED | _BIG | _SYMBOLS | _ACCENTS | _OTHER_FACTORS | {*_PAIRS}
)
