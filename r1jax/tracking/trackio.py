"""Trackio: a local dashboard; TRACKIO_DIR and TRACKIO_SPACE_ID are its own."""

from collections.abc import Mapping, Sequence
import os
from typing import Any
import uuid

from r1jax import registry
from r1jax.tracking.tracker import PROJECT, TrackedRun, Tracker


@registry.tracker('trackio')
class Trackio(Tracker):
  """Shows a stage as a run of Trackio, which knows runs by their names."""

  package = extra = 'trackio'

  def __init__(self, run: TrackedRun):
    import trackio

    self._table = trackio.Table
    self.id = run.id or f'{run.name}-{uuid.uuid4().hex[:8]}'
    self._run = trackio.init(
      project=os.environ.get('TRACKIO_PROJECT', PROJECT),
      name=self.id,
      resume='allow',
      config=dict(run.config),
      embed=False,
    )

  def write(self, step: int, values: Mapping[str, float]):
    numbers = {name: float(value) for name, value in values.items()}
    self._run.log(numbers, step=step)

  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    columns = list(rows[0])
    data = [[row.get(name) for name in columns] for row in rows]
    table = self._table(columns=columns, data=data)
    self._run.log({'completions': table}, step=step)

  def close(self, failed: bool):
    del failed
    self._run.finish()
