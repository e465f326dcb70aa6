"""Solves logic grid puzzles: houses in a row, values that each stand in one.

A value is (attribute, number) with numbers from 0, and stands in a house from 0
to n - 1. The values of one attribute stand in different houses. Clues are
relations of one value, or of two. The solver keeps a bit mask of the possible
houses of each value, rules houses out until nothing changes, and then tries the
houses of the value that has the fewest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools

Value = tuple[int, int]
Solution = Mapping[Value, int]

# Each relation says whether a clue holds for the houses of its values. The last
# argument is the number that unary clues and distances have.
RELATIONS: dict[str, Callable[[int, int, int], bool]] = {
  'at': lambda x, _, house: x == house,
  'not_at': lambda x, _, house: x != house,
  'same': lambda x, y, _: x == y,
  'directly_left': lambda x, y, _: y - x == 1,
  'left': lambda x, y, _: x < y,
  'next_to': lambda x, y, _: abs(x - y) == 1,
  'between': lambda x, y, houses: abs(x - y) == houses + 1,
}


@dataclasses.dataclass(frozen=True)
class Clue:
  """A statement about one value, or about two.

  Attributes:
    relation: One of RELATIONS.
    first: A value.
    second: The other value, None in 'at' and 'not_at'.
    number: The house of 'at' and 'not_at', from 0; the number of houses in
      between for 'between'.
  """

  relation: str
  first: Value
  second: Value | None = None
  number: int = 0

  def holds(self, solution: Solution) -> bool:
    """Returns whether the clue is true of a solution."""
    other = solution[self.second] if self.second else 0
    return RELATIONS[self.relation](solution[self.first], other, self.number)


def solutions(
  houses: int, attributes: int, clues: Sequence[Clue]
) -> Iterator[dict[Value, int]]:
  """Yields every solution of a puzzle, each once.

  Args:
    houses: Number of houses, and of values of each attribute.
    attributes: Number of attributes.
    clues: Clues that a solution satisfies.
  """
  groups = [
    [attribute * houses + i for i in range(houses)]
    for attribute in range(attributes)
  ]
  full = (1 << houses) - 1
  masks = [full] * (houses * attributes)
  arcs: list[tuple[int, int, tuple[int, ...]]] = []
  for clue in clues:
    x = clue.first[0] * houses + clue.first[1]
    if clue.second is None:
      masks[x] &= _support(houses, clue.relation, clue.number, False)[full]
      continue
    y = clue.second[0] * houses + clue.second[1]
    key = houses, clue.relation, clue.number
    arcs += [(x, y, _support(*key, True)), (y, x, _support(*key, False))]
  for found in _search(masks, groups, arcs):
    yield {
      (attribute, i): found[group[i]].bit_length() - 1
      for attribute, group in enumerate(groups)
      for i in range(houses)
    }


@functools.cache
def _support(
  houses: int, relation: str, number: int, forward: bool
) -> tuple[int, ...]:
  """Returns, for each mask of one value, the houses left to the other value.

  Forward, the mask is of the first value and the houses are of the second.
  """
  holds = RELATIONS[relation]
  allowed = []
  for house in range(houses):
    mask = 0
    for other in range(houses):
      pair = (house, other) if forward else (other, house)
      mask |= holds(*pair, number) << other
    allowed.append(mask)
  table = []
  for mask in range(1 << houses):
    union = 0
    for house in range(houses):
      if mask >> house & 1:
        union |= allowed[house]
    table.append(union)
  return tuple(table)


def _search(masks, groups, arcs) -> Iterator[list[int]]:
  """Yields the masks of every solution."""
  if not _propagate(masks, groups, arcs):
    return
  open_values = [
    (mask.bit_count(), x) for x, mask in enumerate(masks) if mask & (mask - 1)
  ]
  if not open_values:
    yield masks
    return
  _, x = min(open_values)
  mask = masks[x]
  while mask:
    bit = mask & -mask
    mask ^= bit
    branch = masks.copy()
    branch[x] = bit
    yield from _search(branch, groups, arcs)


def _propagate(masks: list[int], groups, arcs) -> bool:
  """Rules out houses until nothing changes; False if a value has none left."""
  changed = True
  while changed:
    changed = False
    for x, y, table in arcs:
      left = masks[y] & table[masks[x]]
      if left != masks[y]:
        if not left:
          return False
        masks[y], changed = left, True
    for group in groups:
      once = twice = taken = 0  # Houses that one value can have, and several.
      for x in group:
        mask = masks[x]
        twice |= once & mask
        once |= mask
        if not mask & (mask - 1):
          if taken & mask:
            return False
          taken |= mask
      if once != (1 << len(group)) - 1:
        return False
      lone = once & ~twice
      for x in group:
        mask = masks[x]
        if mask & (mask - 1):
          left = mask & lone or mask & ~taken
          if left & (left - 1) and mask & lone:
            return False  # Two houses have no value but this one.
          if left != mask:
            if not left:
              return False
            masks[x], changed = left, True
  return True
