"""The choice of the checkpoints that are kept when a new one is saved."""

from collections.abc import Mapping, Sequence
import dataclasses

from orbax.checkpoint import checkpoint_managers as policies


@dataclasses.dataclass(frozen=True)
class Retention:
  """The checkpoints that are kept when a new one is saved.

  Attributes:
    save_total_limit: The last so many.
    keep_period: Also those of all steps that are multiples of it; 0 for none.
    metric: Also the one with the best value of this metric; '' for none.
    lower_is_better: Whether the best value is the smallest.
  """

  save_total_limit: int
  keep_period: int = 0
  metric: str = ''
  lower_is_better: bool = False

  def policy(self, values: Mapping[int, float]) -> policies.PreservationPolicy:
    """Returns what Orbax asks after each save.

    Args:
      values: The metric by step; it changes while the run goes on.
    """
    kept = [policies.LatestN(self.save_total_limit)]
    if self.keep_period:
      kept.append(policies.EveryNSteps(self.keep_period))
    if self.metric:
      kept.append(_Best(values, self))
    return policies.AnyPreservationPolicy(kept)

  def best(self, values: Mapping[int, float]) -> int | None:
    """Returns the step with the best metric, of several the last."""
    sign = -1 if self.lower_is_better else 1
    rank = lambda step: (sign * values[step], step)
    return max(values, key=rank, default=None)


class _Best:
  """Keeps the checkpoint with the best metric."""

  def __init__(self, values: Mapping[int, float], retention: Retention):
    self._values, self._retention = values, retention

  def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
    del context
    steps = [each.step for each in checkpoints]
    there = {k: v for k, v in self._values.items() if k in steps}
    best = self._retention.best(there)
    return [step == best for step in steps]
