"""Which job runs next, and for how long: policy, without processes or clocks.

Every job has a first try, of which nearly all need but a small part. One whose
time runs out begins again at the end of the queue, with all the time up to its
deadline, or what is left if that is twice `first`. An account pays for that
second try, and before it for what a first try takes beyond `first`, for which
it may use an eighth of the account; ordinary work pays in. So a job that is
slow and honest has its result, and jobs that never end cost, however many they
are, no more than `first` each and what the account holds. Where that is too
little a job has no result: that is all that it can lose by its neighbours.

  first 1, deadline 16, share 0.5, the account holds 24:

    first try     1 + 24 / 8 = 4; done after 2.5, so that 1.5 come back
    another       1 + 23.8 / 8 = 4, in vain; the account holds 20.8
    its second    16, in vain; the account holds 4.8
    the next one  1.6 at first, and then 4.2

The unit is what an ordinary job takes, of CPU time: so a slow machine, or a
busy one, makes no honest job late.
"""

from collections import Counter, deque
import dataclasses
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class JobFailure:
  """In a result's place: the job has none.

  Attributes:
    kind: 'timeout' or 'crash'.
    why: For a person.
  """

  kind: str
  why: str


@dataclasses.dataclass(frozen=True)
class WorkerLimits:
  """In ordinary jobs.

  Attributes:
    first: That every job may take.
    deadline: That a job may take at most.
    kept: The most that the account keeps from one batch for the next; that is
      also what it begins with.
    share: Of what ordinary jobs take, that goes to the account.
    ordinary_secs: An ordinary job on an idle machine; that it takes longer is
      found out, and never taken to be less.
  """

  first: float
  deadline: float
  kept: float
  share: float
  ordinary_secs: float


class CpuBudget:
  """What lasts from batch to batch; in CPU-seconds.

  Attributes:
    secs: That it holds.
    unit_secs: An ordinary job.
  """

  def __init__(self, limits: WorkerLimits):
    self._limits, self._mean_secs = limits, limits.ordinary_secs
    self.secs = limits.kept * self.unit_secs

  @property
  def unit_secs(self) -> float:
    return max(self._mean_secs, self._limits.ordinary_secs)

  def ordinary(self, secs: float):
    """A job's first try took so long, with a result. What takes much longer
    than most is not ordinary, and moves the mean as if it took less."""
    secs = min(secs, _LONG * self.unit_secs)
    self.secs += self._limits.share * secs
    self._mean_secs += (secs - self._mean_secs) / _MEMORY

  def rest(self, jobs: int):
    """After a batch of so many: no more than it keeps; and where it holds less
    than half of that, half comes back over _REFILL jobs, whatever they took, so
    that bombs do not make honest answers late for long. By jobs and not by
    batches: small ones would fill it each time anew for bombs to spend."""
    kept = self._limits.kept * self.unit_secs
    back = self.secs + jobs / _REFILL * kept / 2
    self.secs = min(max(self.secs, min(back, kept / 2)), kept)


_MEMORY, _REFILL, _LONG = 256, 512, 4  # Jobs; jobs; ordinary ones.


class Attempt(NamedTuple):
  """A try of a job."""

  job: int
  first: bool
  secs: float  # That it may take.
  paid_secs: float  # By the account.


class JobQueue:
  """Of one batch.

  Attributes:
    results: Of the jobs, in their order; a JobFailure for each that has none.
  """

  def __init__(self, jobs: int, limits: WorkerLimits, account: CpuBudget):
    self._limits, self._account = limits, account
    self._waiting = deque((job, True) for job in range(jobs))
    self._running: set[Attempt] = set()
    self._died: set[int] = set()
    self._lost: Counter = Counter()  # Job to the workers that it lost.
    self.results: list[Any] = [None] * jobs

  @property
  def over(self) -> bool:
    return not self._waiting and not self._running

  def take(self) -> Attempt | None:
    """The next; None if there is none now, but one that runs may change it."""
    unit = self._account.unit_secs
    most, free = self._limits.deadline * unit, self._limits.first * unit
    while self._waiting:
      job, first = self._waiting[0]
      held = self._account.secs
      secs = min(most, free + held / 8 if first else held)
      if not first and secs < most and self._running:
        return None  # What they do not need comes back.
      if not first and secs < min(most, 2 * free):
        self._fail(job, 'timeout', 'no time was left for a second try')
        self._waiting.popleft()
        continue
      self._waiting.popleft()
      turn = Attempt(job, first, secs, max(0.0, secs - free) if first else secs)
      self._account.secs -= turn.paid_secs
      self._running.add(turn)
      return turn
    return None

  def done(self, turn: Attempt, secs: float, result: Any):
    self._settle(turn, secs)
    if turn.first:
      self._account.ordinary(secs)
    self.results[turn.job] = result

  def late(self, turn: Attempt):
    self._settle(turn, turn.secs)
    if turn.first:
      self._waiting.append((turn.job, False))
    else:
      self._fail(
        turn.job, 'timeout', f'took more than {turn.secs:.2g} s of CPU time'
      )

  def died(self, turn: Attempt, secs: float = 0.0):
    """Perhaps not its fault: memory is short, or someone killed the process.
    So it runs once more."""
    self._settle(turn, secs)
    if turn.job in self._died:
      self._fail(turn.job, 'crash', 'the worker died')
    else:
      self._died.add(turn.job)
      self._waiting.append((turn.job, turn.first))

  def lost(self, turn: Attempt, workers: int):
    """The whole worker is gone, which runs nothing of the job's: it may have
    been killed before the job reached it, and so may all the others. So the
    job runs again, and as many times as there are workers at most."""
    self._settle(turn, 0.0)
    self._lost[turn.job] += 1
    if self._lost[turn.job] > workers:
      self._fail(turn.job, 'crash', 'the worker died')
    else:
      self._waiting.append((turn.job, turn.first))

  def stop(self, why: str):
    """Nothing else is tried."""
    for job in (
      *(job for job, _ in self._waiting),
      *(turn.job for turn in self._running),
    ):
      self._fail(job, 'timeout', why)
    self._waiting.clear()
    self._running.clear()

  def _settle(self, turn: Attempt, secs: float):
    """What it did not need goes back to the account."""
    self._running.discard(turn)
    self._account.secs += min(turn.paid_secs, max(0.0, turn.secs - secs))

  def _fail(self, job: int, kind: str, why: str):
    self.results[job] = JobFailure(kind, why)
