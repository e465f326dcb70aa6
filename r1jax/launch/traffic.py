"""Counts what a compiled program moves: HBM traffic and collectives.

The numbers are those of one device. HBM traffic is an estimate from below:
every operand and every result of an instruction, or of a fusion, that lies in
HBM moves once; of an operand that is only sliced, the slices move.
"""

from collections import defaultdict
from collections.abc import Iterator
import dataclasses
import math
import re

import numpy as np

from r1jax.launch import hlo
from r1jax.launch.hlo import Instruction, Module

_ITEM_BYTES = {'pred': 1.0, 's4': 0.5, 'u4': 0.5, 'token': 0.0}
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
# Instructions that move nothing, or whose second half counts.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id '
  'replica-id iota copy-done async-done async-update opt-barrier domain '
  'get-dimension-size add-dependency'.split()
)
# Instructions that keep all numbers of their operand, one by one.
_MOVES = frozenset(
  ('bitcast', 'reshape', 'copy', 'convert', 'transpose', 'parameter')
)
# On several slices XLA hands what goes between them to a runtime of its own.
_BETWEEN_SLICES = '_xla_megascale_transfer_type'
COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """A kind of communication among the same devices.

  Attributes:
    kind: One of COLLECTIVES.
    group: Ids of the devices of one group, within a slice; () between slices.
    slices: Number of slices that exchange; 1 within one.
  """

  kind: str
  group: tuple[int, ...]
  slices: int = 1


@dataclasses.dataclass
class Traffic:
  """Bytes that one device moves.

  Attributes:
    hbm_bytes: Bytes that it reads from its HBM and writes to it.
    sent_bytes: Bytes that it sends to other devices, by collective: for n
      devices, (n − 1) / n of what an all-gather, a reduce-scatter or an
      all-to-all makes or takes, and twice that for an all-reduce.
  """

  hbm_bytes: float = 0.0
  sent_bytes: dict[Collective, float] = dataclasses.field(
    default_factory=lambda: defaultdict(float)
  )

  def add(self, other: 'Traffic', times: float):
    """Adds another traffic so many times."""
    self.hbm_bytes += times * other.hbm_bytes
    for key, size in other.sent_bytes.items():
      self.sent_bytes[key] += times * size


def count(
  module: Module, unknown_trips: float = 1.0, fill: float = 1.0
) -> Traffic:
  """Returns what one device moves in one call of a program.

  Args:
    module: The program.
    unknown_trips: How often loops run whose length only the data knows.
    fill: The share of its iterations that a loop of at most so many runs.
  """
  return _Counter(module, unknown_trips, fill).of(module.entry)


class _Counter:
  """Sums the traffic of computations, each of which is visited once."""

  def __init__(self, module: Module, unknown_trips: float, fill: float):
    self._module, self._seen = module, dict[tuple[str, bool], Traffic]()
    self._unknown_trips, self._fill = unknown_trips, fill

  def of(self, computation: str, fused: bool = False) -> Traffic:
    """Returns the traffic of a computation; of a fused one its collectives."""
    key = computation, fused
    if key not in self._seen:
      total = self._seen[key] = Traffic()
      for instruction in self._module.instructions(computation).values():
        self._add(total, computation, instruction, fused)
    return self._seen[key]

  def _add(
    self, total: Traffic, place: str, instruction: Instruction, fused: bool
  ):
    opcode, called = instruction.opcode, hlo.called(instruction)
    kind = opcode.removesuffix('-start')
    if kind in COLLECTIVES:
      sent = _sent(kind, instruction, self._module.instructions(place), place)
      if sent is not None:
        total.sent_bytes[sent[0]] += sent[1]
    elif opcode == 'send' and _BETWEEN_SLICES in instruction.rest:
      key, size = _sent_to_slices(instruction, self._module.instructions(place))
      total.sent_bytes[key] += size
    elif opcode == 'while':
      times = self._module.trips(instruction, self._unknown_trips, self._fill)
      for name in called:
        total.add(self.of(name, fused), times)
      return
    elif opcode == 'conditional':
      branches = [self.of(name, fused) for name in called]
      total.add(max(branches, key=lambda x: x.hbm_bytes), 1)
      return
    elif opcode in ('call', 'async-start'):
      for name in called:
        total.add(self.of(name, fused), 1)
      return
    elif opcode == 'fusion':
      for name in called:
        total.add(self.of(name, True), 1)
    if not fused and opcode not in _FREE and not opcode.endswith('-done'):
      total.hbm_bytes += self._hbm_bytes(place, instruction)

  def _hbm_bytes(self, place: str, instruction: Instruction) -> float:
    there = self._module.instructions(place)
    shapes = [
      there[name].shape if name in there else ''
      for name in instruction.operands
    ]
    opcode = instruction.opcode
    if opcode in ('dynamic-slice', 'slice', 'gather'):
      return 2 * _bytes(instruction.shape)
    if opcode == 'dynamic-update-slice':
      return 2 * _bytes(shapes[1])
    if opcode == 'scatter':
      return 2 * sum(map(_bytes, shapes[2:]))
    if opcode == 'copy-start':  # A tuple: to, from and a context.
      return _bytes(shapes[0]) + _first_bytes(instruction.shape)
    if opcode.endswith('-start'):
      return 2 * sum(map(_bytes, shapes))
    if opcode == 'fusion':
      return self._fusion_bytes(instruction, shapes)
    return sum(map(_bytes, shapes)) + _bytes(instruction.shape)

  def _fusion_bytes(self, instruction: Instruction, shapes: list[str]) -> float:
    (name, *_) = hlo.called(instruction)
    within = self._module.instructions(name)
    updated = _updated(self._module.root(name), within)
    total = 0.0
    for parameter in _parameters(within):
      if parameter.name in updated:
        continue  # It is changed in place.
      shape = shapes[int(parameter.rest)]
      sliced = self._sliced(name, parameter.name)
      total += _bytes(shape) if sliced is None else min(sliced, _bytes(shape))
    if updated:
      written = sum(_bytes(x, every=True) for x in updated.values())
      return total + min(2 * written, _bytes(instruction.shape) + written)
    return total + _bytes(instruction.shape)

  def _sliced(self, computation: str, name: str) -> float | None:
    """The bytes of the slices that a fusion reads of a value; None for all.

    A fusion computes only what it needs: of a value that is converted or moved
    and then sliced, the slices are read.
    """
    numbers, to_root = self._read(computation, name)
    if to_root:
      return None
    shape = self._module.instructions(computation)[name].shape
    whole = _numbers_of(shape)
    return numbers * _bytes(shape, every=True) / whole if whole else 0.0

  def _read(self, computation: str, name: str) -> tuple[float, bool]:
    """How many numbers of a value are read in slices, and if all are anyway."""
    total = 0.0
    root = self._module.root(computation).name
    if name == root:
      return 0.0, True
    for user in self._module.users(computation, name):
      if user.opcode in ('dynamic-slice', 'slice', 'gather'):
        if name in user.operands[1:]:
          return 0.0, True  # It is an index.
        total += _numbers_of(user.shape)
        continue
      if user.opcode == 'fusion':
        (inner, *_) = hlo.called(user)
        parameter = next(
          x.name
          for x in _parameters(self._module.instructions(inner))
          if user.operands[int(x.rest)] == name
        )
        part, passes = self._read(inner, parameter)
        total += part
        if not passes:
          continue
        if self._module.root(inner).opcode not in _MOVES:
          return 0.0, True
      elif user.opcode not in _MOVES:
        return 0.0, True
      part, to_root = self._read(computation, user.name)
      if to_root:
        return 0.0, True
      total += part
    return total, False


def _sizes(shape: str, every: bool = False) -> Iterator[float]:
  """The bytes of the arrays in a shape's text that lie in HBM, or of all."""
  for dtype, dims, layout in _ARRAY.findall(shape):
    space = re.search(r'S\((\d+)\)', layout)
    if space and space[1] != '0' and not every:
      continue
    width: float | None = _ITEM_BYTES.get(dtype)
    if width is None:
      bits = re.search(r'\d+', dtype)
      width = int(bits[0]) / 8 if bits else 0
    yield width * math.prod(int(x) for x in dims.split(',') if x)


def _bytes(shape: str, every: bool = False) -> float:
  return sum(_sizes(shape, every))


def _numbers_of(shape: str) -> int:
  """How many numbers the arrays in a shape's text have."""
  return sum(
    math.prod(int(x) for x in dims.split(',') if x)
    for _, dims, _ in _ARRAY.findall(shape)
  )


def _first_bytes(shape: str) -> float:
  return next(_sizes(shape.split('}', 1)[0] + '}'), 0.0)


def _parameters(within: dict[str, Instruction]) -> list[Instruction]:
  return [x for x in within.values() if x.opcode == 'parameter']


def _updated(
  root: Instruction, within: dict[str, Instruction]
) -> dict[str, str]:
  """Parameters that a fusion changes in place, and the shape of the update."""
  roots = [root]
  if root.opcode == 'tuple':
    roots = [within[name] for name in root.operands if name in within]
  found = {}
  for end in roots:
    while end.opcode in ('bitcast', 'reshape') and end.operands[0] in within:
      end = within[end.operands[0]]
    if end.opcode not in ('dynamic-update-slice', 'scatter'):
      continue
    target = within.get(end.operands[0])
    while target and target.opcode in ('bitcast', 'reshape'):
      target = within.get(target.operands[0])
    update = end.operands[1 if end.opcode == 'dynamic-update-slice' else -1]
    if target and target.opcode == 'parameter' and update in within:
      found[target.name] = within[update].shape
  return found


def _sent(
  kind: str, instruction: Instruction, there: dict[str, Instruction], place: str
) -> tuple[Collective, float] | None:
  """The collective and the bytes that one device sends; None for none."""
  taken = sum(
    _bytes(there[name].shape, every=True)
    for name in instruction.operands
    if name in there
  )
  if kind == 'collective-permute':
    pairs = np.array(_nested(_attribute(instruction, 'source_target_pairs')))
    moved = [tuple(pair) for pair in pairs if pair[0] != pair[1]]
    group = tuple(int(x) for x in moved[0]) if moved else ()
    return (Collective(kind, group), taken) if moved else None
  group = replica_groups(_attribute(instruction, 'replica_groups'))
  n = len(group)
  if n < 2:
    return None
  if kind == 'all-reduce' and 'all-reduce-scatter' in place:
    kind = 'reduce-scatter'  # A fusion that drops what a device does not need.
  return Collective(kind, group), _factor(kind, n) * taken


def _factor(kind: str, n: int) -> float:
  """How often one of n devices sends what it has, or the shares of it."""
  share = (n - 1) / n
  return {'all-gather': n * share, 'all-reduce': 2 * share}.get(kind, share)


def _sent_to_slices(
  instruction: Instruction, there: dict[str, Instruction]
) -> tuple[Collective, float]:
  """The exchange of slices that a `send` to their runtime asks for, and bytes."""
  taken = _bytes(there[instruction.operands[0]].shape, every=True)
  kind = re.search(rf'{_BETWEEN_SLICES}="(\w+)"', instruction.rest)
  if (
    kind and kind[1] == 'ONE_TO_ONE'
  ):  # Each device sends to one of another slice.
    return Collective('collective-permute', (), 2), taken
  target = re.search(r'_xla_megascale_target="\{([\d,]*)\}', instruction.rest)
  if kind is None or target is None:
    raise ValueError(
      f'a send to slices in an unknown form: {instruction.rest[:500]}'
    )
  name, slices = kind[1].lower().replace('_', '-'), len(target[1].split(','))
  return Collective(name, (), slices), _factor(name, slices) * taken


def _attribute(instruction: Instruction, name: str) -> str:
  """The text of an attribute up to the next one."""
  found = re.search(
    rf'\b{name}=(.*?)(?:, (?!device_ids)[a-z_]+=|$)',
    instruction.rest,
    re.DOTALL,
  )
  if found is None:
    raise ValueError(f'{instruction.opcode} without {name}')
  return found[1]


def _nested(text: str) -> list[list[int]]:
  return [
    [int(x) for x in group.split(',') if x]
    for group in re.findall(r'\{([\d, ]*)\}', text.strip()[1:-1])
  ]


def _numbers(text: str) -> list[int]:
  return [int(x) for x in text.split(',')]


def replica_groups(text: str) -> tuple[int, ...]:
  """Returns the first group of devices that an attribute lists.

  XLA writes groups in three ways: {{0,1},{2,3}}; [2,2]<=[4], the numbers below
  4 in rows; and mesh['x'=2,'y'=2] {'y'}, those that differ in y alone.

  Raises:
    ValueError: the text has another form.
  """
  text = text.strip()
  if iota := re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text):
    shape, dims, order = (
      _numbers(part) if part else None for part in iota.groups()
    )
    ids = np.arange(math.prod(dims or [])).reshape(dims).transpose(order)
    return tuple(ids.reshape(shape)[0].tolist())
  if mesh := re.match(
    r'mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?'
    r'\s*\{([^}]*)\}$',
    text,
  ):
    sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    names = re.findall(r"'([^']+)'", mesh[4])
    if sizes and all(name in sizes for name in names):
      ids = np.arange(math.prod(sizes.values()))
      if mesh[2]:
        order = _numbers(mesh[3]) if mesh[3] else None
        ids = ids.reshape(_numbers(mesh[2])).transpose(order)
      ids, axes = ids.reshape(list(sizes.values())), list(sizes)
      inner = [axes.index(name) for name in names]
      outer = [i for i in range(len(axes)) if i not in inner]
      rows = ids.transpose(outer + inner)
      rows = rows.reshape(-1, math.prod(sizes[name] for name in names))
      return tuple(rows[0].tolist())
  if text.startswith('{') and (groups := _nested(text)):
    return tuple(groups[0])
  raise ValueError(f'groups of devices in an unknown form: {text[:200]}')
