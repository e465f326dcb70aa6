"""Parameters alone, as safetensors: what one stage hands to the next.

A tensor's name is its path, with the number of its layer where a stack of
layers has it: 'moe_layers/0/ffn/gate'. So no tensor is larger than a layer.
"""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from r1jax.checkpoints import hf
from r1jax.checkpoints.storage import Reader
from r1jax.config.keys import flatten
from r1jax.errors import UserError
from r1jax.model import transformer
from r1jax.model.config import RUN_DEFAULTS, ModelConfig
from r1jax.model.transformer import Transformer


def save(path: Path, params, dtype: str, about: dict):
  """Writes parameters into one file, and `about` as its metadata."""
  flat = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  named = {}
  for name, value in flat.items():
    value = np.asarray(value).astype(jnp.dtype(dtype))
    if transformer.is_stacked(name):
      named |= {stored_name(name, i): layer for i, layer in enumerate(value)}
    else:
      named[name] = value
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  save_file(named, partial, metadata={'about': json.dumps(about)})
  partial.chmod(0o644)
  partial.replace(path)  # Atomic: a reader never meets half a file.


def stored_name(name: str, layer: int) -> str:
  """'moe_layers/ffn/gate', 3 → 'moe_layers/3/ffn/gate'."""
  stack, rest = name.split('/', 1)
  return f'{stack}/{layer}/{rest}'


def about(path: Path) -> dict:
  """The metadata of a file, or of a folder."""
  return json.loads(hf.opened(path).metadata.get('about', '{}'))


def load(path: Path, model: Transformer, new_scalar: bool = False):
  """Reads parameters into the model's layout, as float32.

  Each device reads its own part, so that the host holds no more than that (of
  Hugging Face's form see hf.Checkpoint). A scalar head in the file that the
  model has not is left there.

  Args:
    path: A file or folder; or a folder of Hugging Face's form.
    model: What to read.
    new_scalar: A scalar head that the file has not begins at 0, as a fresh one
      does.

  Raises:
    UserError: naming the file, and every field of config.model or tensor that
      does not fit.
  """
  path = path.expanduser()
  if not path.exists():
    raise UserError(f'weights: no file {path}')
  reader = hf.opened(path)
  boxes = traverse_util.flatten_dict(
    transformer.parameter_shapes(model), sep='/'
  )
  shapes = {name: box.value.shape for name, box in boxes.items()}
  dtypes = {name: box.value.dtype for name, box in boxes.items()}
  fresh = set()
  if new_scalar and _SCALAR in shapes and _SCALAR not in reader:
    fresh.add(_SCALAR)
  _check(
    reader,
    {name: shape for name, shape in shapes.items() if name not in fresh},
    model.config,
  )
  shardings = traverse_util.flatten_dict(
    transformer.parameter_shardings(model, model.layout), sep='/'
  )
  params = {
    name: jnp.zeros(shape, dtypes[name], device=shardings[name])
    if name in fresh
    else jax.make_array_from_callback(
      shape, shardings[name], _reads(reader, name, shape, dtypes[name])
    )
    for name, shape in shapes.items()
  }
  return traverse_util.unflatten_dict(params, sep='/')


def _reads(
  reader: Reader | hf.Checkpoint, name: str, shape: tuple[int, ...], dtype
) -> Callable:
  """What makes the part of a parameter that one device wants."""

  def part(index):
    if not transformer.is_stacked(name):
      return reader.read(name, index).astype(dtype)
    layers = range(shape[0])[index[0]]
    return np.stack(
      [
        reader.read(stored_name(name, layer), index[1:]).astype(dtype)
        for layer in layers
      ]
    )

  return part


def _check(reader: Reader | hf.Checkpoint, shapes: dict, config: ModelConfig):
  said = json.loads(reader.metadata.get('about', '{}')).get('config', {})
  ours = flatten({'model': dataclasses.asdict(config)})
  free = FREE
  if {said.get(_ROPE_TYPE), ours[_ROPE_TYPE]} == {'default'}:
    free += tuple(
      key
      for key in ours
      if key.startswith('model.rope.') and key not in _UNSCALED
    )
  differ = [
    f'{key} is {said[key]!r} there and {value!r} here'
    for key, value in ours.items()
    if key in said and said[key] != value and key not in free
  ]
  if differ:
    raise UserError(
      f'weights: {reader.path} is of another model: {"; ".join(differ)}'
    )
  wanted = {}
  for name, shape in shapes.items():
    if transformer.is_stacked(name):
      wanted |= {stored_name(name, i): shape[1:] for i in range(shape[0])}
    else:
      wanted[name] = shape
  wrong = [f'{name} is missing' for name in wanted if name not in reader]
  wrong += [
    f'{name} is unknown'
    for name in reader.shapes
    if name not in wanted and name != _SCALAR
  ]
  wrong += [
    f'{name} has shape {reader.shapes[name]}, the model {shape}'
    for name, shape in wanted.items()
    if name in reader and reader.shapes[name] != shape
  ]
  if wrong:
    shown = '; '.join(wrong[:8]) + (' …' if len(wrong) > 8 else '')
    raise UserError(
      f'weights: {reader.path} does not fit config.model: {shown}'
    )


_SCALAR = 'scalar'  # The head for values or rewards, which `load` looks for.
# What the same weights may be run with.
FREE = tuple(f'model.{field}' for field in (*RUN_DEFAULTS, 'scalar_head'))
# Without context extension, position depends on these keys of rope alone.
_ROPE_TYPE = 'model.rope.rope_type'
_UNSCALED = (_ROPE_TYPE, 'model.rope.rope_theta', 'model.rope.pairs')
