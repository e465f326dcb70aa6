"""Reads Hugging Face checkpoints as r1jax parameters, tensor by tensor."""

from collections.abc import Mapping
import functools
from pathlib import Path
import re

import numpy as np

from r1jax import buckets
from r1jax.checkpoints import hf_config
from r1jax.checkpoints.hf_mapping import (
  MappedParameter,
  dimension_sizes,
  duplicates,
  from_hf,
  mapped_parameters,
)
from r1jax.checkpoints.storage import LazyTensor, SafetensorsReader, widest
from r1jax.config.keys import flatten
from r1jax.config.load import model_config
from r1jax.config.schema.model import ModelConfig
from r1jax.errors import UserError
from r1jax.model.quant import BLOCK

_SCALE_SUFFIX = '_scale_inv'
# Old checkpoints store these; they follow from config.json.
_ROTARY_FREQUENCIES = r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq'


class HuggingFaceReader:
  """Reads a Hugging Face folder under r1jax names, as SafetensorsReader does.

  Only the requested experts of a stack are read. Every other tensor is read
  whole, by each device that needs a part of it; `r1jax import-hf` turns large
  checkpoints into files that are read by slices.

  Attributes:
    path: The folder.
    metadata: The metadata that an imported copy has.
  """

  def __init__(self, folder: Path):
    """Reads config.json.

    Raises:
      UserError: See hf_config.read_config.
    """
    self.path = buckets.given(folder)
    self._model_fields = hf_config.read_config(self.path)
    self.metadata = import_metadata(self._model_fields, self.path)

  @functools.cached_property
  def _tensors(self) -> dict[str, LazyTensor]:
    config = model_config(self._model_fields)
    return {tensor.name: tensor for tensor in read_tensors(self.path, config)}

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of each r1jax parameter, by name."""
    return {name: x.shape for name, x in self._tensors.items()}

  def __contains__(self, name: str) -> bool:
    return name in self.shapes

  def read(self, name: str, index: tuple = ()) -> np.ndarray:
    """Returns a parameter, or the part of it that a tuple of slices selects."""
    tensor, pieces = self._tensors[name], self._tensors[name].pieces
    index = index or (slice(None),) * len(tensor.shape)
    if len(pieces) > 1:  # One piece an expert.
      pieces, index = pieces[index[0]], (slice(None), *index[1:])
    flat = np.concatenate([read().reshape(-1) for read in pieces])
    return flat.reshape(-1, *tensor.shape[1:]).astype(tensor.dtype)[index]


def open_checkpoint(path: Path) -> SafetensorsReader | HuggingFaceReader:
  """Opens r1jax weights (a file or folder) or a Hugging Face folder."""
  path = buckets.given(path)
  reader = SafetensorsReader(path)
  return HuggingFaceReader(path) if is_hugging_face(reader) else reader


def is_hugging_face(reader: SafetensorsReader) -> bool:
  """Whether a reader's folder is a Hugging Face checkpoint."""
  return not reader.metadata and (reader.path / 'config.json').exists()


def import_metadata(model_fields: dict, folder: Path) -> dict:
  """Returns the metadata of an imported checkpoint."""
  return {'config': flatten({'model': model_fields}), 'from': str(folder)}


def read_tensors(folder: Path, config: ModelConfig) -> list[LazyTensor]:
  """Lists the r1jax tensors of a Hugging Face checkpoint, in layer order.

  Names and shapes are checked at once; numbers are read when they are written,
  one Hugging Face tensor at a time. A tensor with a `_scale_inv` beside it is
  FP8 in blocks of 128 × 128 (DeepSeek-V3 section 3.3) and becomes float32.
  Every other tensor keeps its dtype; a stack of experts has their widest.

  Args:
    folder: The checkpoint.
    config: The model that its config.json describes.

  Raises:
    UserError: Tensors are missing, unknown or of another shape (the message
      names all of them), or a tensor that should repeat another differs.
  """
  reader, sizes = SafetensorsReader(folder), dimension_sizes(config)
  parameters = mapped_parameters(config)
  _check(reader, parameters, sizes, config)
  for copy, original in duplicates(config).items():
    if copy in reader and not _equal(reader, copy, original):
      raise UserError(
        f'import-hf: {copy} of {reader.path} should repeat {original}, but '
        'differs; models whose copies differ are not supported'
      )

  def read(parameter: MappedParameter, hf_name: str) -> np.ndarray:
    return from_hf(_dequantized(reader, hf_name), parameter.mapping, sizes)

  return [
    LazyTensor(
      parameter.name,
      widest(_dtype(reader, hf_name) for hf_name in parameter.hf_names),
      parameter.mapping.shape(sizes),
      tuple(
        functools.partial(read, parameter, hf_name)
        for hf_name in parameter.hf_names
      ),
    )
    for parameter in parameters
  ]


def _dtype(reader: SafetensorsReader, name: str) -> np.dtype:
  if name + _SCALE_SUFFIX in reader:
    return np.dtype(np.float32)
  return reader.dtype(name)


def _dequantized(reader: SafetensorsReader, name: str) -> np.ndarray:
  """Reads a tensor; FP8 with scales becomes float32, one row of blocks a time."""
  tensor = reader.read(name)
  if name + _SCALE_SUFFIX not in reader:
    return tensor
  scales = reader.read(name + _SCALE_SUFFIX).astype(np.float32)
  dequantized = np.empty(tensor.shape, np.float32)
  for i, block_scales in enumerate(scales):
    rows = slice(i * BLOCK, (i + 1) * BLOCK)
    column_scales = np.repeat(block_scales, BLOCK)[: tensor.shape[1]]
    dequantized[rows] = tensor[rows].astype(np.float32) * column_scales
  return dequantized


def _equal(reader: SafetensorsReader, one: str, other: str) -> bool:
  """Compares two tensors a few rows at a time: they are the largest ones."""
  if reader.shapes[one] != reader.shapes[other]:
    return False
  rows, columns = reader.shapes[one]
  step = max(1, (1 << 20) // columns)
  for start in range(0, rows, step):
    part = (slice(start, min(start + step, rows)),)
    a, b = (reader.read(name, part).astype(np.float64) for name in (one, other))
    if not np.array_equal(a, b, equal_nan=True):
      return False
  return True


def _check(
  reader: SafetensorsReader,
  parameters: list[MappedParameter],
  sizes: Mapping[str, int],
  config: ModelConfig,
):
  """Refuses a checkpoint whose tensors are not those of its config.json."""
  problems, known = [], set()
  for parameter in parameters:
    shape = parameter.mapping.hf_shape(sizes)
    for name in parameter.hf_names:
      if name not in reader:
        problems.append(f'{name} is missing')
      elif name not in known:
        problems += _shape_problems(reader, name, shape)
      known.add(name)
  known |= duplicates(config).keys()
  problems += [
    f'{name} is unknown'
    for name in reader.shapes
    if name not in known
    and name.removesuffix(_SCALE_SUFFIX) not in known
    and not re.fullmatch(_ROTARY_FREQUENCIES, name)
  ]
  if problems:
    raise UserError(
      f'import-hf: {reader.path} does not hold what its config.json says: '
      + abridged(sorted(set(problems)))
    )


def _shape_problems(
  reader: SafetensorsReader, name: str, expected: tuple[int, ...]
) -> list[str]:
  """Lists what is wrong with the shapes of a tensor and of its scales."""
  problems = []
  if reader.shapes[name] != expected:
    problems.append(
      f'{name} has shape {reader.shapes[name]}, config.json says {expected}'
    )
  scale_shape = reader.shapes.get(name + _SCALE_SUFFIX)
  blocks = tuple(-(-size // BLOCK) for size in expected)
  if scale_shape is not None and (len(expected) != 2 or scale_shape != blocks):
    problems.append(
      f'{name}{_SCALE_SUFFIX} has shape {scale_shape}; {name} of {expected} in '
      f'blocks of {BLOCK} × {BLOCK} needs another'
    )
  return problems


def abridged(problems: list[str], limit: int = 40) -> str:
  """Joins the first problems of a long list for an error message."""
  extra = len(problems) - limit
  more = f'; and {extra} more' if extra > 0 else ''
  return '; '.join(problems[:limit]) + more
