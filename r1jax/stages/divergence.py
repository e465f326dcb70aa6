"""Stops a training run whose updates are not finite, step after step."""

from typing import Any

import jax
import numpy as np

from r1jax.errors import Diverged

SKIPPED = 'skipped_updates'  # Also 'critic/skipped_updates'.
_MIN_STEPS, _MIN_UPDATES = 3, 10  # So many in a row are no accident.
_PENDING = 10  # Steps whose metrics are read from the device at once.


class DivergenceGuard:
  """Counts the steps in a row of which nothing was learnt.

  A step is lost if all updates of a network were skipped, as a gradient that is
  not finite is, or if its loss is not finite.

  Attributes:
    lost: Number of lost steps in a row, up to the last `check`.
  """

  def __init__(self, name: str, num_steps: int, updates_per_step: int):
    """Stores the arguments.

    Args:
      name: The stage, for the error.
      num_steps: Its steps, counted from 1.
      updates_per_step: Updates of a network in each of them.
    """
    self._name, self._num_steps = name, num_steps
    self._updates_per_step = updates_per_step
    self._pending: list[tuple[int, dict[str, Any]]] = []
    self._steps = 0
    self.lost = 0

  def add(self, step: int, metrics: dict[str, Any]):
    """Takes the metrics of a step, which may still be on the device."""
    watched = {
      name: value
      for name, value in metrics.items()
      if name == 'loss' or name.rpartition('/')[2] == SKIPPED
    }
    self._pending.append((step, watched))

  @property
  def is_due(self) -> bool:
    """Whether so many steps were taken that they should be checked."""
    return len(self._pending) >= _PENDING

  def check(self):
    """Counts the steps that were taken.

    Raises:
      Diverged: too many in a row are lost, or half of the whole run at its end.
    """
    pending, self._pending = self._pending, []
    for (step, _), values in zip(
      pending, jax.device_get([watched for _, watched in pending])
    ):
      self._steps += 1
      self.lost = self.lost + 1 if self._is_lost(values) else 0
      too_many = (
        self.lost >= _MIN_STEPS
        and self.lost * self._updates_per_step >= _MIN_UPDATES
      )
      at_end = step == self._num_steps and 2 * self.lost >= self._steps
      if too_many or at_end:
        raise Diverged(self._message(step))

  def _is_lost(self, values: dict[str, Any]) -> bool:
    return any(
      not np.isfinite(value)
      if name == 'loss'
      else value >= self._updates_per_step
      for name, value in values.items()
    )

  def _message(self, step: int) -> str:
    first = step - self.lost + 1
    steps = f'step {step}' if first == step else f'steps {first} to {step}'
    return (
      f'{self._name}: training has diverged: no update of {steps} was finite; '
      f'lower {self._name}.optimizer.learning_rate or look at what was learnt '
      'from before, and begin in another --workdir'
    )
