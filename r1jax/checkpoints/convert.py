"""Converts whole checkpoints: Hugging Face to r1jax and back."""

from pathlib import Path

import numpy as np

from r1jax import buckets
from r1jax.checkpoints import (
  hf_config,
  hf_export,
  hf_import,
  hf_tokenizer,
  storage,
  tensor_digests,
  weights,
)
from r1jax.checkpoints.storage import INDEX_FILE, SINGLE_FILE, SafetensorsReader
from r1jax.config.load import model_config
from r1jax.config.schema.model import RUN_DEFAULTS
from r1jax.data.text import tokenizer_files
from r1jax.errors import UserError

SHARD_BYTES = 4 << 30


def import_hf(folder: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> bool:
  """Converts a Hugging Face checkpoint to r1jax safetensors.

  One Hugging Face tensor at a time is in memory. Tokenizer files are copied; the
  stop tokens of config.json go into generation_config.json.

  Args:
    folder: The Hugging Face checkpoint.
    out: The folder to write; new or empty.
    shard_bytes: Maximum size of one file.

  Returns:
    Whether the checkpoint has a tokenizer.

  Raises:
    UserError: `out` is in use, or the checkpoint is broken or not supported
      (see hf_config.read_config and hf_import.read_tensors).
  """
  out = _empty_folder('import-hf', out)
  folder = buckets.given(folder)
  model_fields = hf_config.read_config(folder)
  tensors = hf_import.read_tensors(folder, model_config(model_fields))
  try:
    copied = {
      name: (folder / name).read_bytes()
      for name in tokenizer_files.present(folder)
    }
  except OSError as error:
    raise UserError(f'import-hf: {error}') from error
  copied |= hf_tokenizer.merged_stops(folder)
  storage.write(
    out,
    tensors,
    shard_bytes,
    storage.encode_metadata(hf_import.import_metadata(model_fields, folder)),
    copied,
    digests=True,
  )
  return tokenizer_files.has_tokenizer(out)


def export_hf(
  source: Path,
  out: Path,
  dtype: str = '',
  shard_bytes: int = SHARD_BYTES,
  tokenizer: str = '',
):
  """Converts r1jax weights to a Hugging Face checkpoint with its tokenizer.

  Args:
    source: A safetensors file, or a folder of them.
    out: The folder to write; new or empty.
    dtype: Dtype to write; '' keeps the dtype of each tensor.
    shard_bytes: Maximum size of one file.
    tokenizer: The tokenizer to write: a folder, or a built-in one; '' for the
      one that the run used, or that lies beside the weights.

  Raises:
    UserError: `out` is in use, or the source does not name its architecture,
      or no Hugging Face family has it, or its tokenizer is missing.
  """
  out = _empty_folder('export-hf', out)
  source = buckets.given(source)
  if source.is_dir() and not any(
    (source / name).exists() for name in (SINGLE_FILE, INDEX_FILE)
  ):
    raise UserError(
      f'export-hf: {source} holds no {SINGLE_FILE}; give the folder '
      'of a finished stage, or of import-hf'
    )
  reader = SafetensorsReader(source)
  if hf_import.is_hugging_face(reader):
    raise UserError(f'export-hf: {source} is a Hugging Face checkpoint already')
  tensor_digests.check(reader.files)
  config = model_config(model_config_of(source))
  recorded = reader.metadata.get('config') or {}
  text = hf_tokenizer.export(source, recorded, tokenizer)
  hf_export.write_tensors(
    out,
    config,
    reader,
    np.dtype(dtype) if dtype else None,
    shard_bytes,
    text.token_ids,
    text.files,
  )


def model_config_of(source: str | Path) -> dict:
  """Returns config.model of the model that a checkpoint holds.

  Args:
    source: r1jax weights (a file or folder), or a Hugging Face folder.

  Raises:
    UserError: The checkpoint does not describe its model, or lacks a field
      that determines what the weights mean.
  """
  config = weights.metadata(buckets.given(source)).get('config')
  if not config:
    raise UserError(
      f'{source} does not say what model it holds; `r1jax import-hf` makes a '
      'folder that does'
    )
  fields = RUN_DEFAULTS | _nested(config, 'model.')
  if isinstance(fields['remat'], bool):  # As earlier versions wrote it.
    fields['remat'] = 'block' if fields['remat'] else 'none'
  model_config(fields, str(source))
  return fields


def _nested(flat: dict, prefix: str) -> dict:
  """Inverse of flatten, for the keys below a prefix."""
  nested: dict = {}
  for key, value in flat.items():
    if key.startswith(prefix):
      *sections, last = key.removeprefix(prefix).split('.')
      inner = nested
      for section in sections:
        inner = inner.setdefault(section, {})
      inner[last] = value
  return nested


def _empty_folder(command: str, out: Path) -> Path:
  """Checks the folder to write; removes what a killed conversion left in it."""
  out = buckets.local(out)
  if out.is_dir():
    for partial in out.glob('shard-*.partial'):
      partial.unlink()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'{command}: {out} exists already; give another --out')
  return out
