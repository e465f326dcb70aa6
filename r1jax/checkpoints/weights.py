"""Saves and loads model parameters as safetensors, which stages hand on.

The name of a tensor is its path, with the number of its layer where layers are
stacked: 'moe_layers/0/ffn/gate'. No tensor is larger than one layer.
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
import math
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from r1jax import buckets, processes
from r1jax.checkpoints import storage, tensor_digests
from r1jax.checkpoints.hf_import import HuggingFaceReader, open_checkpoint
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.keys import flatten
from r1jax.config.schema.model import RUN_DEFAULTS, ModelConfig
from r1jax.errors import UserError
from r1jax.model import parameters
from r1jax.model.transformer import Transformer

_PIECE_NUMBERS = 1 << 28
_SCALAR_HEAD = 'scalar'  # Parameter of the value or reward head.
# Keys that the same weights can be used with whatever their values are.
RUNTIME_KEYS = tuple(
  f'model.{field}' for field in (*RUN_DEFAULTS, 'scalar_head')
)
# Positions depend on these keys of `rope` alone if the context is not extended.
_ROPE_TYPE = 'model.rope.rope_type'
_DEFAULT_ROPE = (_ROPE_TYPE, 'model.rope.rope_theta', 'model.rope.pairs')


def save(path: Path, params, dtype: str, metadata: dict):
  """Writes parameters into one safetensors file, atomically.

  A part of one layer of one parameter, of about a gigabyte, is on the host at a
  time. Every process of a run calls it; the first one writes.

  Args:
    path: The file; its folder is created.
    params: Nested dict of arrays; their shapes alone in a process that holds
      no part of them.
    dtype: Dtype of the written tensors.
    metadata: JSON-ready; `metadata` below reads it back.
  """
  tensors = []
  for name, value in traverse_util.flatten_dict(params, sep='/').items():
    if not parameters.is_stacked(name):
      tensors.append(_lazy(name, dtype, value.shape, partial(_whole, value)))
      continue
    for i in range(value.shape[0]):
      layer = layer_name(name, i)
      read_layer = partial(_whole, value, i)
      tensors.append(_lazy(layer, dtype, value.shape[1:], read_layer))
  if not processes.is_first():
    # It joins the same all-gathers in this order, if it holds parts of them.
    for tensor in tensors if processes.is_held(params) else []:
      for read in tensor.pieces:
        read()
    processes.exchange(None)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_suffix('.partial')
  storage.write_file(
    unfinished, tensors, storage.encode_metadata(metadata), digests=True
  )
  unfinished.replace(path)
  processes.exchange(None)  # The others read it now.


def _lazy(
  name: str, dtype: str, shape: tuple[int, ...], read: Callable
) -> storage.LazyTensor:
  """Returns a tensor to write, in pieces of about a gigabyte in float32.

  Args:
    name: Its name in the file.
    dtype: Its dtype there.
    shape: Its shape.
    read: Function from a part of its index to this part.
  """
  if not shape:
    return storage.LazyTensor(name, jnp.dtype(dtype), shape, (read,))
  rows = max(1, _PIECE_NUMBERS * shape[0] // max(1, math.prod(shape)))
  pieces = tuple(
    partial(read, slice(start, start + rows))
    for start in range(0, shape[0], rows)
  )
  return storage.LazyTensor(name, jnp.dtype(dtype), shape, pieces)


def _whole(value: Any, *index) -> np.ndarray:
  """Returns a part of an array on the host, gathered from all hosts."""
  part = value[index] if index else value
  if isinstance(part, jax.Array) and not part.is_fully_addressable:
    part = multihost_utils.process_allgather(part, tiled=True)
  return np.asarray(part)


def layer_name(name: str, layer: int) -> str:
  """Name of one layer of a stack: 'moe_layers/ffn/gate', 3 →
  'moe_layers/3/ffn/gate'."""
  stack, rest = name.split('/', 1)
  return f'{stack}/{layer}/{rest}'


def metadata(path: Path) -> dict:
  """Returns the metadata of a checkpoint; empty if it has none."""
  return open_checkpoint(path).metadata


def load(path: Path, model: Transformer, new_scalar: bool = False):
  """Loads parameters in float32, sharded as the model's layout says.

  Each device reads its own part, so that the host holds no more than that
  (Hugging Face folders: see HuggingFaceReader). A scalar head that the model
  does not have is ignored. Files of r1jax are checked against the digests in
  them, each process a share of the tensors, so all processes of a run call it.

  Args:
    path: r1jax weights (a file or folder), or a Hugging Face folder.
    model: The model to load them for.
    new_scalar: Initialise the scalar head at zero if the checkpoint has none,
      instead of refusing.

  Returns:
    Nested dicts of arrays; their shapes alone in a process whose devices are
    not in the model's mesh.

  Raises:
    UserError: A file is missing or broken, or the checkpoint does not fit the
      model; the message names the file and every key of config.model or
      tensor that differs.
  """
  path = buckets.given(path)
  if not path.exists():
    raise UserError(f'weights: no file {path}')
  reader = open_checkpoint(path)
  if isinstance(reader, SafetensorsReader):
    tensor_digests.check(reader.files, jax.process_index(), jax.process_count())
  boxes = traverse_util.flatten_dict(
    parameters.parameter_shapes(model), sep='/'
  )
  shapes = {name: box.value.shape for name, box in boxes.items()}
  dtypes = {name: box.value.dtype for name, box in boxes.items()}
  new = set()
  if new_scalar and _SCALAR_HEAD in shapes and _SCALAR_HEAD not in reader:
    new.add(_SCALAR_HEAD)
  stored = reader.metadata.get('config', {})
  check_config(stored, model.config, f'weights: {reader.path}')
  _check_tensors(
    reader, {name: shape for name, shape in shapes.items() if name not in new}
  )
  shardings = traverse_util.flatten_dict(
    parameters.parameter_shardings(model, model.layout), sep='/'
  )
  if not model.layout.is_local:
    return _nested(shapes, dtypes, shardings)
  params = {
    name: jnp.zeros(shape, dtypes[name], device=shardings[name])
    if name in new
    else jax.make_array_from_callback(
      shape, shardings[name], _shard_loader(reader, name, shape, dtypes[name])
    )
    for name, shape in shapes.items()
  }
  return traverse_util.unflatten_dict(params, sep='/')


def abstract(model: Transformer) -> dict:
  """Returns the parameters of a model as ShapeDtypeStructs, laid out on its mesh."""
  boxes = traverse_util.flatten_dict(
    parameters.parameter_shapes(model), sep='/'
  )
  return _nested(
    {name: box.value.shape for name, box in boxes.items()},
    {name: box.value.dtype for name, box in boxes.items()},
    traverse_util.flatten_dict(
      parameters.parameter_shardings(model, model.layout), sep='/'
    ),
  )


def _nested(shapes: Mapping, dtypes: Mapping, shardings: Mapping) -> dict:
  """Returns parameters as ShapeDtypeStructs, nested."""
  return traverse_util.unflatten_dict(
    {
      name: jax.ShapeDtypeStruct(shape, dtypes[name], sharding=shardings[name])
      for name, shape in shapes.items()
    },
    sep='/',
  )


def _shard_loader(
  reader: SafetensorsReader | HuggingFaceReader,
  name: str,
  shape: tuple[int, ...],
  dtype,
) -> Callable:
  """Returns a function from an index to the part of a parameter there."""

  def load_shard(index):
    if not parameters.is_stacked(name):
      return reader.read(name, index).astype(dtype)
    layers = range(shape[0])[index[0]]
    return np.stack(
      [
        reader.read(layer_name(name, layer), index[1:]).astype(dtype)
        for layer in layers
      ]
    )

  return load_shard


def check_config(stored: Mapping[str, Any], config: ModelConfig, where: str):
  """Refuses weights that were made with another architecture.

  Args:
    stored: The flat config that they were made with, as far as it is known.
    config: The model that they are for.
    where: Names them in the error.

  Raises:
    UserError: naming every key of config.model that differs.
  """
  expected = flatten({'model': dataclasses.asdict(config)})
  ignored = set(RUNTIME_KEYS)
  if {stored.get(_ROPE_TYPE), expected[_ROPE_TYPE]} == {'default'}:
    ignored |= {
      key
      for key in expected
      if key.startswith('model.rope.') and key not in _DEFAULT_ROPE
    }
  differences = [
    f'{key} is {stored[key]!r} there and {value!r} here'
    for key, value in expected.items()
    if key in stored and stored[key] != value and key not in ignored
  ]
  if differences:
    raise UserError(f'{where} is of another model: {"; ".join(differences)}')


def _check_tensors(
  reader: SafetensorsReader | HuggingFaceReader,
  shapes: Mapping[str, tuple[int, ...]],
):
  """Refuses a checkpoint without exactly these parameters.

  Args:
    reader: The checkpoint.
    shapes: Shape of each parameter of the model, by its path.
  """
  expected: dict[str, tuple[int, ...]] = {}
  for name, shape in shapes.items():
    if parameters.is_stacked(name):
      expected |= {layer_name(name, i): shape[1:] for i in range(shape[0])}
    else:
      expected[name] = shape
  problems = [f'{name} is missing' for name in expected if name not in reader]
  problems += [
    f'{name} is unknown'
    for name in reader.shapes
    if name not in expected and name != _SCALAR_HEAD
  ]
  problems += [
    f'{name} has shape {reader.shapes[name]}, the model {shape}'
    for name, shape in expected.items()
    if name in reader and reader.shapes[name] != shape
  ]
  if problems:
    shown = '; '.join(problems[:8]) + (' …' if len(problems) > 8 else '')
    raise UserError(
      f'weights: {reader.path} does not fit config.model: {shown}'
    )
