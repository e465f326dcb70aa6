"""A batch has time for honest programs, and not more than it may take for loops."""

import heapq
import math
import random

import pytest

from r1jax.graders.code_budget import BatchBudget

START_SECS = 0.008
LOOP = math.inf


def _simulate(
  programs: list[list[float]],
  kinds: list,
  num_slots: int,
  case_secs: float = 5.0,
) -> tuple[list[bool], float]:
  """Runs programs, each a list of the seconds of its cases, in virtual time.

  Returns:
    Whether each program finished, and the time of the batch.
  """
  budget = BatchBudget(kinds, num_slots, case_secs)
  cases = [list(program) for program in programs]
  used, finished = [0.0] * len(cases), [False] * len(cases)
  now, attempts = 0.0, budget.first_round()
  while attempts:
    slots = [now] * num_slots
    for attempt in attempts:
      index, start = attempt.index, heapq.heappop(slots)
      secs = attempt.secs or budget.screening_secs(index)
      if secs:
        limit = min(secs, case_secs)
        took = wasted = 0.0
        count = 0
        while cases[index] and not wasted:
          if cases[index][0] > limit:
            wasted = limit
          else:
            took += cases[index].pop(0)
            count += 1
        budget.record(index, count, took, wasted)
        used[index] += took
        if not wasted or limit == case_secs:
          finished[index] = not wasted
          budget.finish(index, used[index], timed_out=bool(wasted))
        start += START_SECS + took + wasted
      heapq.heappush(slots, start)
    now = max(slots)
    attempts = budget.next_round()
  return finished, now


def _clean_secs(programs, num_slots: int) -> float:
  """The time of the batch if its loops took as long as the mean of the others."""
  honest = [sum(program) for program in programs if LOOP not in program]
  mean = sum(honest) / len(honest) if honest else START_SECS
  return (mean + START_SECS) * math.ceil(len(programs) / num_slots)


@pytest.mark.parametrize('num_slots', [1, 2, 4, 16])
@pytest.mark.parametrize('share', [0.05, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize('count', [1, 8, 64])
@pytest.mark.parametrize('secs', [0.001, 0.02])
def test_loops_neither_hide_nor_delay_the_rest(secs, count, share, num_slots):
  num_loops = math.ceil(share * count)
  programs = [[LOOP]] * num_loops + [[secs]] * (count - num_loops)
  for seed in range(3):
    random.Random(seed).shuffle(programs)
    finished, took = _simulate(programs, [0] * count, num_slots)
    assert finished == [LOOP not in program for program in programs]
    # A search that began late adds up to 1.6 s; on one slot nothing overlaps.
    late_secs = 1.7 if num_slots > 1 else 4.0
    assert took <= 3 * _clean_secs(programs, num_slots) + 5.0 + late_secs


@pytest.mark.parametrize('num_slots', [2, 4, 16])
@pytest.mark.parametrize('share', [0.05, 0.25, 0.5])
@pytest.mark.parametrize('count', [8, 64, 512])
def test_slow_programs_among_loops_have_time(count, share, num_slots):
  num_loops = math.ceil(share * count)
  programs = [[LOOP]] * num_loops + [[0.3]] * (count - num_loops)
  for seed in range(3):
    random.Random(seed).shuffle(programs)
    finished, took = _simulate(programs, [0] * count, num_slots)
    assert finished == [LOOP not in program for program in programs]
    assert took <= 1.4 * (3 * _clean_secs(programs, num_slots) + 5.0)


@pytest.mark.parametrize('num_slots', [1, 2, 16])
@pytest.mark.parametrize(
  'program',
  [
    [0.001] * 10,
    [4.9],
    [1.0],
    [0.1] * 50,
    [0.01] * 5 + [2.0] * 3,
    [0.005, 4.0],
  ],
)
def test_honest_programs_have_time_however_slow_they_are(program, num_slots):
  finished, took = _simulate([program] * 64, list(range(64)), num_slots)
  assert all(finished)
  assert took <= 3 * _clean_secs([program] * 64, num_slots) + 5.0


@pytest.mark.parametrize('seed', range(20))
def test_programs_of_many_speeds_have_time(seed):
  rng = random.Random(seed)
  programs = [
    [min(4.9, rng.lognormvariate(-4, 1.5)) for _ in range(rng.randint(1, 20))]
    for _ in range(256)
  ]
  finished, took = _simulate(programs, [i // 16 for i in range(256)], 2)
  assert all(finished)
  assert took <= 3 * _clean_secs(programs, 2) + 5.0


def test_a_slow_problem_among_fast_ones_is_looked_at_first():
  """The full limits go to the tests that no program has finished."""
  programs = [[0.01]] * 24 + [[LOOP]] * 24 + [[3.0]] * 16
  kinds = [0] * 48 + [1] * 16
  finished, took = _simulate(programs, kinds, 2)
  assert finished == [LOOP not in program for program in programs]
  assert took <= 3 * _clean_secs(programs, 2) + 5.0


def test_a_program_alone_has_its_full_limits():
  budget = BatchBudget(['a', 'b'], num_slots=2, case_secs=5.0)
  assert [each.secs for each in budget.first_round()] == [math.inf] * 2
