"""Between checkpoints of Hugging Face's form and ours, tensor by tensor."""

from pathlib import Path

import numpy as np

from r1jax.checkpoints import hf, hf_config, storage, weights
from r1jax.checkpoints.storage import INDEX, SINGLE, Reader
from r1jax.data.text import tokenizer
from r1jax.errors import UserError
from r1jax.model.config import RUN_DEFAULTS, ModelConfig

SHARD_BYTES = 4 << 30


def import_hf(folder: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> bool:
  """Writes our form of a checkpoint of theirs into the folder `out`, and its
  tokenizer beside it.

  One tensor of theirs is in memory at a time.

  Returns:
    Whether there was a tokenizer.

  Raises:
    UserError: `out` is in use, or what hf_config.read_config and
      hf.read_tensors say.
  """
  out = _vacant('import-hf', out)
  folder = Path(folder).expanduser()
  fields = hf_config.read_config(folder)
  tensors = hf.read_tensors(folder, ModelConfig.from_dict(fields))
  try:
    beside = {
      name: (folder / name).read_bytes()
      for name in tokenizer.FILES
      if (folder / name).exists()
    }
  except OSError as error:
    raise UserError(f'import-hf: {error}') from error
  storage.write(
    out, tensors, shard_bytes, {'about': hf.about(fields, folder)}, beside
  )
  return bool(beside.keys() & {'tokenizer.json', 'tokenizer.json.gz'})


def export_hf(
  source: Path, out: Path, dtype: str = '', shard_bytes: int = SHARD_BYTES
):
  """Writes their form of a file or folder of ours into the folder `out`.

  Raises:
    UserError: `out` is in use, or the source does not say its architecture.
  """
  out = _vacant('export-hf', out)
  source = Path(source).expanduser()
  if source.is_dir() and not any(
    (source / name).exists() for name in (SINGLE, INDEX)
  ):
    raise UserError(
      f'export-hf: {source} holds no {SINGLE}; give the folder '
      'of a finished stage, or of import-hf'
    )
  reader = Reader(source)
  if hf.is_theirs(reader):
    raise UserError(f'export-hf: {source} is of their form already')
  config = ModelConfig.from_dict(architecture(source))
  kept = np.dtype(dtype) if dtype else None
  hf.write_tensors(out, config, reader, kept, shard_bytes)


def architecture(source: Path) -> dict:
  """The config.model of a file or folder of ours, or of a folder of theirs.

  Raises:
    UserError: it does not say, or says it without a field that tells what the
      weights mean.
  """
  said = weights.about(source).get('config')
  if not said:
    raise UserError(
      f'{source} does not say what model it holds; r1jax '
      'import-hf makes a folder that does'
    )
  fields = RUN_DEFAULTS | _section(said, 'model.')
  ModelConfig.from_dict(fields, str(source))
  return fields


def _section(flat: dict, prefix: str) -> dict:
  """The inverse of flatten, below a prefix."""
  section: dict = {}
  for key, value in flat.items():
    if key.startswith(prefix):
      *path, last = key.removeprefix(prefix).split('.')
      inner = section
      for part in path:
        inner = inner.setdefault(part, {})
      inner[last] = value
  return section


def _vacant(command: str, out: Path) -> Path:
  """The folder to write; what a killed conversion left in it goes."""
  out = Path(out).expanduser()
  if out.is_dir():
    for partial in out.glob('shard-*.partial'):
      partial.unlink()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'{command}: {out} exists already; give another --out')
  return out
