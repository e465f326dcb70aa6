"""Reads the text of a compiled program: its computations and their loops.

XLA's own count visits the body of a loop once. `Module.trips` says how often it
runs. That is read from the loop's condition, or from a name scope around the
loop, `jax.named_scope('loop_32')`; `upto_32` says at most so often.
"""

from collections import defaultdict
import dataclasses
import re

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.-]+) = (.*)$')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'%?([\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
# At the end: the name of an outer loop is part of an inner one's.
_SCOPE = re.compile(r'\b(loop|upto)_(\d+(?:\.\d+)?)/while$')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of HLO text.

  Attributes:
    name: Its name.
    shape: The text of its result's shape, a tuple's too.
    opcode: Its operation.
    operands: Names of its operands.
    rest: The text after the operands; for a constant its value.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str


class Module:
  """A compiled program, read from its text."""

  def __init__(self, text: str):
    """Reads the text of a module after XLA's optimizations."""
    self._computations: dict[str, dict[str, Instruction]] = {}
    self._roots: dict[str, Instruction] = {}
    self.entry = ''
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      if head := _COMPUTATION.match(line):
        current = self._computations[head[2]] = {}
        place = head[2]
        self.entry = place if head[1] else self.entry
      elif found := _INSTRUCTION.match(line):
        instruction = _parse(found[2], found[3])
        if instruction is not None:
          current[found[2]] = instruction
          if found[1]:
            self._roots[place] = instruction
    if not self.entry:
      raise ValueError('the text holds no HLO module')
    self._callers = self._while_callers()
    self._users: dict[str, dict[str, list[Instruction]]] = {}
    for place, instructions in self._computations.items():
      users = self._users[place] = defaultdict(list)
      for instruction in instructions.values():
        for operand in dict.fromkeys(instruction.operands):
          users[operand].append(instruction)

  def _while_callers(self) -> dict[str, tuple[str, Instruction]]:
    """The computation and the loop that a body or a condition belongs to."""
    return {
      name: (place, instruction)
      for place, instructions in self._computations.items()
      for instruction in instructions.values()
      if instruction.opcode == 'while'
      for name in called(instruction)
    }

  def instructions(self, computation: str) -> dict[str, Instruction]:
    """Returns the instructions of a computation, by name, in order."""
    return self._computations[computation]

  def root(self, computation: str) -> Instruction:
    """Returns the instruction whose result a computation returns."""
    return self._roots[computation]

  def users(self, computation: str, name: str) -> list[Instruction]:
    """Returns the instructions that read a value."""
    return self._users[computation].get(name, [])

  def trips(self, loop: Instruction, unknown: float, fill: float) -> float:
    """Returns how often the body of a while loop runs; see traffic.count."""
    if scope := _SCOPE.search(op_name(loop)):
      return float(scope[2]) * (fill if scope[1] == 'upto' else 1)
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
      return float(known[1])
    condition = re.search(r'condition=%?([\w.-]+)', loop.rest)
    bounds = self._bounds(condition[1]) if condition else []
    return min(bounds) if bounds else unknown

  def _bounds(self, condition: str) -> list[float]:
    """The constants below which a condition keeps a counter."""
    bounds = []
    for instruction in self._computations[condition].values():
      if instruction.opcode != 'compare':
        continue
      if 'direction=LT' not in instruction.rest:
        continue
      bound = self._constant(condition, instruction.operands[1])
      if bound is not None:
        bounds.append(bound)
    return bounds

  def _constant(self, place: str, name: str) -> float | None:
    """The value of a scalar that is constant, through loops that carry it."""
    for _ in range(64):
      instruction = self._computations[place].get(name)
      if instruction is None:
        return None
      if instruction.opcode == 'constant':
        number = re.match(r'-?\d+$', instruction.rest)
        return float(number[0]) if number else None
      if instruction.opcode in ('copy', 'bitcast', 'copy-done', 'copy-start'):
        name = instruction.operands[0]
        continue
      if instruction.opcode != 'get-tuple-element':
        return None
      source = self._computations[place].get(instruction.operands[0])
      index = re.search(r'index=(\d+)', instruction.rest)
      if source is None or index is None:
        return None
      if source.opcode == 'tuple':
        name = source.operands[int(index[1])]
      elif source.opcode == 'parameter' and place in self._callers:
        place, loop = self._callers[place]
        source = self._computations[place].get(loop.operands[0])
        if source is None or source.opcode != 'tuple':
          return None
        name = source.operands[int(index[1])]
      else:
        return None
    return None


def _parse(name: str, text: str) -> Instruction | None:
  """Reads `shape opcode(operands), rest`; None if it is something else."""
  text = re.sub(r'/\*.*?\*/', '', text)
  end = _closing(text, 0) + 1 if text.startswith('(') else text.find(' ')
  shape, tail = text[:end], text[end:].lstrip()
  opcode, bracket, _ = tail.partition('(')
  if not bracket or not re.fullmatch(r'[a-z][\w-]*', opcode):
    return None
  close = _closing(tail, len(opcode))
  inside, rest = tail[len(opcode) + 1 : close], tail[close + 1 :]
  if opcode in ('constant', 'parameter'):
    return Instruction(name, shape, opcode, (), inside)
  operands = tuple(re.findall(r'%([\w.-]+)', inside))
  return Instruction(name, shape, opcode, operands, rest)


def _closing(text: str, start: int) -> int:
  """The index of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise ValueError(f'a bracket is not closed: {text[:80]}')


def called(instruction: Instruction) -> list[str]:
  """Returns the computations that an instruction calls."""
  names = _CALLED.findall(instruction.rest)
  if branches := _BRANCHES.search(instruction.rest):
    names += re.findall(r'%?([\w.-]+)', branches[1])
  return names


def op_name(instruction: Instruction) -> str:
  """Returns the name scopes that an instruction comes from; '' without."""
  found = re.search(r'op_name="([^"]*)"', instruction.rest)
  return found[1] if found else ''
