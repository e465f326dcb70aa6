"""r1jax docs: writes the page that explains every key of a config."""

from absl import flags

from r1jax import buckets
from r1jax.errors import UserError

KIND = 'plain'
ARGUMENTS = '[--out=FOLDER]'


def define_flags(values: flags.FlagValues):
  """Defines --out."""
  flags.DEFINE_string(
    'out', 'docs', 'The folder of the page.', flag_values=values
  )


def run(values: flags.FlagValues):
  """Writes config.md, which the schema in r1jax/config/schema/ declares."""
  from r1jax.config import reference

  path = buckets.local(values.out) / 'config.md'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reference.page())
  except OSError as error:
    raise UserError(f'docs: cannot write {path}: {error}') from error
  print(f'docs: wrote {path}')
