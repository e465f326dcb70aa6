"""r1jax aot: compiles the programs of a step for TPU slices that are not there."""

from pathlib import Path
import sys

from absl import flags

from r1jax.cli import length_flags
from r1jax.config.schema.run import RunConfig

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines the slice, the programs, and the lengths of samples."""
  flags.DEFINE_string(
    'topology', 'v5p:8x8x16', 'Chip and shape of a slice.', flag_values=values
  )
  flags.DEFINE_integer('slices', 1, 'Number of slices.', flag_values=values)
  flags.DEFINE_list(
    'programs',
    [],
    'Kinds of programs: relayout, prefill, decode, score, update; by default '
    'all.',
    flag_values=values,
  )
  length_flags.define(values)
  flags.DEFINE_string('json', None, 'File to write to.', flag_values=values)
  flags.DEFINE_bool(
    'cache',
    True,
    'Whether to use reports of earlier calls.',
    flag_values=values,
  )


def run(config: RunConfig, values: flags.FlagValues):
  """Prints memory, cost and time; exits with 3 if a program does not fit."""
  from r1jax.launch import aot_report

  code = aot_report.show(
    config,
    aot_report.Request(
      topology=values.topology,
      slices=values.slices,
      kinds=tuple(values.programs),
      prompt_tokens=values.prompt_tokens,
      completion_tokens=values.completion_tokens,
      json=Path(values.json) if values.json else None,
      cache=values.cache,
    ),
  )
  if code:
    sys.exit(code)
