"""Scheduling of jobs under a budget of CPU time, without processes or clocks.

Every job gets a first attempt, and most jobs finish within a small part of it.
A job whose attempt runs out of time goes back to the end of the queue for a
second attempt, which may use the whole deadline, or whatever the budget still
holds if that is at least twice `first_attempt`. A shared budget pays for second
attempts, and for the part of a first attempt beyond `first_attempt`, which may
use up to an eighth of the budget. Completed jobs refill the budget.

So a slow but honest job gets its result, while jobs that never end cost, however
many there are, no more than `first_attempt` each plus what the budget holds.
When the budget is empty, a job that needs it fails with 'timeout': its
neighbours can do no worse to it.

Example with first_attempt = 1, deadline = 16, budget_refill = 0.5 and a budget
that holds 24:

  first attempt    limit 1 + 24 / 8 = 4; done after 2.5, so 1.5 are refunded
  another job      limit 1 + 23.75 / 8 ≈ 4, times out; the budget holds 20.8
  its second one   limit 16, times out; the budget holds 4.8
  the next job     limit 1.6 at first, and then 4.2

Limits are in units of the CPU time of a typical job, measured as jobs complete,
so a slow or busy machine makes no honest job time out.
"""

from collections import Counter, deque
import dataclasses
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class JobFailure:
  """Stands in the place of a result for a job that has none.

  Attributes:
    kind: 'timeout' or 'crash'.
    message: A description of the failure for a person to read.
  """

  kind: str
  message: str


@dataclasses.dataclass(frozen=True)
class WorkerLimits:
  """CPU-time limits of jobs, in units of a typical job's CPU time.

  Attributes:
    first_attempt: CPU time that every job may use.
    deadline: CPU time that one attempt may use at most.
    budget_capacity: The most that the budget keeps between batches, and what it
      starts with.
    budget_refill: Share of the CPU time of completed jobs that is added to the
      budget.
    typical_job_secs: CPU-seconds of a typical job on an idle machine. The
      measured mean replaces it when it is larger, never when it is smaller.
  """

  first_attempt: float
  deadline: float
  budget_capacity: float
  budget_refill: float
  typical_job_secs: float


_MEAN_JOBS = 256  # Jobs that the running mean of CPU time averages over.
_REFILL_JOBS = 512  # Jobs after which an empty budget is half full again.
_OUTLIER_FACTOR = 4  # A job counts as at most so many typical ones.


class CpuBudget:
  """A token bucket of CPU-seconds that lasts from batch to batch.

  Attributes:
    secs: CPU-seconds that it holds.
  """

  def __init__(self, limits: WorkerLimits):
    self._limits, self._mean_secs = limits, limits.typical_job_secs
    self.secs = limits.budget_capacity * self.typical_secs

  @property
  def typical_secs(self) -> float:
    """CPU-seconds of a typical job: the unit of the limits."""
    return max(self._mean_secs, self._limits.typical_job_secs)

  def record(self, secs: float):
    """Refills the budget and updates the mean after a completed first attempt.

    A job that took much longer than most counts as _OUTLIER_FACTOR typical
    jobs, so that it moves the mean little.

    Args:
      secs: CPU-seconds that the attempt took.
    """
    secs = min(secs, _OUTLIER_FACTOR * self.typical_secs)
    self.secs += self._limits.budget_refill * secs
    self._mean_secs += (secs - self._mean_secs) / _MEAN_JOBS

  def end_batch(self, num_jobs: int):
    """Caps the budget at its capacity and refills an empty one up to half.

    Below half of the capacity, half comes back over _REFILL_JOBS jobs, whatever
    they took, so that bombs delay honest jobs for a short time only. The refill
    counts jobs and not batches: otherwise many small batches would refill it
    each time for bombs to spend.
    """
    capacity = self._limits.budget_capacity * self.typical_secs
    refilled = self.secs + num_jobs / _REFILL_JOBS * capacity / 2
    self.secs = min(max(self.secs, min(refilled, capacity / 2)), capacity)


class Attempt(NamedTuple):
  """One attempt to run a job.

  Attributes:
    job: Index of the job in its batch.
    is_first: Whether it is the job's first attempt.
    limit_secs: CPU-seconds that it may use.
    charged_secs: CPU-seconds that the budget has paid for it.
  """

  job: int
  is_first: bool
  limit_secs: float
  charged_secs: float


class JobQueue:
  """The queue of one batch of jobs: which job runs next, and for how long.

  Attributes:
    results: Results in the order of the jobs; a JobFailure for a job without
      one, None while it has not ended.
  """

  def __init__(self, num_jobs: int, limits: WorkerLimits, budget: CpuBudget):
    self._limits, self._budget = limits, budget
    self._waiting = deque((job, True) for job in range(num_jobs))
    self._running: set[Attempt] = set()
    self._crashed: set[int] = set()
    self._workers_lost: Counter = Counter()  # Job → workers lost with it.
    self.results: list[Any] = [None] * num_jobs

  @property
  def is_finished(self) -> bool:
    """Whether every job has a result or has failed."""
    return not self._waiting and not self._running

  def pop(self) -> Attempt | None:
    """Returns the next attempt to run and charges the budget for it.

    Returns:
      The attempt; None if none can run now. That may change when a running
      attempt ends.
    """
    typical = self._budget.typical_secs
    deadline = self._limits.deadline * typical
    free = self._limits.first_attempt * typical
    while self._waiting:
      job, is_first = self._waiting[0]
      budget = self._budget.secs
      limit = min(deadline, free + budget / 8 if is_first else budget)
      if not is_first and limit < deadline and self._running:
        return None  # Running attempts may still refund what they do not use.
      if not is_first and limit < min(deadline, 2 * free):
        self._fail(job, 'timeout', 'no time was left for a second try')
        self._waiting.popleft()
        continue
      self._waiting.popleft()
      charged = max(0.0, limit - free) if is_first else limit
      attempt = Attempt(job, is_first, limit, charged)
      self._budget.secs -= attempt.charged_secs
      self._running.add(attempt)
      return attempt
    return None

  def complete(self, attempt: Attempt, secs: float, result: Any):
    """Records the result of an attempt that took `secs` CPU-seconds."""
    self._refund(attempt, secs)
    if attempt.is_first:
      self._budget.record(secs)
    self.results[attempt.job] = result

  def time_out(self, attempt: Attempt):
    """Requeues a job after its first timeout; the second one fails it."""
    self._refund(attempt, attempt.limit_secs)
    if attempt.is_first:
      self._waiting.append((attempt.job, False))
    else:
      self._fail(
        attempt.job,
        'timeout',
        f'took more than {attempt.limit_secs:.2g} s of CPU time',
      )

  def crash(self, attempt: Attempt, secs: float = 0.0):
    """Requeues a job after its first crash; the second one fails it.

    The first crash may not be the job's fault: memory may be short, or someone
    may have killed the process.
    """
    self._refund(attempt, secs)
    if attempt.job in self._crashed:
      self._fail(attempt.job, 'crash', 'the worker died')
    else:
      self._crashed.add(attempt.job)
      self._waiting.append((attempt.job, attempt.is_first))

  def lose_worker(self, attempt: Attempt, num_workers: int):
    """Requeues a job whose whole worker is gone.

    The worker itself runs none of the job's code. It may have been killed before
    the job reached it, and so may all the others, so the job is requeued up to
    num_workers times.
    """
    self._refund(attempt, 0.0)
    self._workers_lost[attempt.job] += 1
    if self._workers_lost[attempt.job] > num_workers:
      self._fail(attempt.job, 'crash', 'the worker died')
    else:
      self._waiting.append((attempt.job, attempt.is_first))

  def cancel(self, message: str):
    """Fails every job that has not ended with a 'timeout'."""
    for job in (
      *(job for job, _ in self._waiting),
      *(attempt.job for attempt in self._running),
    ):
      self._fail(job, 'timeout', message)
    self._waiting.clear()
    self._running.clear()

  def _refund(self, attempt: Attempt, secs: float):
    """Ends an attempt; what it did not use goes back to the budget."""
    self._running.discard(attempt)
    unused = max(0.0, attempt.limit_secs - secs)
    self._budget.secs += min(attempt.charged_secs, unused)

  def _fail(self, job: int, kind: str, message: str):
    self.results[job] = JobFailure(kind, message)
