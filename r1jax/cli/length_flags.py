"""Flags of the mean lengths of samples, which several commands have."""

from absl import flags


def define(values: flags.FlagValues):
  """Defines --prompt_tokens and --completion_tokens."""
  for name, what in (
    ('prompt_tokens', 'a prompt'),
    ('completion_tokens', 'a completion'),
  ):
    flags.DEFINE_float(
      name,
      None,
      f'Mean tokens of {what}; by default the most that the config allows.',
      lower_bound=1,
      flag_values=values,
    )
