"""Writes r1jax parameters as a Hugging Face checkpoint, tensor by tensor."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.checkpoints.hf_config import write_config
from r1jax.checkpoints.hf_import import abridged
from r1jax.checkpoints.hf_mapping import (
  HF_HEAD,
  MappedParameter,
  dimension_sizes,
  duplicates,
  mapped_parameters,
  to_hf,
)
from r1jax.checkpoints.storage import (
  LazyTensor,
  SafetensorsReader,
  widest,
  write,
)
from r1jax.config.schema.model import ModelConfig
from r1jax.errors import UserError


def write_tensors(
  folder: Path,
  config: ModelConfig,
  source: SafetensorsReader,
  dtype: np.dtype | None,
  shard_bytes: int,
  token_ids: Mapping[str, Any] | None = None,
  other_files: Mapping[str, bytes] | None = None,
):
  """Writes config.json and the safetensors of a Hugging Face checkpoint.

  Args:
    folder: The folder to write.
    config: The model.
    source: r1jax parameters.
    dtype: Dtype of the written tensors, except for the router's bias, which
      stays float32; None keeps the dtype of each parameter.
    shard_bytes: Maximum size of one file.
    token_ids: Ids of special tokens for config.json.
    other_files: Contents of other files, by name.

  Raises:
    UserError: Parameters are missing or have another shape (the message names
      all of them), or no Hugging Face family has this architecture.
  """
  sizes, parameters = dimension_sizes(config), mapped_parameters(config)
  _check(source, parameters, sizes)
  tensors: dict[str, LazyTensor] = {}
  # The parameters of each tensor, with the slice of the expert to read.
  parts: dict[str, list[tuple[MappedParameter, tuple]]] = {}
  for parameter in parameters:
    for e, name in enumerate(parameter.hf_names):
      index = (slice(e, e + 1),) if parameter.mapping.per_expert else ()
      parts.setdefault(name, []).append((parameter, index))
      if parameter.mapping.part != 'first':
        tensors[name] = _hf_tensor(name, parts.pop(name), source, sizes, dtype)
  for copy, original in duplicates(config).items():
    if copy != HF_HEAD:  # Hugging Face leaves out a tied head.
      tensors[copy] = dataclasses.replace(tensors[original], name=copy)
  config_json = write_config(
    config, dtype or source.dtype('embedding'), token_ids
  )
  write(
    folder,
    list(tensors.values()),
    shard_bytes,
    {'format': 'pt'},
    dict(other_files or {})
    | {'config.json': json.dumps(config_json, indent=2).encode() + b'\n'},
  )


def _hf_tensor(
  name: str,
  parts: list[tuple[MappedParameter, tuple]],
  source: SafetensorsReader,
  sizes: Mapping[str, int],
  dtype: np.dtype | None,
) -> LazyTensor:
  """Describes one Hugging Face tensor.

  Args:
    name: Its name.
    parts: Its r1jax parameters, each with the slices of it to read.
    source: The r1jax parameters.
    sizes: The result of dimension_sizes.
    dtype: See write_tensors.
  """
  first = parts[0][0].mapping
  if dtype is None:
    dtype = widest(source.dtype(parameter.name) for parameter, _ in parts)
  elif first.path == 'ffn/bias':
    dtype = np.dtype(np.float32)

  def read(parameter: MappedParameter, index: tuple) -> np.ndarray:
    array = source.read(parameter.name, index)
    return array[0] if index else array  # A slice holds one expert.

  def piece() -> np.ndarray:
    return to_hf(
      [
        (parameter.mapping, read(parameter, index))
        for parameter, index in parts
      ]
    )

  return LazyTensor(name, np.dtype(dtype), first.hf_shape(sizes), (piece,))


def _check(
  source: SafetensorsReader,
  parameters: list[MappedParameter],
  sizes: Mapping[str, int],
):
  """Refuses a source that lacks parameters of the model."""
  problems = []
  for parameter in parameters:
    shape = parameter.mapping.shape(sizes)
    if parameter.name not in source:
      problems.append(parameter.name)
    elif source.shapes[parameter.name] != shape:
      problems.append(
        f'{parameter.name} of shape {shape}, it has '
        f'{source.shapes[parameter.name]}'
      )
  if problems:
    raise UserError(f'export-hf: {source.path} lacks {abridged(problems)}')
