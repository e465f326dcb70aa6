"""Weights & Biases: WANDB_PROJECT, WANDB_MODE and the like are its own."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from r1jax import registry
from r1jax.tracking.tracker import PROJECT, TrackedRun, Tracker


@registry.tracker('wandb')
class Wandb(Tracker):
  """Shows a stage as a run of Weights & Biases, over its own steps.

  The steps are a metric of their own: a run that goes on from a checkpoint
  makes steps again, which the counter of Weights & Biases does not allow.
  """

  package = extra = 'wandb'

  def __init__(self, run: TrackedRun):
    import wandb

    self._table = wandb.Table
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      name=run.name,
      id=run.id or None,
      resume='allow',
      dir=str(run.folder),
      config=dict(run.config),
      # It would take the terminal's output from the loggers.
      settings=wandb.Settings(console='off'),
    )
    self._run.define_metric('*', step_metric='step')
    self.id = self._run.id

  def write(self, step: int, values: Mapping[str, float]):
    numbers = {name: float(value) for name, value in values.items()}
    self._run.log({'step': step} | numbers)

  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    columns: list[str | int] = list(rows[0])
    data = [[row.get(str(name)) for name in columns] for row in rows]
    table = self._table(columns=columns, data=data, allow_mixed_types=True)
    self._run.log({'step': step, 'completions': table})

  def close(self, failed: bool):
    self._run.finish(exit_code=int(failed))
