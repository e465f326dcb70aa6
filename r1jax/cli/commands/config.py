"""r1jax config: prints a config with all keys, or what its keys mean."""

import json

from absl import flags
from ml_collections import ConfigDict

KIND = 'config'


def define_flags(values: flags.FlagValues):
  """Defines no flags."""
  del values


def help_text(keys: list[str]) -> str:
  """Explains keys and sections of a config: `r1jax config --help rl.kl_coef`.

  Args:
    keys: Dotted keys; none for the sections and keys of the root.

  Raises:
    UserError: There is no such key; names the nearest.
  """
  from r1jax.config import reference

  if keys:
    return '\n'.join(map(reference.describe, keys))
  return (
    'keys of a config; `r1jax config --help KEY` explains a key or section:\n\n'
    + reference.describe('')
  )


def run(config: ConfigDict, values: flags.FlagValues):
  """Prints the config with its overrides, as YAML."""
  del values
  import yaml

  print(yaml.safe_dump(json.loads(config.to_json())), end='')
