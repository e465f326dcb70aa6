"""r1jax export-hf: writes weights and tokenizer as a Hugging Face checkpoint."""

from pathlib import Path

from absl import flags

KIND = 'path'
ARGUMENTS = 'FILE_OR_FOLDER --out=FOLDER'


def define_flags(values: flags.FlagValues):
  """Defines --out, --dtype, --tokenizer and --plugins."""
  flags.DEFINE_string(
    'out', '', 'The folder to write; new or empty.', flag_values=values
  )
  flags.DEFINE_enum(
    'dtype',
    '',
    ['', 'float32', 'bfloat16'],
    'Dtype to write; by default each tensor keeps its own.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'tokenizer',
    '',
    "The tokenizer to write: a folder, 'character' or 'bilingual'; by default "
    'the one of the run, or the one beside the weights.',
    flag_values=values,
  )
  flags.DEFINE_list(
    'plugins',
    [],
    'Python files, or modules by name, that register model families or '
    'templates.',
    flag_values=values,
  )


def run(source: str, values: flags.FlagValues):
  """Converts a file or folder of weights."""
  from r1jax import registry
  from r1jax.checkpoints import convert

  registry.load_plugins(values.plugins)
  convert.export_hf(
    Path(source), Path(values.out), values.dtype, tokenizer=values.tokenizer
  )
  print(f'export-hf: wrote {values.out}')
