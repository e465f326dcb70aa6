"""r1jax train: runs the stages of a config."""

from absl import flags
from ml_collections import ConfigDict

from r1jax.cli import config_file
from r1jax.errors import UserError

KIND = 'config'


def define_flags(values: flags.FlagValues):
  """Defines --workdir."""
  config_file.define_workdir_flag(values)


def run(config: ConfigDict, values: flags.FlagValues):
  """Trains, or resumes a run that was interrupted."""
  from r1jax.runs import run as runs

  if 'model' not in config:
    raise UserError('train: this config is a pipeline; use r1jax pipeline')
  runs.train(config, values.workdir or config_file.default_workdir(values))
