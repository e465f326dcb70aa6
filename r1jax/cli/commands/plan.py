"""r1jax plan: proposes meshes for a config on so many chips, best first."""

from absl import flags

from r1jax.cli import length_flags
from r1jax.config.schema.run import RunConfig

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines the chips, and the lengths of samples."""
  flags.DEFINE_integer(
    'chips', None, 'Number of chips.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_string('chip', 'v5p', 'The chip.', flag_values=values)
  flags.DEFINE_integer(
    'count', 5, 'Number of meshes to show.', lower_bound=1, flag_values=values
  )
  length_flags.define(values)


def run(config: RunConfig, values: flags.FlagValues):
  """Prints a table of meshes with their memory and time."""
  from r1jax import chips
  from r1jax.errors import UserError
  from r1jax.launch import plan, roofline

  if values.chip not in chips.CHIPS:
    raise UserError(
      f'--chip: {values.chip!r} is none of {", ".join(chips.CHIPS)}'
    )
  if not values.chips:
    raise UserError('--chips: say how many chips there are')
  lengths = roofline.lengths_of(
    config, values.prompt_tokens, values.completion_tokens
  )
  chip = chips.CHIPS[values.chip]
  plan.show(config, chip, values.chips, lengths, values.count)
