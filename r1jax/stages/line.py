"""The line of metrics.jsonl that a run is about to write."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from r1jax.stages.divergence import SKIPPED


@dataclasses.dataclass(frozen=True)
class Line:
  """Metrics since the last line, as a checkpoint holds them.

  A run that was killed before its last step had a line, as in a long
  evaluation, writes that line when it goes on.

  Attributes:
    metrics: Numbers of the last step by name, on the device or on the host.
    skipped: Skipped updates, summed over the steps since the last line.
    is_due: Whether the last step still has to be logged.
  """

  metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  skipped: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  is_due: bool = False

  def after(self, metrics: Mapping[str, Any]) -> 'Line':
    """Returns the line after a step of these metrics."""
    skipped = {
      name: self.skipped.get(name, 0.0) + value
      for name, value in metrics.items()
      if name.rpartition('/')[2] == SKIPPED
    }
    return Line(metrics, {**self.skipped, **skipped}, True)

  def logged(self, written: bool) -> 'Line':
    """Returns the line after its step was logged.

    Args:
      written: Whether it was written; its sums begin anew then.
    """
    return Line(skipped={} if written else self.skipped)

  def values(self) -> dict[str, Any]:
    """Returns the last step's metrics on the host, and sums of some."""
    return jax.device_get({**self.metrics, **self.skipped})

  def get_state(self) -> dict:
    """Returns the line as JSON."""
    kept = self.metrics if self.is_due else {}
    metrics, skipped = jax.device_get((dict(kept), dict(self.skipped)))
    return {
      'metrics': {name: float(value) for name, value in metrics.items()},
      'skipped': {name: float(value) for name, value in skipped.items()},
      'is_due': self.is_due,
    }
