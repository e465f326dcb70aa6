"""r1jax lineage: shows what a run was made from, as a tree."""

from absl import flags

from r1jax import buckets

KIND = 'path'
ARGUMENTS = 'RUN'


def define_flags(values: flags.FlagValues):
  """Defines no flags."""
  del values


def run(folder: str, values: flags.FlagValues):
  """Prints the run, its parents, their parents and so on."""
  del values
  from r1jax.runs import lineage

  print(lineage.tree(buckets.path(folder)))
