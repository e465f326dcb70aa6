"""Stops a run of which too many updates are skipped, though not all of them.

An update whose gradient is not finite is skipped, and one now and then is no
harm. Where a large share is lost over many steps, the run learns from what is
left, which is no fair sample of its data.
"""

from collections import deque
from collections.abc import Mapping
import math
from typing import Any

from r1jax.config.schema.training import SkippedUpdatesConfig
from r1jax.errors import TooManySkipped

SKIPPED = 'skipped_updates'  # Also 'critic/skipped_updates'.


class SkippedWindow:
  """The share of skipped updates over the last steps."""

  def __init__(
    self,
    name: str,
    updates_per_step: int,
    limit: SkippedUpdatesConfig | None = None,
  ):
    """Stores the arguments.

    Args:
      name: The stage, for the error.
      updates_per_step: Updates of a network in each step.
      limit: The limit; None for none.
    """
    self._name, self._updates_per_step = name, updates_per_step
    self._limit = limit
    self._shares = deque[float](maxlen=limit.window_steps if limit else 0)

  def get_state(self) -> list[float]:
    """Returns the shares of the last steps, as JSON."""
    return list(self._shares)

  def set_state(self, shares: list[float]):
    """Goes on after the steps of `get_state`."""
    self._shares.clear()
    self._shares.extend(shares)

  def add(self, step: int, values: Mapping[str, Any]):
    """Takes the metrics of a step.

    Args:
      step: The step.
      values: Its loss, and its skipped updates of each network. A loss that is
        not finite counts as a step whose updates were all skipped.

    Raises:
      TooManySkipped: the share over the last steps is above the limit.
    """
    limit = self._limit
    if limit is None or limit.max_frac >= 1:
      return
    skipped = [
      min(float(value) / self._updates_per_step, 1.0)
      for name, value in values.items()
      if name.rpartition('/')[2] == SKIPPED
    ]
    lost = not math.isfinite(values.get('loss', 0.0))
    self._shares.append(1.0 if lost else max(skipped, default=0.0))
    mean = sum(self._shares) / limit.window_steps
    if len(self._shares) == limit.window_steps and mean > limit.max_frac:
      raise TooManySkipped(
        f'{self._name}: of the updates of steps '
        f'{step - limit.window_steps + 1} to {step} {mean:.0%} were skipped, as '
        'gradients or losses were not finite, and skipped_updates.max_frac is '
        f'{limit.max_frac:g}; lower {self._name}.optimizer.learning_rate and '
        "begin in another --workdir, perhaps with init='WORKDIR@STEP', or go on "
        'here with a higher limit'
      )
