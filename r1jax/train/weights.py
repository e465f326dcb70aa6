"""Parameters alone, as safetensors: what one stage hands to the next."""

import json
from pathlib import Path

from flax import traverse_util
import jax
import jax.numpy as jnp
import safetensors
from safetensors.flax import load_file, save_file

from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.transformer import Transformer


def save(path: Path, params, dtype: str, about: dict):
  """Writes parameters, named by their path, and `about` as metadata."""
  flat = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  flat = {name: jnp.asarray(value, dtype) for name, value in flat.items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  save_file(flat, partial, metadata={'about': json.dumps(about)})
  partial.chmod(0o644)
  partial.replace(path)  # Atomic: a reader never meets half a file.


def about(path: Path) -> dict:
  """The metadata of a file."""
  with safetensors.safe_open(path, 'numpy') as file:
    return json.loads((file.metadata() or {}).get('about', '{}'))


def load(path: Path, model: Transformer):
  """Reads parameters into the model's layout, as float32.

  Raises:
    UserError: naming the file and every missing, unknown or misshaped tensor.
  """
  if not path.exists():
    raise UserError(f'weights: no file {path}')
  try:
    flat = load_file(path)
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise UserError(f'weights: cannot read {path}: {error}') from error
  wanted = {
      name: box.value.shape for name, box in traverse_util.flatten_dict(
          transformer.parameter_shapes(model), sep='/').items()}
  wrong = [f'{name} is missing' for name in wanted if name not in flat]
  wrong += [f'{name} is unknown' for name in flat if name not in wanted]
  wrong += [
      f'{name} has shape {flat[name].shape}, the model {shape}'
      for name, shape in wanted.items()
      if name in flat and flat[name].shape != shape]
  if wrong:
    shown = '; '.join(wrong[:8]) + (' …' if len(wrong) > 8 else '')
    raise UserError(f'weights: {path} does not fit config.model: {shown}')
  params = traverse_util.unflatten_dict(
      {name: value.astype(jnp.float32) for name, value in flat.items()},
      sep='/')
  return jax.device_put(
      params, transformer.parameter_shardings(model, model.layout))
