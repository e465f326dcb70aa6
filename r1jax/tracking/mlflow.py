"""MLflow: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are its own."""

from collections.abc import Mapping, Sequence
import os
import re
import time
from typing import Any

from r1jax import registry
from r1jax.tracking.tracker import PROJECT, TrackedRun, Tracker

_MAX_VALUE = 6000  # Characters of a parameter that MLflow keeps.
_BATCH = 100  # Parameters of one call.


@registry.tracker('mlflow')
class MLflow(Tracker):
  """Shows a stage as a run of an experiment of MLflow."""

  package = extra = 'mlflow'

  def __init__(self, run: TrackedRun):
    from mlflow import MlflowClient, entities

    self._entities, self._client = entities, MlflowClient()
    self.id = run.id or self._new(run)
    self._client.update_run(self.id, status='RUNNING')

  def _new(self, run: TrackedRun) -> str:
    """Begins a run with the config as its parameters; returns its id."""
    client = self._client
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    found = client.get_experiment_by_name(name)
    experiment = (
      found.experiment_id if found else client.create_experiment(name)
    )
    made = client.create_run(experiment, run_name=run.name).info.run_id
    params = [
      self._entities.Param(_name(key), str(value)[:_MAX_VALUE])
      for key, value in run.config.items()
    ]
    for start in range(0, len(params), _BATCH):
      client.log_batch(made, params=params[start : start + _BATCH])
    return made

  def write(self, step: int, values: Mapping[str, float]):
    now = int(time.time() * 1000)
    metrics = [
      self._entities.Metric(_name(name), float(value), now, step)
      for name, value in values.items()
    ]
    self._client.log_batch(self.id, metrics=metrics)

  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    # A list is as good JSON as the dictionary that its annotation asks for.
    completions: Any = [dict(row) for row in rows]
    self._client.log_dict(
      self.id, completions, f'completions/step_{step:06d}.json'
    )

  def close(self, failed: bool):
    self._client.set_terminated(self.id, 'FAILED' if failed else 'FINISHED')


def _name(key: str) -> str:
  """Returns a name that MLflow takes: 'eval/pass@1' → 'eval/pass_at_1'."""
  return re.sub(r'[^\w\-./ ]', '_', key.replace('@', '_at_'))
