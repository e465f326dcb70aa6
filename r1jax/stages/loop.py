"""The state of a training loop: its steps, and what they share."""

from collections.abc import Mapping
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from r1jax import buckets
from r1jax.stages.divergence import DivergenceGuard
from r1jax.stages.line import Line
from r1jax.stages.performance import Performance, Work
from r1jax.stages.stragglers import Stragglers
from r1jax.train.metrics import MetricsWriter, Progress

if TYPE_CHECKING:
  from r1jax.train.checkpoint import Checkpointer


class StepOutput(NamedTuple):
  """The result of a training step.

  Attributes:
    state: The state after the step.
    metrics: Numbers by name, on the device or on the host.
    counts: Amounts processed, for the speed: {'tokens': 4096}.
    secs: Seconds of the parts of the step, {'rollout': 1.5}; what they leave of
      the step is the update, unless that is among them.
    own_secs: Seconds in which this process worked alone, without waiting for a
      device or another process, by part.
    work: Tokens and model FLOPs of the parts.
  """

  state: Any
  metrics: dict[str, Any]
  counts: dict[str, float]
  secs: Mapping[str, float] = {}
  own_secs: Mapping[str, float] = {}
  work: Mapping[str, Work] = {}


class Step(NamedTuple):
  """A whole step, as a checkpoint holds it.

  Attributes:
    step: The step.
    state: The state after it.
    position: The position of the data behind it.
    line: Metrics up to it that are in no line yet.
  """

  step: int
  state: Any
  position: dict
  line: Line


@dataclasses.dataclass(kw_only=True)
class Loop:
  """The things that all steps of a training run share.

  Attributes:
    last: The last whole step.
    data: The data, at the position of the next step.
    checkpoints, writer, progress: They save and show steps.
    guard: It stops a run that diverges.
    pushes: They keep the run's folder in its bucket up to date.
    performance, stragglers: Speed, and the own time of each host, since the
      last line of performance.jsonl.
    values: Metrics of the last step's line; {} where it has none.
  """

  last: Step
  data: Any
  checkpoints: 'Checkpointer'
  writer: MetricsWriter
  progress: Progress
  guard: DivergenceGuard
  performance: Performance
  stragglers: Stragglers
  pushes: buckets.Pushes
  values: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def save(self, rating: float | None = None):
    """Starts to save the last whole step.

    Args:
      rating: The metric that says which checkpoint is the best, if known.
    """
    step, state, position, line = self.last
    # First, so that the bucket has every line up to a checkpoint in it.
    self.pushes.now()
    self.checkpoints.save(
      step,
      state,
      {
        'data': position,
        'line': line.get_state(),
        'guard': self.guard.get_state(),
      },
      rating,
    )

  def save_if_there(self):
    """Saves the last whole step, if its state is still there.

    An update consumes its state: within one, there is nothing to save.
    """
    consumed = any(
      leaf.is_deleted()
      for leaf in jax.tree.leaves(self.last.state)
      if isinstance(leaf, jax.Array)
    )
    if self.last.step and not consumed:
      self.save()
