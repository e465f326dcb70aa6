"""Calls the graders of a plugin, inside a worker process."""

from collections.abc import Callable
from typing import Any

from r1jax import registry
from r1jax.workers import plugin_call


def prepare(plugin: str, digest: str) -> Callable[[dict], dict]:
  """Imports the plugin and returns the job function."""
  plugin_call.load(plugin, digest)
  return handle


def handle(job: dict) -> dict:
  """Calls the grader of a name with an answer and the gold answer.

  Args:
    job: {'name': …, 'answer': …, 'gold': …}.

  Returns:
    {'value': a score within [0, 1], or None for an unparsable answer}; or
    {'error': text}.
  """
  return plugin_call.call(
    registry.grader, job['name'], [job['answer'], job['gold']], _score
  )


def _score(value: Any) -> float | None:
  if value is None:
    return None
  score = plugin_call.number(value)
  if not 0 <= score <= 1:
    raise plugin_call.BadValueError(f'returned {score}, outside of [0, 1]')
  return score
