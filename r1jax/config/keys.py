"""A config as flat keys: how keys are compared, suggested and recorded."""

import dataclasses
from typing import Any

from r1jax.config.field import specs


def flatten(config: dict, prefix: str = '') -> dict:
  """{'rl': {'max_steps': 3}} → {'rl.max_steps': 3}, with JSON's types."""
  flat: dict = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def record(section: Any) -> dict:
  """Returns a section as nested dicts, without keys that no result depends on.

  It is what config.json in a workdir holds, and what a later run in the same
  workdir is compared with.
  """
  values = dataclasses.asdict(section)
  for name, spec in specs(type(section)).items():
    if spec.is_section:
      values[name] = record(getattr(section, name))
    elif not spec.recorded:
      del values[name]
  return values
