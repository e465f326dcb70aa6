"""A config as flat keys: how keys are compared, suggested and recorded."""


def flatten(config: dict, prefix: str = '') -> dict:
  """{'rl': {'max_steps': 3}} → {'rl.max_steps': 3}, with JSON's types."""
  flat: dict = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
