"""Zebra puzzles: one solution, no superfluous clue, grids of one split each."""

import itertools
import json

import numpy as np
import pytest

from r1jax import registry
from r1jax.data import datasets, splits
from r1jax.data.tasks import grid_solver, zebra
from r1jax.data.tasks.grid_solver import Clue
from r1jax.data.tasks.task import problem_at
from r1jax.data.text.response_formats import ResponseParser
from r1jax.graders import dispatch, grid_grader


def _brute_force(houses: int, attributes: int, clues) -> list[dict]:
  """Every solution, by trying all arrangements of all attributes."""
  orders = list(itertools.permutations(range(houses)))
  found = []
  for rows in itertools.product(orders, repeat=attributes):
    solution = {
      (a, i): house for a, row in enumerate(rows) for i, house in enumerate(row)
    }
    if all(clue.holds(solution) for clue in clues):
      found.append(solution)
  return found


def _sorted(solutions) -> list:
  return sorted(sorted(each.items()) for each in solutions)


def test_the_solver_finds_what_brute_force_finds():
  rng = np.random.default_rng(0)
  counts = set()
  for _ in range(40):
    houses, attributes = 3, 3
    clues = []
    for _ in range(rng.integers(1, 5)):
      (a, b), (i, j) = rng.integers(attributes, size=2), rng.integers(3, size=2)
      relation = str(rng.choice(list(grid_solver.RELATIONS)))
      one = relation in ('at', 'not_at')
      clues.append(
        Clue(
          relation,
          (int(a), int(i)),
          None if one else (int(b), int(j)),
          int(rng.integers(3)) if one else 1,
        )
      )
    found = list(grid_solver.solutions(houses, attributes, clues))
    assert _sorted(found) == _sorted(_brute_force(houses, attributes, clues))
    counts.add(min(len(found), 2))
  assert counts == {0, 1, 2}  # None, one and several were all among them.


@pytest.mark.parametrize('houses,attributes', [(2, 2), (2, 4), (3, 2), (3, 3)])
def test_a_puzzle_has_one_solution_and_needs_every_clue(houses, attributes):
  rng = np.random.default_rng(1)
  for _ in range(3):
    grid = zebra.sample_grid(rng, houses, attributes)
    clues = zebra.sample_clues(rng, grid)
    truth = {(a, i): i for a in range(attributes) for i in range(houses)}
    assert _brute_force(houses, attributes, clues) == [truth]
    for clue in clues:
      rest = [other for other in clues if other is not clue]
      assert len(_brute_force(houses, attributes, rest)) > 1


def test_the_largest_puzzles_have_one_solution():
  rng = np.random.default_rng(2)
  grid = zebra.sample_grid(rng, 6, 6)
  clues = zebra.sample_clues(rng, grid)
  assert len(list(grid_solver.solutions(6, 6, clues))) == 1
  short = list(itertools.islice(grid_solver.solutions(6, 6, clues[1:]), 2))
  assert len(short) == 2


def test_all_sizes_are_tasks_and_zebra_has_them_all():
  sizes = [f'zebra_{n}x{m}' for n in range(2, 7) for m in range(2, 7)]
  assert [x for x in registry.task if x.startswith('zebra_')] == sizes
  grid = json.loads(problem_at('zebra_5x4', splits.TRAIN, 0, 0).answer)
  assert len(grid) == 5 and {len(house) for house in grid.values()} == {4}
  sample, rng = registry.task.get('zebra').sample_solution, _rng(0)
  found = {(len(g['name']), len(g)) for g in (sample(rng) for _ in range(200))}
  assert found == set(itertools.product(range(2, 7), repeat=2))


def _rng(seed: int) -> np.random.Generator:
  return np.random.default_rng(seed)


def test_a_grid_belongs_to_one_split():
  def grids(split):
    return {
      problem_at('zebra_2x2', split, seed, i).answer
      for seed in (0, 1)
      for i in range(30)
    }

  train, held = grids(splits.TRAIN), grids(splits.HELD_OUT)
  assert not train & held and len(train) > 50 and len(held) > 30


def test_the_question_has_every_value_and_the_clues_are_true():
  problem = problem_at('zebra_4x3', splits.TRAIN, 0, 1)
  grid = json.loads(problem.answer)
  head, _, clues = problem.question.partition('Clues:')
  for house in grid.values():
    for name, value in house.items():
      line = next(x for x in head.split('\n') if x.startswith(f'- {name}:'))
      assert value in line.split(': ')[1].split(', ')
  assert '1. ' in clues and problem.answer not in problem.question


def test_every_cell_counts():
  prompts = datasets.SyntheticPrompts(
    'zebra_3x3', splits.HELD_OUT, 0, registry.template.get('r1_zero_brief')
  )
  gold, task = prompts[0].answer, registry.task.get('zebra_3x3')
  assert prompts[0].source == 'zebra'
  problem = problem_at('zebra_3x3', splits.HELD_OUT, 0, 0)
  wrong = task.wrong_answer(_rng(0), problem)
  grid = json.loads(gold)
  short = {'House 1': grid['House 1'], 'House 2': grid['House 2']}
  cases = [
    (gold, 'correct'),
    (wrong, 'wrong'),
    (f'It is {{so}}:\n```json\n{json.dumps(grid, indent=1)}\n```', 'correct'),
    (json.dumps({'reasoning': 'x', 'solution': grid}), 'correct'),
    (gold.upper().replace('HOUSE', 'house'), 'correct'),
    (f'First {wrong}, but no: {gold}', 'correct'),
    (f'First {gold}, but no: {wrong}', 'wrong'),
    (json.dumps(short), 'wrong'),
    (json.dumps({**grid, 'House 4': grid['House 1']}), 'wrong'),
    ('{}', 'unparsable'),
    ('House 1: Ann', 'unparsable'),
    (gold[:-1], 'unparsable'),
    ('{"House 1": ' * 3000, 'unparsable'),
    (None, 'unparsable'),
  ]
  verdicts = dispatch.verdicts([(text, gold, 'zebra') for text, _ in cases])
  assert verdicts == [verdict for _, verdict in cases]
  assert dispatch.compares_answers('zebra', gold)
  assert grid_grader.grid(gold) == grid_grader.grid(f' {gold} ')


def test_the_grid_is_found_where_a_format_wants_a_box():
  gold = problem_at('zebra_2x2', splits.TRAIN, 0, 0).answer
  parser = ResponseParser(registry.response_format.get('boxed'))
  parsed = parser.parse(f'<think>Hm.</think>\nSo:\n{gold}')
  assert parsed.answer is None
  text = dispatch.graded_text(parsed, 'zebra')
  assert dispatch.verdicts([(text, gold, 'zebra')]) == ['correct']
  assert dispatch.graded_text(parsed, 'math') is None
