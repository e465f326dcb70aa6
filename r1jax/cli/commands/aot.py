"""r1jax aot: compiles a config's update for a TPU slice that is not there."""

import sys

from absl import flags

from r1jax.config.schema.run import RunConfig

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines --topology."""
  flags.DEFINE_string(
    'topology', 'v5p:8x8x16', 'Chip and shape of the slice.', flag_values=values
  )


def run(config: RunConfig, values: flags.FlagValues):
  """Prints memory and FLOPs; exits with 3 if the program does not fit."""
  from r1jax.launch import aot

  code = aot.show(config, values.topology)
  if code:
    sys.exit(code)
