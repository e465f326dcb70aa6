"""The speed of a training loop, which leaves out all that is no step."""

from collections.abc import Iterator, Mapping
import contextlib
from typing import Any

import jax

from r1jax.train.metrics import Progress, peak_memory


class Speed:
  """Counts and times of the steps since the last line of metrics.jsonl."""

  def __init__(self):
    self.clear()

  def clear(self):
    self._counts: dict[str, float] = {}
    self._parts: dict[str, float] = {}
    self._steps = 0
    self._secs = 0.0

  def add(self, counts: Mapping[str, float], secs: Mapping[str, float]):
    """Takes what a step has processed, and the seconds of its parts."""
    for name, count in counts.items():
      self._counts[name] = self._counts.get(name, 0.0) + count
    for name, part in secs.items():
      self._parts[name] = self._parts.get(name, 0.0) + part
    self._steps += 1

  def shown(self, secs: float) -> dict[str, float]:
    """Returns what was processed a second, a step's seconds, and the memory.

    Args:
      secs: Time of the last steps, without what `untimed` left out.
    """
    return (
      {
        f'speed/{name}_per_sec': count / (self._secs + secs)
        for name, count in self._counts.items()
      }
      | {
        f'time/{name}': part / self._steps for name, part in self._parts.items()
      }
      | {'memory/peak_gb': peak_memory() / 1e9}
    )

  @contextlib.contextmanager
  def untimed(self, state: Any, progress: Progress) -> Iterator[None]:
    """Leaves what is done within out of the speed, which is of steps alone."""
    jax.block_until_ready(state)
    self._secs += progress.step_secs()
    yield
    progress.step_secs()
