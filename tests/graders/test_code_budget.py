"""A batch has time for honest programs, and not more than it may take for loops."""

import heapq
import math
import random

import pytest

from r1jax.graders.code_budget import BatchBudget, Outcome

START_SECS = 0.008
CASE_SECS = 5.0
LOOP = math.inf


def _simulate(
  programs: list[list[float]], kinds: list, num_slots: int, wrong=()
) -> tuple[list[bool], float]:
  """Runs programs, each a list of the seconds of its cases, in virtual time.

  Args:
    programs: The programs.
    kinds: The tests of each.
    num_slots: Number of slots.
    wrong: Indices of programs that finish and fail.

  Returns:
    Whether each program finished, and the time of the batch.
  """
  budget = BatchBudget(kinds, num_slots, CASE_SECS)
  cases = [list(program) for program in programs]
  finished = [False] * len(cases)
  now, idle, running = 0.0, set(range(num_slots)), []
  while True:
    for slot in sorted(idle):
      if attempt := budget.next_attempt(slot):
        idle.discard(slot)
        index, limit = attempt.index, min(attempt.secs, CASE_SECS)
        secs = wasted = 0.0
        while cases[index] and not wasted:
          if cases[index][0] > limit:
            wasted = limit
          else:
            secs += cases[index].pop(0)
        if wasted:
          full = attempt.secs == math.inf
          outcome = Outcome.TIMED_OUT if full else Outcome.SUSPENDED
        else:
          outcome = Outcome.FAILED if index in wrong else Outcome.PASSED
          finished[index] = True
        end = now + START_SECS + secs + wasted
        heapq.heappush(running, (end, slot, secs, wasted, outcome))
    assert budget.is_running == bool(running)
    if not running:
      return finished, now
    now, slot, *ended = heapq.heappop(running)
    budget.record(slot, *ended)
    idle.add(slot)


def _clean_secs(programs, num_slots: int) -> float:
  """The time of the batch if its loops took as long as the mean of the others."""
  honest = [sum(program) for program in programs if LOOP not in program]
  mean = sum(honest) / len(honest) if honest else 0.0
  return (mean + START_SECS) * math.ceil(len(programs) / num_slots)


def _check(programs, num_slots: int, kinds=None, wrong=()):
  """Checks that honest programs finish and that the batch is in time."""
  finished, secs = _simulate(
    programs, kinds or [0] * len(programs), num_slots, wrong
  )
  assert finished == [LOOP not in program for program in programs]
  assert secs <= 3 * _clean_secs(programs, num_slots) + CASE_SECS


def _check_loops(secs: float, count: int, share: float, num_slots: int):
  num_loops = math.ceil(share * count)
  programs = [[LOOP]] * num_loops + [[secs]] * (count - num_loops)
  for seed in range(2):
    random.Random(seed).shuffle(programs)
    _check(programs, num_slots)


@pytest.mark.parametrize('num_slots', [1, 2, 4, 16])
@pytest.mark.parametrize('share', [0.05, 0.25, 0.5, 0.75])
@pytest.mark.parametrize('count', [8, 64])
@pytest.mark.parametrize('secs', [0.001, 0.02, 0.3])
def test_loops_neither_hide_nor_delay_the_rest(secs, count, share, num_slots):
  _check_loops(secs, count, share, num_slots)


@pytest.mark.slow
@pytest.mark.parametrize('num_slots', [1, 2, 4, 16])
@pytest.mark.parametrize('share', [0.05, 0.25, 0.5, 0.75])
@pytest.mark.parametrize('count', [256, 512])
@pytest.mark.parametrize('secs', [0.001, 0.02, 0.3])
def test_loops_of_a_large_batch(secs, count, share, num_slots):
  _check_loops(secs, count, share, num_slots)


@pytest.mark.parametrize('count', [1, 2, 8, 64, 256])
@pytest.mark.parametrize(
  'num_slots,num_limits', [(1, 4), (2, 2), (4, 1), (16, 1)]
)
def test_nothing_but_loops_has_a_bounded_time(count, num_slots, num_limits):
  programs = [[LOOP]] * count
  _, secs = _simulate(programs, [0] * count, num_slots)
  most = 3 * _clean_secs(programs, num_slots) + num_limits * CASE_SECS
  assert CASE_SECS <= secs <= most


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
  _check([program] * 64, num_slots, list(range(64)))


@pytest.mark.parametrize('seed', range(20))
def test_programs_of_many_speeds_have_time(seed):
  rng = random.Random(seed)
  programs = [
    [min(4.9, rng.lognormvariate(-4, 1.5)) for _ in range(rng.randint(1, 20))]
    for _ in range(256)
  ]
  _check(programs, 2, [i // 16 for i in range(256)])


@pytest.mark.parametrize('num_slots', [1, 2, 16])
def test_a_slow_problem_among_fast_ones_has_time(num_slots):
  """Full limits go to the tests that no program has finished."""
  programs = [[0.01]] * 24 + [[LOOP]] * 24 + [[3.0]] * 16
  _check(programs, num_slots, [0] * 48 + [1] * 16)


@pytest.mark.parametrize('num_slots', [2, 16])
def test_wrong_programs_that_end_at_once_do_not_shorten_the_limits(num_slots):
  programs = [[0.001]] * 16 + [[0.3]] * 24 + [[LOOP]] * 24
  order = random.Random(0).sample(range(64), 64)
  wrong = {place for place, index in enumerate(order) if index < 16}
  finished, _ = _simulate(
    [programs[index] for index in order], [0] * 64, num_slots, wrong
  )
  assert finished == [LOOP not in programs[index] for index in order]


def test_a_program_much_slower_than_others_of_its_tests_has_time():
  """It gets an equal share of the time that honest programs leave."""
  programs = [[0.01]] * 32 + [[0.2]] + [[LOOP]] * 31
  for seed in range(5):
    random.Random(seed).shuffle(programs)
    _check(programs, 2)


@pytest.mark.parametrize('num_slots', [1, 2, 4])
def test_as_few_programs_as_slots_have_their_full_limits(num_slots):
  budget = BatchBudget(range(num_slots), num_slots, CASE_SECS)
  attempts = [budget.next_attempt(slot) for slot in range(num_slots)]
  assert [each.secs for each in attempts] == [math.inf] * num_slots
  assert budget.next_attempt(0) is None and budget.is_running
