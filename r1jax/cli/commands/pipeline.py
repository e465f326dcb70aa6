"""r1jax pipeline: runs the stages of a pipeline of configs."""

from absl import flags
from ml_collections import ConfigDict

from r1jax.cli import config_file
from r1jax.errors import UserError

KIND = 'config'


def define_flags(values: flags.FlagValues):
  """Defines --workdir, --only and --from."""
  config_file.define_workdir_flag(values)
  flags.DEFINE_string('only', '', 'The one stage to run.', flag_values=values)
  flags.DEFINE_string('from', '', 'The first stage to run.', flag_values=values)


def run(config: ConfigDict, values: flags.FlagValues):
  """Runs every stage that is not finished, or those that the flags select."""
  from r1jax import processes
  from r1jax.runs import pipeline, pipeline_config

  if 'stages' not in config or 'model' in config:
    raise UserError('pipeline: this config is of one run; use r1jax train')
  with processes.agreed():
    typed = pipeline_config.load_pipeline(config)
  pipeline.train(
    typed,
    values.workdir or config_file.default_workdir(values),
    values.only,
    values['from'].value or '',
    config_file.given_keys(values),
  )
