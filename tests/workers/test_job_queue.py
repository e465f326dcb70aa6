"""The job queue: which job runs next and for how long. No process runs here."""

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
  first_attempt=1,
  deadline=16,
  budget_capacity=24,
  budget_refill=0.5,
  typical_job_secs=1,
)
_HANGS = math.inf


@pytest.fixture
def one_second(monkeypatch):
  """Fixes the CPU time of a typical job at one second."""
  monkeypatch.setattr(job_queue, '_MEAN_JOBS', math.inf)


def _play(needs, budget, at_once=1):
  """Simulates jobs that need the given CPU-seconds.

  Returns:
    Their results, and for each attempt (job, its limit in seconds).
  """
  batch, attempts, running = JobQueue(len(needs), _LIMITS, budget), [], []
  while not batch.is_finished:
    while len(running) < at_once and (attempt := batch.pop()):
      running.append(attempt)
      attempts.append((attempt.job, attempt.limit_secs))
    if not running:
      break
    attempt = running.pop(0)
    if needs[attempt.job] <= attempt.limit_secs:
      batch.complete(attempt, needs[attempt.job], f'result {attempt.job}')
    else:
      batch.time_out(attempt)
  return batch.results, attempts


def test_the_example(one_second):
  budget = CpuBudget(_LIMITS)
  results, attempts = _play([2.5, _HANGS, 1.4], budget)
  assert attempts == [
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
def test_hanging_jobs_cost_their_first_attempt_and_the_budget(
  one_second, share, at_once
):
  needs = [_HANGS if (i * share) % 1 < share else 0.9 for i in range(400)]
  hang = needs.count(_HANGS)
  results, attempts = _play(needs, CpuBudget(_LIMITS), at_once)
  spent = sum(secs for job, secs in attempts if needs[job] == _HANGS)
  assert spent <= hang * 1 + 24 + 0.5 * 0.9 * (400 - hang) + 1e-6
  for need, result in zip(needs, results):  # No other job pays.
    assert isinstance(result, JobFailure) == (need == _HANGS)


def test_slow_jobs_get_their_second_attempt_after_all_others(one_second):
  needs = [9, 0.5, 0.5, _HANGS, _HANGS, 9, 0.5]
  results, attempts = _play(needs, CpuBudget(_LIMITS))
  assert [job for job, _ in attempts] == [*range(7), 0, 3]
  assert results[0] == 'result 0' and results[6] == 'result 6'
  assert (
    results[4]
    == results[5]
    == JobFailure('timeout', 'no time was left for a second try')
  )


def test_a_second_attempt_waits_for_what_another_may_refund(one_second):
  budget = CpuBudget(_LIMITS)
  results, attempts = _play([8, 8], budget, at_once=2)
  left = 24 * 49 / 64  # The first takes 16 of it and refunds 8.
  assert attempts[2:] == [(0, 16), (1, pytest.approx(left - 8))]
  assert results == ['result 0', 'result 1']
  assert budget.secs == pytest.approx(left - 16)


def test_between_batches_the_budget_keeps_half_to_all(one_second):
  budget = CpuBudget(_LIMITS)
  assert budget.secs == 24
  for held, kept in ((0, 12), (13, 13), (99, 24)):
    budget.secs = held
    budget.end_batch(512)
    assert budget.secs == kept


def test_small_batches_refill_no_more_than_a_large_one(one_second):
  budget = CpuBudget(_LIMITS)
  budget.secs = 0
  for group in range(1, 33):
    budget.end_batch(16)
    assert budget.secs == pytest.approx(12 * group / 32)
  budget.end_batch(16)
  assert budget.secs == 12


def test_the_typical_job_follows_slow_jobs_and_outliers_little():
  budget = CpuBudget(_LIMITS)
  for _ in range(2000):
    budget.record(0.2)
  assert budget.typical_secs == 1  # As on an idle machine.
  for _ in range(4000):
    budget.record(2.5)
  assert budget.typical_secs == pytest.approx(2.5, rel=0.01)
  before = budget.typical_secs
  budget.record(1000)
  assert budget.typical_secs < 1.02 * before


def test_a_job_whose_process_dies_runs_twice():
  batch = JobQueue(2, _LIMITS, CpuBudget(_LIMITS))
  first, other = batch.pop(), batch.pop()
  batch.crash(first)
  batch.complete(other, 0.5, 'fine')
  again = batch.pop()
  assert (again.job, again.is_first) == (0, True)
  batch.crash(again)
  assert batch.is_finished and batch.pop() is None
  assert batch.results == [JobFailure('crash', 'the worker died'), 'fine']


def test_a_job_outlives_as_many_workers_as_there_are():
  """All of them may have been killed while nobody looked."""
  batch = JobQueue(1, _LIMITS, CpuBudget(_LIMITS))
  for _ in range(2):
    batch.lose_worker(batch.pop(), num_workers=2)
    assert not batch.is_finished
  batch.lose_worker(batch.pop(), num_workers=2)
  assert batch.results == [JobFailure('crash', 'the worker died')]


def test_cancelling_fails_every_job_that_has_not_ended():
  batch = JobQueue(3, _LIMITS, CpuBudget(_LIMITS))
  batch.complete(batch.pop(), 0.1, 'fine')
  batch.pop()
  batch.cancel('enough')
  assert batch.is_finished
  assert batch.results == ['fine'] + [JobFailure('timeout', 'enough')] * 2
