"""r1jax train: runs the stages of a config."""

from absl import flags
from ml_collections import ConfigDict

from r1jax.cli import config_file

KIND = 'config'


def define_flags(values: flags.FlagValues):
  """Defines --workdir and --profile_steps."""
  config_file.define_workdir_flag(values)
  flags.DEFINE_string(
    'profile_steps',
    '',
    'Steps of the last stage to profile, FIRST:LAST, such as 10:12.',
    flag_values=values,
  )


def run(config: ConfigDict, values: flags.FlagValues):
  """Trains, or resumes a run that was interrupted."""
  from r1jax import processes
  from r1jax.runs import run as runs
  from r1jax.stages import profile

  with processes.agreed():
    typed = config_file.run_config(config)
    steps = profile.parse(values.profile_steps)
  runs.train(
    typed,
    values.workdir or config_file.default_workdir(values),
    given=config_file.given_keys(values),
    profile_steps=steps,
  )
