"""Who runs when, and for how long, to the number; no process runs here."""

import math

import pytest

from r1jax.workers import job_queue
from r1jax.workers.job_queue import (
  CpuBudget,
  JobFailure,
  JobQueue,
  WorkerLimits,
)

_LIMITS = WorkerLimits(
  first=1, deadline=16, kept=24, share=0.5, ordinary_secs=1
)
_HANGS = math.inf


@pytest.fixture
def one_second(monkeypatch):
  """The unit stays a second, whatever jobs take."""
  monkeypatch.setattr(job_queue, '_MEMORY', math.inf)


def _play(needs, account, at_once=1):
  """Plays jobs that need so many CPU-seconds.

  Returns:
    Their results, and the tries: (job, seconds that it could take).
  """
  batch, tries, running = JobQueue(len(needs), _LIMITS, account), [], []
  while not batch.over:
    while len(running) < at_once and (turn := batch.take()):
      running.append(turn)
      tries.append((turn.job, turn.secs))
    if not running:
      break
    turn = running.pop(0)
    if needs[turn.job] <= turn.secs:
      batch.done(turn, needs[turn.job], f'result {turn.job}')
    else:
      batch.late(turn)
  return batch.results, tries


def test_the_example(one_second):
  account = CpuBudget(_LIMITS)
  results, tries = _play([2.5, _HANGS, 1.4], account)
  assert tries == [
    (0, 4),
    (1, pytest.approx(1 + 23.75 / 8)),
    (2, pytest.approx(1 + 23.75 * 7 / 64)),
    (1, 16),
  ]
  assert results == [
    'result 0',
    JobFailure('timeout', 'took more than 16 s of CPU time'),
    'result 2',
  ]


@pytest.mark.parametrize('at_once', [1, 3])
@pytest.mark.parametrize('share', [0.05, 0.5, 1])
def test_jobs_that_hang_cost_their_first_try_and_the_account(
  one_second, share, at_once
):
  needs = [_HANGS if (i * share) % 1 < share else 0.9 for i in range(400)]
  hang = needs.count(_HANGS)
  results, tries = _play(needs, CpuBudget(_LIMITS), at_once)
  spent = sum(secs for job, secs in tries if needs[job] == _HANGS)
  assert spent <= hang * 1 + 24 + 0.5 * 0.9 * (400 - hang) + 1e-6
  for need, result in zip(needs, results):  # No neighbour pays.
    assert isinstance(result, JobFailure) == (need == _HANGS)


def test_the_slow_have_their_second_try_after_all_others(one_second):
  needs = [9, 0.5, 0.5, _HANGS, _HANGS, 9, 0.5]
  results, tries = _play(needs, CpuBudget(_LIMITS))
  assert [job for job, _ in tries] == [*range(7), 0, 3]
  assert results[0] == 'result 0' and results[6] == 'result 6'
  assert (
    results[4]
    == results[5]
    == JobFailure('timeout', 'no time was left for a second try')
  )


def test_a_second_try_waits_for_what_another_may_leave(one_second):
  account = CpuBudget(_LIMITS)
  results, tries = _play([8, 8], account, at_once=2)
  left = 24 * 49 / 64  # Of which the first takes 16 and brings back 8.
  assert tries[2:] == [(0, 16), (1, pytest.approx(left - 8))]
  assert results == ['result 0', 'result 1']
  assert account.secs == pytest.approx(left - 16)


def test_between_batches_the_account_keeps_half_to_all(one_second):
  account = CpuBudget(_LIMITS)
  assert account.secs == 24
  for held, kept in ((0, 12), (13, 13), (99, 24)):
    account.secs = held
    account.rest(512)
    assert account.secs == kept


def test_small_batches_give_back_no_more_than_a_large_one(one_second):
  account = CpuBudget(_LIMITS)
  account.secs = 0
  for group in range(1, 33):
    account.rest(16)
    assert account.secs == pytest.approx(12 * group / 32)
  account.rest(16)
  assert account.secs == 12


def test_the_unit_follows_ordinary_jobs_up_and_the_long_ones_little():
  account = CpuBudget(_LIMITS)
  for _ in range(2000):
    account.ordinary(0.2)
  assert account.unit_secs == 1  # As on an idle machine.
  for _ in range(4000):
    account.ordinary(2.5)
  assert account.unit_secs == pytest.approx(2.5, rel=0.01)
  before = account.unit_secs
  account.ordinary(1000)
  assert account.unit_secs < 1.02 * before


def test_a_job_whose_process_dies_runs_twice():
  batch = JobQueue(2, _LIMITS, CpuBudget(_LIMITS))
  first, other = batch.take(), batch.take()
  batch.died(first)
  batch.done(other, 0.5, 'fine')
  again = batch.take()
  assert (again.job, again.first) == (0, True)
  batch.died(again)
  assert batch.over and batch.take() is None
  assert batch.results == [JobFailure('crash', 'the worker died'), 'fine']


def test_a_job_outlives_as_many_workers_as_there_are():
  """All of them may have been killed while nobody looked."""
  batch = JobQueue(1, _LIMITS, CpuBudget(_LIMITS))
  for _ in range(2):
    batch.lost(batch.take(), workers=2)
    assert not batch.over
  batch.lost(batch.take(), workers=2)
  assert batch.results == [JobFailure('crash', 'the worker died')]


def test_stopping_leaves_no_job_without_a_word():
  batch = JobQueue(3, _LIMITS, CpuBudget(_LIMITS))
  batch.done(batch.take(), 0.1, 'fine')
  batch.take()
  batch.stop('enough')
  assert batch.over
  assert batch.results == ['fine'] + [JobFailure('timeout', 'enough')] * 2
