"""r1jax info: counts the parameters, FLOPs and memory of a config."""

from absl import flags

from r1jax.config.schema.run import RunConfig

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines --devices."""
  flags.DEFINE_integer(
    'devices',
    0,
    'Number of devices of the mesh; 0: those of this machine.',
    lower_bound=0,
    flag_values=values,
  )


def run(config: RunConfig, values: flags.FlagValues):
  """Prints a table."""
  import jax

  from r1jax.launch import info
  from r1jax.runs import stage_list

  stage_list.check_names(config)
  info.show(config, values.devices or jax.device_count())
