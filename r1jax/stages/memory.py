"""Predicts the memory of an update, and chooses what it computes again.

The activations that the backward pass reads are those of JAX's own gradient of
the model, whose shapes are found without computing anything. Beside them there
is room for the backward pass of a layer or two. On one device that is within 15 %
of what XLA allots. What devices exchange, such as tokens of experts, is not
counted: `r1jax aot` asks the compiler itself.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import logging
import math
import os
from typing import Any, NamedTuple

from flax import traverse_util
import jax
from jax.extend import core
import jax.numpy as jnp

from r1jax.algos import token_chunks
from r1jax.config.run_conditions import PROMPT_STAGES
from r1jax.config.schema.model import REMAT_POLICIES, ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.model import kernels, parameters
from r1jax.model.transformer import Transformer
from r1jax.rollout import replicas, sizes
from r1jax.sharding import Layout, make_mesh
from r1jax.stages.build import sampler
from r1jax.stages.build.abstract import params_of
from r1jax.stages.stage import Stage, Update

_log = logging.getLogger(__name__)

SHARE = 0.9  # A run plans with it; the rest of a device's memory is left free.


class Prediction(NamedTuple):
  """Bytes of an update on one device.

  Attributes:
    state: Parameters, moments and the batch, its arguments.
    gradients: Those of a microbatch, and their sum where there are several.
    activations: What the backward pass reads, and that of one layer.
    logits: A chunk of logits with its gradient.
  """

  state: int
  gradients: int
  activations: int
  logits: int

  @property
  def total(self) -> int:
    return sum(self)


def predict(update: Update, remat: str) -> Prediction:
  """Predicts the memory of an update under a value of model.remat."""
  model, layout = update.model, update.model.layout
  config, parts = model.config, update.accumulation_steps
  rows = max(1, update.rows // parts // layout.size('B'))
  kept, all_kept = (
    _kept_bytes(config, each, rows, update.tokens, _computes_wide(layout))
    for each in (remat, 'none')
  )
  layers = config.num_hidden_layers + config.prediction_depth
  activations = kept + _layers_at_once(config, remat) * all_kept // layers
  state = update.arguments[0]
  gradients = bytes_of_arrays(getattr(state, 'train', state).params)
  return Prediction(
    state=bytes_of_arrays(update.arguments),
    gradients=gradients * (2 if update.microbatches * parts > 1 else 1),
    activations=activations // layout.size('t'),
    logits=_logits_bytes(
      config, rows * update.tokens // layout.size('T'), layout
    ),
  )


def _layers_at_once(config: ModelConfig, remat: str) -> int:
  """Returns the layers whose activations are there in the backward pass.

  One that is computed again needs its activations and their gradients. Without
  experts, most of the former are gone before the latter come.
  """
  if remat in ('none', 'attention'):
    return 1
  modules = config.num_nextn_predict_layers
  beside = 0 < modules == config.prediction_depth  # Else they are in a loop.
  return 1 + bool(config.num_moe_layers) + beside


def _logits_bytes(config: ModelConfig, tokens: int, layout: Layout) -> int:
  """Returns the bytes of logits and their gradient; see algos/token_chunks."""
  vocab = config.vocab_size // layout.size('V')
  limit = max(token_chunks.MAX_CHUNK_LOGITS // vocab, 1)
  chunk = token_chunks.chunk_size(tokens, limit)
  kept = tokens if limit >= tokens else chunk
  return 4 * vocab * (kept + chunk)


def choose(updates: Sequence[Update], limit: int) -> str:
  """Returns the value of model.remat that computes least again and fits.

  Args:
    updates: The updates of a run.
    limit: Bytes that they may take on a device.
  """
  for remat in REMAT_POLICIES[:-1]:
    if all(predict(update, remat).total <= limit for update in updates):
      return remat
  return REMAT_POLICIES[-1]


def chosen(
  config: RunConfig, layout: Layout, stages: Sequence[type[Stage]], limit: int
) -> RunConfig:
  """Returns the config with a policy for model.remat = 'auto'.

  Args:
    config: The run.
    layout: Its mesh and tables.
    stages: The stages that run.
    limit: Bytes of a device that a run may plan with, see device_bytes.

  Raises:
    UserError: a stage does not tell its update, or a batch does not divide.
  """
  if config.model.remat != 'auto':
    return config
  named = lambda remat: dataclasses.replace(
    config, model=dataclasses.replace(config.model, remat=remat)
  )
  concrete, held, updates = named(REMAT_POLICIES[0]), 0, []
  for stage in stages:
    networks = stage.networks(config)
    if not any(network.optimizer for network in networks):
      continue
    try:
      updates += stage.update(concrete, layout)
    except UserError as error:
      raise UserError(
        f"model.remat = 'auto' needs the update of {stage.name!r} ({error}); "
        f'choose one of {", ".join(map(repr, REMAT_POLICIES))}'
      ) from error
    of_others = sum(
      4 * parameters_per_device(network.model, layout)
      for network in networks
      if not network.optimizer
    )
    if stage.name in PROMPT_STAGES:
      _, copy, cache = sampling_bytes(config, layout).values()
      # Devices that only sample have the cache; the others send the copy.
      of_others += copy if layout.sampling else copy + cache
    held = max(held, of_others)
  remat = choose(updates, limit - held)
  _log.info(
    "model.remat = 'auto' is %r: an update may take %.1f GB of a device",
    remat,
    (limit - held) / 1e9,
  )
  return named(remat)


def sampling_bytes(config: RunConfig, layout: Layout) -> dict[str, int]:
  """Returns the bytes that sampling needs; see sizes.memory_per_device.

  An abstract mesh has no hosts: all of its devices count as one replica.
  """
  own = sampler.engine_config(config)
  division = replicas.divide(layout, own)
  return sizes.memory_per_device(
    on_one_device(config.model),
    layout,
    own.of_one_replica(len(division.layouts)),
    division.layout,
    division.apart,
  )


def parameters_per_device(
  config: ModelConfig, layout: Layout, times: Callable[[str], int] = lambda _: 1
) -> int:
  """Returns the number of parameters on one device of a mesh.

  Args:
    config: The model.
    layout: The mesh and its tables.
    times: How often a parameter counts, by its path.

  Raises:
    UserError: the mesh does not divide a parameter, or the attention's heads.
  """
  kernels.check_heads(config.num_attention_heads, layout)
  held = 0
  boxes = parameters.parameter_shapes(on_one_device(config))
  for name, box in traverse_util.flatten_dict(boxes, sep='/').items():
    layout.check(name, box.value.shape, box.names)
    size = math.prod(box.value.shape) // layout.weight_parts(box.names)
    held += times(name) * size
  return held


def on_one_device(config: ModelConfig) -> Transformer:
  """Returns the model on the first device, to count what it has."""
  return Transformer(config, Layout(make_mesh({}, jax.local_devices()[:1])))


def device_bytes(layout: Layout) -> int:
  """Returns the memory of a device that a run may plan with.

  On a CPU it is half of the machine's, divided among its devices.

  Raises:
    UserError: the device does not say.
  """
  device = layout.device
  if device.platform == 'cpu':
    machine = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return machine // 2 // jax.local_device_count()
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    raise UserError(
      "model.remat = 'auto' needs to know the memory of a device, and "
      f'{device.device_kind} does not tell; choose one of '
      f'{", ".join(map(repr, REMAT_POLICIES))}'
    )
  return int(SHARE * stats['bytes_limit'])


def _computes_wide(layout: Layout) -> bool:
  """Returns whether XLA computes what is narrower in float32, as for CPUs."""
  abstract = isinstance(layout.mesh, jax.sharding.AbstractMesh)
  return not abstract and layout.platform == 'cpu'


@functools.cache
def _kept_bytes(
  config: ModelConfig, remat: str, rows: int, tokens: int, wide: bool
) -> int:
  """Returns the bytes that the backward pass of a model reads, on one device."""
  # Any device's kernel keeps as much as this one, which all devices can trace.
  config = dataclasses.replace(
    config, remat=remat, attention_kernel='blocked', fp8=False
  )
  model = on_one_device(config)
  params = params_of(model)
  ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)

  def hidden(params, *inputs):
    out: Any = model.apply({'params': params}, *inputs)
    if not config.num_nextn_predict_layers:
      return out.hidden_BTD
    return out.hidden_BTD, model.apply(
      {'params': params}, out.hidden_BTD, *inputs, method='predict_ahead'
    )[0]

  def kept(params, *inputs):
    return jax.tree.leaves(jax.vjp(lambda p: hidden(p, *inputs), params)[1])

  jaxpr = jax.make_jaxpr(kept)(params, ids, ids, ids).jaxpr
  given = set(jaxpr.invars)  # Parameters, unless they are cast.
  total = 0
  for out in {x for x in jaxpr.outvars if isinstance(x, core.Var)} - given:
    aval: Any = out.aval
    itemsize = aval.dtype.itemsize
    if wide and jnp.issubdtype(aval.dtype, jnp.floating):
      itemsize = max(itemsize, 4)
    total += math.prod(aval.shape) * itemsize
  if remat == 'offload':  # The inputs of layers wait in the host's memory.
    total -= (
      config.num_hidden_layers
      * rows
      * tokens
      * config.hidden_size
      * (4 if wide else config.compute_dtype.itemsize)
    )
  return max(total, 0)


def bytes_of_arrays(tree: Any) -> int:
  """Returns the bytes of abstract arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
