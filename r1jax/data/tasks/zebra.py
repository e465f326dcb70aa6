"""Zebra puzzles: who lives where, by clues such as 'Ann lives left of the baker'.

Every puzzle has one solution, and no clue can be left out. The task zebra_NxM
has N houses and M attributes, 2 to 6 each, and zebra has all these 25 sizes
equally often. Sizes and the answer, JSON of the whole grid, are those of
ZebraLogic (arXiv 2502.01100); puzzles and words are of our own.

  There are 2 houses in a row, numbered 1 to 2 from left to right. …
  1. Ann lives directly left of the baker.
→ {"House 1": {"name": "Ann", "job": "pilot"}, "House 2": {…}}

A puzzle belongs to the split of its solution, so that the same grid never
stands behind a training puzzle and a held-out one.
"""

import functools
import itertools
import json

import numpy as np

from r1jax import registry
from r1jax.data.tasks import grid_solver
from r1jax.data.tasks.grid_solver import Clue, Value
from r1jax.data.tasks.task import Problem, Task

_ALL_SIZES = [(n, m) for n in range(2, 7) for m in range(2, 7)]
# Attributes, how their values are called in clues, and the values.
_ATTRIBUTES = {
  'name': ('{}', 'Ann Ben Carl Dora Eva Finn Gina Hugo Ida Jack Kim Leo'),
  'job': (
    'the {}',
    'baker pilot nurse farmer judge tailor miner actor potter sailor',
  ),
  'drink': (
    'the one who drinks {}',
    'tea coffee milk water juice cocoa cider lemonade',
  ),
  'pet': (
    'the one with the {}',
    'cat dog parrot horse rabbit goldfish tortoise hamster',
  ),
  'color': (
    'the one in the {} house',
    'red blue green white yellow purple orange brown',
  ),
  'fruit': (
    'the one who eats {}',
    'apples pears plums figs grapes cherries melons mangos',
  ),
}
_TEXTS = {
  'at': '{0} lives in house {2}.',
  'not_at': '{0} does not live in house {2}.',
  'same': '{0} is {1}.',
  'directly_left': '{0} lives directly left of {1}.',
  'left': '{0} lives somewhere left of {1}.',
  'next_to': '{0} and {1} live next to each other.',
  'between': 'there are {2} houses between {0} and {1}.',
}
# How often each relation is tried where a clue is wanted.
_WEIGHTS = {
  'at': 1,
  'not_at': 2,
  'same': 4,
  'directly_left': 4,
  'left': 3,
  'next_to': 3,
  'between': 2,
}
Grid = dict[str, tuple[str, ...]]  # Values of each attribute, house by house.


def sample_grid(rng: np.random.Generator, houses: int, attributes: int) -> Grid:
  """Samples a solution: attributes, the first of them names, and their values."""
  others = list(_ATTRIBUTES)[1:]
  chosen = ['name', *rng.choice(others, attributes - 1, replace=False)]
  return {
    str(name): tuple(
      map(str, rng.choice(_ATTRIBUTES[name][1].split(), houses, replace=False))
    )
    for name in chosen
  }


def sample_clues(rng: np.random.Generator, grid: Grid) -> list[Clue]:
  """Samples clues of which a grid is the only solution and none is superfluous.

  Value (a, i) is the value of attribute a that stands in house i of the grid.
  Clues that rule out a wrong solution are added until there is none, and then
  those are left out without which there is still none.
  """
  houses, attributes = len(next(iter(grid.values()))), len(grid)
  truth = {(a, i): i for a in range(attributes) for i in range(houses)}
  clues: list[Clue] = []
  candidates = _true_clues(houses, attributes)
  while wrong := _other_solution(truth, houses, attributes, clues):
    clues.append(_ruling_out(rng, candidates, wrong))
  for clue in list(clues):
    rest = [other for other in clues if other != clue]
    if not _other_solution(truth, houses, attributes, rest):
      clues = rest
  return clues


def _other_solution(truth, houses, attributes, clues) -> dict | None:
  """Returns a solution that is not the true one; None if there is none."""
  found = grid_solver.solutions(houses, attributes, clues)
  return next((each for each in found if each != truth), None)


@functools.cache
def _true_clues(houses: int, attributes: int) -> dict[str, list[Clue]]:
  """Returns the clues that hold where every value (a, i) stands in house i."""
  values: list[Value] = [
    (a, i) for a in range(attributes) for i in range(houses)
  ]
  truth = {value: value[1] for value in values}
  found: dict[str, list[Clue]] = {name: [] for name in grid_solver.RELATIONS}
  for value, house in itertools.product(values, range(houses)):
    relation = 'at' if value[1] == house else 'not_at'
    found[relation].append(Clue(relation, value, number=house))
  for first, second in itertools.permutations(values, 2):
    for relation in ('same', 'directly_left', 'left', 'next_to'):
      clue = Clue(relation, first, second)
      if clue.holds(truth) and (relation != 'same' or first[0] != second[0]):
        found[relation].append(clue)
    distance = abs(first[1] - second[1])
    if distance > 1:
      found['between'].append(
        Clue('between', first, second, number=distance - 1)
      )
  return {name: clues for name, clues in found.items() if clues}


def _ruling_out(rng: np.random.Generator, candidates, wrong) -> Clue:
  """Samples a true clue that is false of a wrong solution."""
  names = list(candidates)
  weights = np.array([_WEIGHTS[name] for name in names], float)
  while True:
    clues = candidates[names[rng.choice(len(names), p=weights / weights.sum())]]
    clue = clues[rng.integers(len(clues))]
    if not clue.holds(wrong):
      return clue


def pose(rng: np.random.Generator, grid: Grid) -> Problem:
  """Returns a puzzle with the grid as its only solution."""
  clues = sample_clues(rng, grid)
  houses = len(grid['name'])
  lines = [
    f'There are {houses} houses in a row, numbered 1 to {houses} from left to '
    'right. One person lives in each. Each attribute has a different value in '
    'each house:'
  ]
  lines += [f'- {name}: {", ".join(sorted(grid[name]))}' for name in grid]
  lines += ['', 'Clues:']
  for number, clue in enumerate(rng.permutation(len(clues)), 1):
    lines.append(f'{number}. {_sentence(grid, clues[clue])}')
  form = {'House 1': dict.fromkeys(grid, '...')}
  lines += [
    '',
    'Find every attribute of every house. Answer with JSON of this form, with '
    f'House 1 to House {houses}:',
    json.dumps(form),
  ]
  return Problem(question='\n'.join(lines), answer=_answer(grid))


def _sentence(grid: Grid, clue: Clue) -> str:
  names = [_called(grid, value) for value in (clue.first, clue.second) if value]
  number = clue.number + (clue.second is None)  # Houses count from 1.
  text = _TEXTS[clue.relation].format(names[0], names[-1], number)
  text = text.replace('are 1 houses', 'is 1 house')
  return text[0].upper() + text[1:]


def _called(grid: Grid, value: Value) -> str:
  name = list(grid)[value[0]]
  return _ATTRIBUTES[name][0].format(grid[name][value[1]])


def _answer(grid: Grid) -> str:
  houses = range(len(grid['name']))
  return json.dumps(
    {f'House {i + 1}': {name: grid[name][i] for name in grid} for i in houses}
  )


def _wrong_answer(rng: np.random.Generator, problem: Problem) -> str:
  """Swaps the values of one attribute in two houses."""
  grid = json.loads(problem.answer)
  first, second = rng.choice(list(grid), 2, replace=False)
  name = str(rng.choice(list(grid['House 1'])))
  one, other = grid[first], grid[second]
  one[name], other[name] = other[name], one[name]
  return json.dumps(grid)


def _task(sizes: list[tuple[int, int]]) -> Task:
  def sample_solution(rng: np.random.Generator) -> Grid:
    return sample_grid(rng, *sizes[rng.integers(len(sizes))])

  return Task(
    lambda rng: pose(rng, sample_solution(rng)),
    wrong_answer=_wrong_answer,
    grader='zebra',
    sample_solution=sample_solution,
    pose=pose,
  )


registry.task('zebra')(_task(_ALL_SIZES))
for _size in _ALL_SIZES:
  registry.task('zebra_{}x{}'.format(*_size))(_task([_size]))
