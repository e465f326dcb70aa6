"""r1jax import-hf: converts a Hugging Face checkpoint to r1jax weights."""

from pathlib import Path

from absl import flags

KIND = 'path'
ARGUMENTS = 'HF_FOLDER --out=FOLDER'


def define_flags(values: flags.FlagValues):
  """Defines --out and --plugins."""
  flags.DEFINE_string(
    'out', '', 'The folder to write; new or empty.', flag_values=values
  )
  flags.DEFINE_list(
    'plugins',
    [],
    'Python files, or modules by name, that register model families.',
    flag_values=values,
  )


def run(folder: str, values: flags.FlagValues):
  """Converts, and prints how a config uses the result."""
  from r1jax import buckets, registry
  from r1jax.checkpoints import convert

  registry.load_plugins(values.plugins)
  out = values.out
  has_tokenizer = convert.import_hf(buckets.given(folder), Path(out))
  print(f'import-hf: wrote {out}')
  hint = (
    f"In a config: config.model = convert.model_config_of('{out}') (from "
    f"r1jax.checkpoints import convert); config.init = '{out}'"
  )
  if has_tokenizer:
    print(f"{hint}; config.tokenizer.source = '{out}'")
    print(f'To sample: r1jax sample --config=imported:{out} --prompt=QUESTION')
  else:
    print(f'{hint}. It has no tokenizer: set config.tokenizer.source')
