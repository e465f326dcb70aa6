"""Stops a training run that diverges: its loss or its parameters explode."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from r1jax import processes
from r1jax.config.schema.training import SkippedUpdatesConfig
from r1jax.errors import Diverged
from r1jax.stages.skipped import SKIPPED, SkippedWindow

if TYPE_CHECKING:
  from r1jax.stages.trainer import TrainedStage

_MIN_STEPS, _MIN_UPDATES = 3, 10  # So many in a row are no accident.
# A mean of negative log-likelihoods that is so many times the first one, and so
# many nats, step after step, is of a model that no longer predicts anything.
_FAR, _LEAST_FIRST_NATS = 10.0, 1.0
# Parameters so many times as large as at the start are no trained ones, whatever
# the loss is: that of a policy may be 0.
_FAR_NORM = 100.0
_PENDING = 10  # Steps whose metrics are read from the device at once.


class DivergenceGuard:
  """Counts the steps in a row of which nothing was learnt.

  A step is lost if all updates of a network were skipped, as a gradient that is
  not finite is, or if its loss is not finite, or is ten times the first one. The
  last is not asked of losses that may be near 0, as that of a policy is. Whatever
  the loss, parameters whose norm has grown a hundredfold end the run.

  Attributes:
    lost: Number of lost steps in a row, up to the last `check`.
  """

  def __init__(
    self,
    name: str,
    num_steps: int,
    updates_per_step: int,
    likelihoods: bool = False,
    skipped_limit: SkippedUpdatesConfig | None = None,
  ):
    """Stores the arguments.

    Args:
      name: The stage, for the error.
      num_steps: Its steps, counted from 1.
      updates_per_step: Updates of a network in each of them.
      likelihoods: Whether the loss is a mean of negative log-likelihoods.
      skipped_limit: The largest share of updates that may be skipped; None for
        no limit.
    """
    self._name, self._num_steps = name, num_steps
    self._updates_per_step = updates_per_step
    self._pending: list[tuple[int, dict[str, Any]]] = []
    self._steps = 0
    self._likelihoods = likelihoods
    self._bound: float | None = None  # It stands after the first step.
    self._first_norm = 0.0
    self._window = SkippedWindow(name, updates_per_step, skipped_limit)
    self.lost = 0

  def begin(self, params: Any):
    """Takes the parameters of the start."""
    self._first_norm = _norm(params)

  def get_state(self) -> dict:
    """Returns what it measures against and has counted, as JSON."""
    return {
      'first_norm': self._first_norm,
      'bound': self._bound,
      'steps': self._steps,
      'lost': self.lost,
      'skipped': self._window.get_state(),
    }

  def set_state(self, state: dict):
    """Goes on as the guard of `get_state`, instead of `begin`."""
    self._first_norm, self._bound = state['first_norm'], state['bound']
    self._steps, self.lost = state['steps'], state['lost']
    self._window.set_state(state.get('skipped', []))  # Older ones have none.

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

  def check(self, params: Any):
    """Counts the steps that were taken.

    Args:
      params: The parameters after them.

    Raises:
      Diverged: too many in a row are lost, or half of the whole run at its end;
        or the parameters have exploded.
      TooManySkipped: too large a share of the updates was skipped.
    """
    pending, self._pending = self._pending, []
    for (step, _), values in zip(
      pending, jax.device_get([watched for _, watched in pending])
    ):
      self._steps += 1
      if self._likelihoods and self._steps == 1 and 'loss' in values:
        self._bound = _FAR * max(float(values['loss']), _LEAST_FIRST_NATS)
      self.lost = self.lost + 1 if self._is_lost(values) else 0
      too_many = (
        self.lost >= _MIN_STEPS
        and self.lost * self._updates_per_step >= _MIN_UPDATES
      )
      at_end = step == self._num_steps and 2 * self.lost >= self._steps
      if too_many or at_end:
        raise Diverged(self._message(step))
      self._window.add(step, values)
    growth = _norm(params) / max(self._first_norm, 1e-30)
    if pending and self._first_norm and not growth <= _FAR_NORM:
      raise Diverged(
        f'{self._name}: training has diverged: the norm of the parameters is '
        f'{growth:.0f} times that at the start; {self._advice}'
      )

  def _is_lost(self, values: dict[str, Any]) -> bool:
    bound = self._bound
    return any(
      not (np.isfinite(value) and (bound is None or value <= bound))
      if name == 'loss'
      else value >= self._updates_per_step
      for name, value in values.items()
    )

  def _message(self, step: int) -> str:
    first = step - self.lost + 1
    steps = f'step {step}' if first == step else f'steps {first} to {step}'
    return (
      f'{self._name}: training has diverged: no update of {steps} was finite, '
      f'or the loss is more than ten times the first one; {self._advice}'
    )

  @property
  def _advice(self) -> str:
    return (
      f'lower {self._name}.optimizer.learning_rate or look at what was learnt '
      'from before, and begin in another --workdir'
    )


def guard_of(
  stage: 'TrainedStage', restored: Any, state: Any
) -> DivergenceGuard:
  """Returns the guard of a stage that begins, or goes on.

  Args:
    stage: The stage.
    restored: The result of Checkpointer.restore; None for a new stage.
    state: The state that it begins with, or goes on with.
  """
  guard = DivergenceGuard(
    stage.name,
    stage.num_steps,
    stage.updates_per_step,
    stage.likelihoods,
    stage.skipped_limit,
  )
  if restored and 'guard' in restored[2]:
    guard.set_state(restored[2]['guard'])
  else:  # A new run, or a checkpoint from before guards were in it.
    guard.begin(stage.policy(state))
  return guard


_tree_norm = jax.jit(optax.tree.norm)


def _norm(params: Any) -> float:
  """Returns the norm of parameters, also where this process has only shapes."""
  return processes.from_holders(params, lambda: float(_tree_norm(params)))
