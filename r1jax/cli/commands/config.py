"""r1jax config: prints a config with all keys, as YAML."""

import json

from absl import flags
from ml_collections import ConfigDict

KIND = 'config'


def define_flags(values: flags.FlagValues):
  """Defines no flags."""
  del values


def run(config: ConfigDict, values: flags.FlagValues):
  """Prints the config with its overrides."""
  del values
  import yaml

  print(yaml.safe_dump(json.loads(config.to_json())), end='')
