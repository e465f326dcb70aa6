"""r1jax info: counts the parameters, FLOPs and memory of a config."""

from absl import flags
from ml_collections import ConfigDict

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


def run(config: ConfigDict, values: flags.FlagValues):
  """Prints a table."""
  import jax

  from r1jax.launch import info
  from r1jax.runs import run as runs

  runs.check_names(config)
  info.show(config, values.devices or jax.device_count())
