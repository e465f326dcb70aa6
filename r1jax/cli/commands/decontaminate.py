"""r1jax decontaminate: lists training questions that occur in evaluations."""

from absl import flags

from r1jax.config.schema.run import RunConfig

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines --out."""
  flags.DEFINE_string(
    'out', '', 'Where to write the whole report, as JSON.', flag_values=values
  )


def run(config: RunConfig, values: flags.FlagValues):
  """Prints a summary for each training set."""
  from r1jax.stages.build import prompts

  prompts.show_overlap(config, values.out)
