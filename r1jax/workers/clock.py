"""Clocks of another process's time, which do not run while it waits for a core.

So a limit on such a clock does not depend on what else the machine does.
"""

from collections.abc import Callable
import contextlib
import ctypes
import os
import sys
import time

# Time asleep counts up to so much between two looks at the clock: whoever looks
# may have waited for a core itself.
_MAX_SLEEP_SECS = 0.1


def cpu_clock(pid: int) -> Callable[[], float]:
  """Returns a clock of a process's CPU-seconds, or the wall clock without one."""
  clock = ctypes.c_int()
  if sys.platform == 'linux' and not ctypes.CDLL(None).clock_getcpuclockid(
    pid, ctypes.byref(clock)
  ):
    return lambda: time.clock_gettime(clock.value)
  return time.monotonic


class BusyClock:
  """Measures the time that a process uses: CPU time, and time asleep.

  A process that waits for a core uses no time, but one that sleeps does: a limit
  on its CPU time alone would never end it. Sleep is sampled, so `read` should be
  called every few hundredths of a second.
  """

  def __init__(self, pid: int):
    self._cpu_secs, self._tasks = cpu_clock(pid), f'/proc/{pid}/task'
    self.restart()

  def restart(self):
    """Sets the clock to 0."""
    self._secs, self._slept = 0.0, False
    self._last = time.monotonic(), self._cpu_secs()

  def read(self) -> float:
    """Returns the seconds that the process has used since the last restart.

    Raises:
      OSError: the process is gone.
    """
    now = time.monotonic(), self._cpu_secs()
    elapsed, worked = (x - y for x, y in zip(now, self._last))
    self._last = now
    sleeps = worked < elapsed / 2 and self._sleeps()
    if sleeps and self._slept:  # It slept all the time, as far as is known.
      worked = max(worked, min(elapsed, _MAX_SLEEP_SECS))
    self._slept = sleeps
    self._secs += worked
    return self._secs

  def _sleeps(self) -> bool:
    """Whether every thread of the process waits for something but a core."""
    with contextlib.suppress(OSError):
      for task in os.listdir(self._tasks):
        with open(f'{self._tasks}/{task}/stat', 'rb') as file:
          state = file.read().rpartition(b')')[2].split(maxsplit=1)[0]
        if state in (b'R', b'D'):  # D: it waits for memory or a file.
          return False
    return True
