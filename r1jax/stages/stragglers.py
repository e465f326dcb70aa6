"""Finds the host of a run that makes the others wait.

All processes run the same programs over the same arrays, so whatever the
slowest one takes, all take: the time of a step does not tell which it was. What
differs is the time in which a process works on its own and no device or other
process is waited for: scheduling between two programs of the sampler, its share
of the scores, advantages and packing, reading data. A device that is slow
itself does not show here: all wait for it, its own host among them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import logging
import statistics

from r1jax import processes

_log = logging.getLogger(__name__)

# A warning names a host that is so much slower than the median of the others,
# in so many steps in a row, at the cost of at least this share of a step.
SLOW_FACTOR, SLOW_STEPS, MIN_SHARE = 1.5, 5, 0.05


class Stragglers:
  """The own time of each host in the steps since the last line."""

  def __init__(self, stage: str):
    self._stage = stage
    self._slow, self._in_a_row = -1, 0
    self.clear()

  def clear(self):
    self._steps: list[Sequence[Mapping[str, float]]] = []

  def add(
    self,
    step: int,
    secs_of_hosts: Sequence[Mapping[str, float]],
    step_secs: float,
  ):
    """Adds a step, and warns of a host that is slow again and again.

    Args:
      step: The step.
      secs_of_hosts: Own seconds of each process, by part.
      step_secs: Seconds of the step.
    """
    if len(secs_of_hosts) < 2:
      return
    self._steps.append(secs_of_hosts)
    total = [sum(secs.values()) for secs in secs_of_hosts]
    slowest = _slowest(total)
    others = statistics.median(total[:slowest] + total[slowest + 1 :])
    excess = total[slowest] - others
    slow = total[slowest] > SLOW_FACTOR * others and (
      excess > MIN_SHARE * step_secs
    )
    if not slow:
      self._slow, self._in_a_row = -1, 0
      return
    self._in_a_row = self._in_a_row + 1 if slowest == self._slow else 1
    self._slow = slowest
    if self._in_a_row % SLOW_STEPS == 0 and processes.is_first():
      _log.warning(
        '%s: process %d was the slowest host of steps %d to %d: its own work '
        'takes %.2f s of a step of %.2f s, the median of the others %.2f s '
        '(%s)',
        self._stage,
        slowest,
        step - self._in_a_row + 1,
        step,
        total[slowest],
        step_secs,
        others,
        ', '.join(
          f'{part} {secs:.2f} s'
          for part, secs in secs_of_hosts[slowest].items()
        ),
      )

  def metrics(self) -> dict[str, float]:
    """Returns the host/… metrics of the last line; {} for one process."""
    if not self._steps:
      return {}
    parts = sorted(
      {part for hosts in self._steps for each in hosts for part in each}
    )
    of_part = lambda part: [
      statistics.fmean(hosts[i].get(part, 0.0) for hosts in self._steps)
      for i in range(len(self._steps[0]))
    ]
    found: dict[str, float] = {}
    for part in parts:
      found |= _of_hosts(f'host/{part}_', of_part(part))
    totals = [sum(each) for each in zip(*map(of_part, parts))]
    found |= _of_hosts('host/', totals or [0.0])
    slowest = Counter(
      _slowest([sum(each.values()) for each in hosts]) for hosts in self._steps
    )
    return found | {'host/slowest': float(slowest.most_common(1)[0][0])}


def _of_hosts(prefix: str, secs: list[float]) -> dict[str, float]:
  return {
    f'{prefix}time_max': max(secs),
    f'{prefix}time_mean': statistics.fmean(secs),
    f'{prefix}slowest': float(_slowest(secs)),
  }


def _slowest(secs: Sequence[float]) -> int:
  return max(range(len(secs)), key=lambda i: secs[i])
