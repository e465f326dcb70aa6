"""r1jax config: prints a config with all keys, or what its keys mean."""

import json

from absl import flags
from ml_collections import ConfigDict

from r1jax.cli import config_file

KIND = 'config'


def define_flags(values: flags.FlagValues):
  """Defines no flags."""
  del values


def help_text(keys: list[str], cls: type) -> str:
  """Explains keys and sections of a config: `r1jax config --help rl.kl_coef`.

  Args:
    keys: Dotted keys; none for the sections and keys of the root.
    cls: The class of a run's config; with --config it has the sections of
      stages that the plugins of the config register.

  Raises:
    UserError: There is no such key; names the nearest.
  """
  from r1jax.config import reference

  if keys:
    return '\n'.join(reference.describe(key, cls) for key in keys)
  return (
    'keys of a config; `r1jax config --help KEY` explains a key or section:\n\n'
    + reference.describe('', cls)
  )


def run(config: ConfigDict, values: flags.FlagValues):
  """Prints the config with its overrides, as YAML, if `train` would take it.

  Raises:
    UserError: as `r1jax train`, or `r1jax pipeline`, for its keys: all that are
      wrong at once.
  """
  import yaml

  from r1jax.config import effects

  given = config_file.given_keys(values)
  if 'model' in config:
    effects.check(config_file.run_config(config), given)
  elif 'stages' in config:
    from r1jax.runs import pipeline, pipeline_config

    runs = pipeline_config.load_pipeline(config)
    effects.check_all(runs.runs, given, pipeline.evaluations(runs))
  print(yaml.safe_dump(json.loads(config.to_json())), end='')
