"""Shares the time of a batch between its programs, without processes or clocks.

Nobody can tell an endless loop from a slow program but by waiting. If a batch
waited for all loops of a policy, it would take an hour; if it stopped at a fixed
time, honest programs would be among those without a verdict. So the time of a
batch grows with that of the programs that pass (at least half of their cases): it
is 2.5 times what the batch would take if every program left took as long as they
do, and the full limit of one case. Programs run in attempts with a limit for each
case; one that exceeds it may run again later, on the cases that are left, with a
longer limit. A free slot gets the first of these that is possible:

  full limits  The full limit, if there is time for that of each program left.
  screening    2.5 times the mean time of the programs that pass the same tests,
               or any tests while none passes the same.
  search       A program that passes tests which none has passed, and most have
               not finished, is looked for in case they are slow: with limits of
               1/256, 1/64, 1/16 and 1/4 of the full one, for 24 programs each,
               and, as late as possible, with the full limit, for one program or,
               with many slots, for one in four slots.
  equal share  An equal share of the time left, but for a fifth of a full limit.

All seconds are those that programs use on their own clocks (workers/clock.py), so
other load on the machine changes neither what runs nor for how long.

A batch thus takes at most three times what it would take without loops, and one
full limit, with one exception: until a program passes, the search may take four
full limits of one slot. A batch in which none does takes up to four full limits
on one slot, two on two, and one on four or more.

The search is a sample. If a quarter of a batch is honest and the rest are loops, it
finds an honest program, and then all finish, in more than 999 of 1,000 batches at
1/16 of the full limit a case (0.3 s of 5 s). At 1/4 of it, it does with 16 slots;
with fewer, in 95 % of batches of 512 programs and 70 % of batches of 64. Slower
programs that hide among as many loops count as too slow.
"""

from collections.abc import Hashable, Sequence
import dataclasses
import enum
import math

_START_SECS = 0.01  # Starting and ending a program.
_TIME_FACTOR = 2.5  # Time of a batch, in that of programs which pass.
_SEARCH_LIMITS = (1 / 256, 1 / 64, 1 / 16, 1 / 4)  # In full limits.
_SEARCH_TRIES = 24  # Programs for each of them.
# Full limits of a search, at least, of one slot, until a program passes.
_SEARCH_TIME = 4
_SLOTS_PER_FULL_LIMIT = 4  # Slots of a search for each full limit.
_SPARE = 0.2  # Full limits that equal shares leave: no time is planned exactly.
_LIMIT_GROWTH = 1.5  # A new attempt is worth its while from this factor on.
_MIN_SECS = 0.002  # The shortest attempt.


class Outcome(enum.Enum):
  """How an attempt ended."""

  SUSPENDED = enum.auto()  # At the limit of the attempt.
  TIMED_OUT = enum.auto()  # At a limit of the program.
  FAILED = enum.auto()  # It finished, and fails more than half of its cases.
  PASSED = enum.auto()  # It finished; its time is that of an honest program.


@dataclasses.dataclass(frozen=True)
class Attempt:
  """An attempt to run a program.

  Attributes:
    index: Index of the program in its batch.
    secs: Limit of each case; infinite for the program's own limits alone.
  """

  index: int
  secs: float


class BatchBudget:
  """Decides which program of a batch a free slot runs, and for how long."""

  def __init__(
    self, kinds: Sequence[Hashable], num_slots: int, case_secs: float
  ):
    """Starts with all programs.

    Args:
      kinds: The tests of each program, by any name: programs with the same ones
        take similar time if they pass.
      num_slots: Number of programs that run at once.
      case_secs: Full limit of one case.
    """
    self._case_secs, self._num_programs = case_secs, len(kinds)
    self._kinds = {kind: _Tests() for kind in kinds}
    self._all = _Tests()
    self._waiting: dict[int, _Program] = {}
    for index, kind in enumerate(kinds):
      tests = self._kinds[kind]
      self._waiting[index] = _Program(index, tests, rank=tests.num_left)
      tests.num_left += 1
    self._running: dict[int, tuple[_Program, float]] = {}  # With its start.
    # When each slot is free: now, or at the limit of what it runs.
    self._free_secs = [0.0] * num_slots
    self._idle: set[int] = set()  # Slots that wait for an attempt.
    self._finished_secs = 0.0
    self._searched_secs = 0.0
    self._tries = dict.fromkeys((*_SEARCH_LIMITS, 1.0), 0)

  @property
  def is_running(self) -> bool:
    """Whether an attempt has not been recorded yet."""
    return bool(self._running)

  def next_attempt(self, slot: int) -> Attempt | None:
    """Starts the next attempt of a slot.

    Args:
      slot: Number of a slot that runs nothing.

    Returns:
      None if there is nothing to run. While others are running, this may change
      with their outcome; otherwise the programs left are too slow.
    """
    choice = self._choice(slot) if self._waiting else None
    if choice is None:
      self._idle.add(slot)
      return None
    program, secs = choice
    program.limit = secs = min(secs, self._case_secs)
    del self._waiting[program.index]
    self._idle.discard(slot)
    self._running[slot] = program, self._free_secs[slot]
    self._free_secs[slot] += _START_SECS + secs
    return Attempt(program.index, secs if secs < self._case_secs else math.inf)

  def record(
    self, slot: int, secs: float, wasted_secs: float, outcome: Outcome
  ):
    """Records how the attempt of a slot ended.

    Args:
      slot: Number of the slot.
      secs: Seconds of the cases that it decided.
      wasted_secs: Seconds of the case that ran out of time, if one did.
      outcome: How it ended.
    """
    program, start = self._running.pop(slot)
    now = self._free_secs[slot] = start + _START_SECS + secs + wasted_secs
    for other in self._idle:  # They have waited until now.
      self._free_secs[other] = max(self._free_secs[other], now)
    program.secs += secs
    if outcome is Outcome.SUSPENDED:
      self._waiting[program.index] = program
      return
    program.tests.num_left -= 1
    self._finished_secs += program.secs
    for tests in (program.tests, self._all):
      if outcome is not Outcome.TIMED_OUT:
        tests.finished.add(program.secs)
      if outcome is Outcome.PASSED:
        tests.passed.add(program.secs)

  def _choice(self, slot: int) -> '_Choice | None':
    """Returns what a slot runs next, out of programs that wait."""
    end = self._end_secs()
    left = sum(max(end - secs, 0.0) for secs in self._free_secs)
    room = end - self._free_secs[slot] - _START_SECS
    if min(left / len(self._waiting), room) >= self._case_secs:
      return min(self._waiting.values(), key=_order), self._case_secs
    return self._screening() or self._search(room) or self._share(left, room)

  def _end_secs(self) -> float:
    """Returns when the time of the batch is over."""
    mean = self._all.passed.value(self._all.finished.value())
    secs = self._finished_secs
    for tests in self._kinds.values():
      tests.expect(mean)
      secs += tests.expected_secs * tests.num_left
    secs = _TIME_FACTOR * secs + 2 * _START_SECS * self._num_programs
    secs += self._limits_secs()
    return secs / len(self._free_secs) + _START_SECS

  def _limits_secs(self) -> float:
    """Returns the slots' time beside that of programs which pass."""
    num_limits = len(self._free_secs)
    if not self._all.passed.count:
      num_limits = max(num_limits, _SEARCH_TIME)
    return num_limits * self._case_secs

  def _screening(self) -> '_Choice | None':
    """Tries a program for as long as the others of its tests take."""
    if not self._all.finished.count:
      return None
    programs = [
      program
      for program in self._waiting.values()
      if not program.limit
      or program.tests.screening_secs > _LIMIT_GROWTH * program.limit
    ]
    if not programs:
      return None
    first = min(programs, key=_order)
    return first, first.tests.screening_secs

  def _search(self, room: float) -> '_Choice | None':
    """Looks for a program that passes where none has.

    Args:
      room: Seconds until the time of the batch is over.
    """
    nothing_passed = not self._all.passed.count
    programs = [
      program
      for program in self._waiting.values()
      if nothing_passed or program.tests.is_unknown
    ]
    if not programs:
      return None
    limit, next_secs = None, math.inf
    for each in _SEARCH_LIMITS:
      secs = each * self._case_secs
      fresh = [p for p in programs if _LIMIT_GROWTH * p.limit <= secs]
      if fresh and self._tries[each] < _SEARCH_TRIES and secs <= room:
        limit, next_secs = each, secs + _START_SECS
        break
    num_full = max(1, len(self._free_secs) // _SLOTS_PER_FULL_LIMIT)
    if (
      self._tries[1.0] < num_full
      and self._case_secs <= room < self._case_secs + next_secs
    ):
      limit, fresh = 1.0, programs
    if limit is None:
      return None
    secs = limit * self._case_secs
    most = self._limits_secs()
    if not nothing_passed:
      most /= 2  # The other programs may be slow ones, too.
    if limit < 1 and self._searched_secs + secs > most:
      return None
    self._tries[limit] += 1
    self._searched_secs += secs
    return min(fresh, key=_order), secs

  def _share(self, left_secs: float, room: float) -> '_Choice | None':
    """Shares the time that is left between the programs with the least so far.

    Args:
      left_secs: Seconds that are left of all slots.
      room: Seconds until the time of the batch is over.
    """
    secs = 0.0
    spare = _SPARE * self._case_secs
    left_secs -= spare * len(self._free_secs)
    programs = sorted(self._waiting.values(), key=_order)
    for count, program in enumerate(programs, 1):
      share = min(left_secs / count - _START_SECS, room - spare)
      if share < max(_LIMIT_GROWTH * program.limit, _MIN_SECS):
        break
      secs = share
    return (programs[0], secs) if secs else None


class _Mean:
  """The running mean of `count` numbers of seconds."""

  def __init__(self):
    self._sum, self.count = 0.0, 0

  def add(self, secs: float):
    self._sum += secs
    self.count += 1

  def value(self, default: float = 0.0) -> float:
    """Returns the mean, or the default of no numbers."""
    return self._sum / self.count if self.count else default


class _Tests:
  """What is known of the time that some tests take.

  Attributes:
    passed: Time of the programs that pass them.
    finished: Time of the programs that finished them.
    num_left: Number of programs without a verdict.
    expected_secs: Time of a program that passes them, as far as is known.
  """

  def __init__(self):
    self.passed, self.finished = _Mean(), _Mean()
    self.num_left, self.expected_secs = 0, 0.0

  def expect(self, mean_secs: float):
    """Sets the expected time, given the mean of the batch."""
    self.expected_secs = self.passed.value(
      max(mean_secs, self.finished.value())
    )

  @property
  def screening_secs(self) -> float:
    """The limit of a case that a batch has time for in each of its programs."""
    return _TIME_FACTOR * self.expected_secs + _START_SECS

  @property
  def is_unknown(self) -> bool:
    """Whether no program passes, but several may be slow."""
    most = max(1, self.finished.count)
    return not self.passed.count and self.num_left > most


@dataclasses.dataclass
class _Program:
  """A program without a verdict.

  Attributes:
    index: Its index in the batch.
    tests: Its tests.
    rank: Number of programs of the same tests before it.
    limit: The longest limit that it has exceeded.
    secs: Seconds of the cases that it decided.
  """

  index: int
  tests: _Tests
  rank: int
  limit: float = 0.0
  secs: float = 0.0


def _order(program: _Program) -> tuple[float, int, int]:
  """Orders programs by their limits so far; those of different tests alternate."""
  return program.limit, program.rank, program.index


_Choice = tuple[_Program, float]  # A program, and the limit of each case.
