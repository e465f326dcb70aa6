"""Shares the time of a batch between its programs, without processes or clocks.

Nobody can tell an endless loop from a slow program but by waiting. If a batch
waited for all loops of a policy, it would take an hour; if it stopped at a fixed
time, honest programs would be among those without a verdict. So a batch runs in
rounds, whose programs have a limit for each case:

  search     A few programs have their full limits and some more have large ones,
             in case an honest program is slow.
  screening  Each case of the others may take three times the mean case of the
             same tests, or of the batch where none of these has been decided.

In later rounds, the programs whose tests turned out to be slow are screened again,
or those that are left are searched again.

A budget pays for cases that run out of time: the full limit of one case for each
slot, and 1.6 times what the batch would take if every program took the mean time.
Slow programs that finish raise the mean and so the budget: a batch of honest
programs, however slow, has time for all. When the budget is used up, the rest
count as too slow. So a batch takes about three times what it would take without
loops, plus one full limit, at most.
"""

from collections.abc import Hashable, Sequence
import dataclasses
import math

_MIN_CASE_SECS = 0.02  # For cases that do next to nothing.
_START_SECS = 0.008  # Starting and ending a program.
_SCREENING_FACTOR = 3.0  # Limit of a case in screening, in mean cases.
# Limits of a case in a search, in full limits.
_SEARCH_LIMITS = (0.3, 0.075, 0.02)
_SEARCH_SHARE = 1 / 8  # Full limits for each slot that each of these may cost.
_LIMIT_FACTOR = 0.9  # Full limits for each slot; starting programs takes time.
_MEAN_FACTOR = 1.6  # Mean programs for each program of the batch.


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
  """Decides which programs of a batch run next, and for how long."""

  def __init__(
    self, kinds: Sequence[Hashable], num_slots: int, case_secs: float
  ):
    """Starts with all programs.

    Args:
      kinds: The tests of each program, by any name: programs with the same ones
        take similar time if they finish.
      num_slots: Number of programs that run at once.
      case_secs: Limit of one case.
    """
    self._kinds, self._num_slots = kinds, num_slots
    self._case_secs = case_secs
    self._left = set(range(len(kinds)))
    self._limits: dict[int, float] = {}  # The last limit of each program.
    self._cases = {kind: _Mean() for kind in kinds}  # Decided, by tests.
    self._all_cases, self._finished = _Mean(), _Mean()
    self._wasted_secs = self._waited_secs = self._longest_waste_secs = 0.0
    self._screened_secs = 0.0  # Limits of the programs screened so far.
    self._num_full = max(1, num_slots // 2)  # Full limits in a search.

  def first_round(self) -> list[Attempt]:
    """Returns the attempts of the first round, with 0 seconds for screening.

    The limit of a program that is screened depends on those before it; see
    `screening_secs`.
    """
    left = self._by_need()
    if len(left) <= self._num_slots:
      return [Attempt(index, math.inf) for index in left]
    attempts = self._search(left)
    searched = {attempt.index: attempt.secs for attempt in attempts}
    self._limits = dict.fromkeys(left, 0.0) | searched
    return attempts + [Attempt(i, 0.0) for i in left if i not in searched]

  def screening_secs(self, index: int) -> float:
    """Returns the limit of each case of a program that has not run.

    Returns:
      0 if it should not run yet: nothing has finished, and much has not.
    """
    cost = self._num_slots * self._case_secs
    if not self._finished.count and self._screened_secs > cost / 2:
      return 0.0
    secs = self._limits[index] = self._screening_secs(index)
    self._screened_secs += secs
    return secs

  def record(self, index: int, num_cases: int, secs: float, wasted_secs: float):
    """Records an attempt.

    Args:
      index: Index of the program.
      num_cases: Number of cases that it decided.
      secs: Seconds that these took.
      wasted_secs: Seconds of the case that ran out of time, if one did.
    """
    self._cases[self._kinds[index]].add(secs, num_cases)
    self._all_cases.add(secs, num_cases)
    self._wasted_secs += wasted_secs
    self._longest_waste_secs = max(self._longest_waste_secs, wasted_secs)

  def finish(self, index: int, secs: float, timed_out: bool):
    """Records that a program has a verdict.

    Args:
      index: Its index.
      secs: Seconds of all its decided cases.
      timed_out: Whether it exceeded a limit of its own.
    """
    self._left.discard(index)
    if not timed_out:
      self._finished.add(secs)

  def next_round(self) -> list[Attempt]:
    """Returns the attempts of the next round.

    Returns:
      No attempt if all programs have finished or the budget is used up; the
      programs that are left are then too slow.
    """
    left = self._by_need()
    # In a search, the slots that have nothing left to do wait for the longest.
    self._waited_secs += self._longest_waste_secs
    self._longest_waste_secs = 0.0
    attempts = self._screening(left) or self._search(left)
    self._limits |= {each.index: each.secs for each in attempts}
    return attempts

  def _screening(self, left: Sequence[int]) -> list[Attempt]:
    """Screens programs again whose tests are slower than was known."""
    attempts, budget = [], self._budget()
    for index in left:
      secs = self._screening_secs(index)
      cost = min(secs, self._case_secs)
      if secs > 1.5 * self._limits[index] and cost <= budget:
        attempts.append(self._attempt(index, secs))
        budget -= cost
    return attempts

  def _search(self, left: Sequence[int]) -> list[Attempt]:
    """Gives a few programs their full limits and others less."""
    cost = self._num_slots * self._case_secs
    idle_secs = self._num_slots * self._waited_secs - self._wasted_secs
    budget = self._budget() - max(idle_secs, 0.0)
    if budget < cost / 2:
      return []
    if len(left) <= self._num_slots:
      return [Attempt(index, math.inf) for index in left]
    attempts = [Attempt(index, math.inf) for index in left[: self._num_full]]
    rest = list(left[self._num_full :])
    mean = max(self._all_cases.value(), _MIN_CASE_SECS)
    # A single slot has no time for more than one.
    shares = _SEARCH_LIMITS if self._num_slots > 1 else _SEARCH_LIMITS[1:2]
    for share in shares:
      secs = share * self._case_secs
      if secs > 1.5 * _SCREENING_FACTOR * mean:
        count = max(1, int(_SEARCH_SHARE * cost / secs))
        attempts += [Attempt(index, secs) for index in rest[:count]]
        rest = rest[count:]
    return attempts

  def _budget(self) -> float:
    mean = self._finished.value() + _START_SECS
    return (
      _LIMIT_FACTOR * self._num_slots * self._case_secs
      + _MEAN_FACTOR * mean * len(self._kinds)
      - self._wasted_secs
    )

  def _attempt(self, index: int, secs: float) -> Attempt:
    return Attempt(index, secs if secs < self._case_secs else math.inf)

  def _screening_secs(self, index: int) -> float:
    cases = self._cases[self._kinds[index]]
    mean = max(cases.value(self._all_cases.value()), _MIN_CASE_SECS)
    return _SCREENING_FACTOR * mean

  def _by_need(self) -> list[int]:
    """Returns the programs that are left, the most promising ones first.

    They are those whose tests nobody knows, then those of the slowest tests.
    Programs of different tests alternate.
    """
    seen: dict[Hashable, int] = {}
    ranks = []
    for index in sorted(self._left):
      kind = self._kinds[index]
      seen[kind] = seen.get(kind, 0) + 1
      ranks.append((seen[kind], -self._cases[kind].value(math.inf), index))
    return [index for _, _, index in sorted(ranks)]


class _Mean:
  """The running mean of `count` numbers of seconds."""

  def __init__(self):
    self._sum, self.count = 0.0, 0

  def add(self, total: float, count: int = 1):
    self._sum += total
    self.count += count

  def value(self, default: float = 0.0) -> float:
    """Returns the mean, or the default of no numbers."""
    return self._sum / self.count if self.count else default
