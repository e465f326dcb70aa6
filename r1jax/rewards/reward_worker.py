"""Calls the rewards of a plugin, inside a worker process."""

from collections.abc import Callable
from typing import Any

from r1jax import registry
from r1jax.rewards.sample import Sample
from r1jax.workers import plugin_call
from r1jax.workers.plugin_call import BadValueError


def prepare(plugin: str, digest: str) -> Callable[[dict], dict]:
  """Imports the plugin and returns the job function."""
  plugin_call.load(plugin, digest)
  return handle


def handle(job: dict) -> dict:
  """Calls the reward of a name.

  Args:
    job: {'name': …, 'samples': […], 'batch': …}, the samples as
      Sample.to_json gives them: one, unless the reward takes a batch.

  Returns:
    {'value': scores}, one for each sample: a number, None or a dict of named
    numbers; or {'error': text}.
  """
  samples = [Sample.from_json(sample) for sample in job['samples']]
  if job['batch']:
    return plugin_call.call(
      registry.reward,
      job['name'],
      [samples],
      lambda values: _scores(values, len(samples)),
    )
  return plugin_call.call(
    registry.reward, job['name'], samples, lambda value: [_score(value)]
  )


def _scores(values: Any, num_samples: int) -> list:
  if isinstance(values, (str, dict)) or not hasattr(values, '__len__'):
    raise BadValueError(
      f'returned {type(values).__name__} instead of a list of '
      f'{num_samples} values'
    )
  if len(values) != num_samples:
    raise BadValueError(
      f'returned {len(values)} values for {num_samples} samples'
    )
  return [_score(value) for value in values]


def _score(value: Any) -> float | dict[str, float] | None:
  if value is None:
    return None
  if isinstance(value, dict):
    return {str(name): plugin_call.number(part) for name, part in value.items()}
  return plugin_call.number(value)
