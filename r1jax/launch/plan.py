"""Proposes meshes for a config and a slice: `r1jax plan`.

Every mesh that divides the model and the batch is looked at. Its memory is
predicted as `r1jax info` does. Its time is estimated without a compiler: matrix
products at the chip's peak, weights and cache that are read from HBM, and what
the layout sends between chips, each term in `_update_times` and
`_decode_times`. `r1jax aot` tells the truth of one of them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import math

from flax import traverse_util
import jax
from rich.console import Console
from rich.table import Table

from r1jax.chips import Chip
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.launch import info
from r1jax.launch.roofline import Lengths, Times
from r1jax.model import parameters
from r1jax.runs import stage_list
from r1jax.sharding import MESH_AXES, Layout
from r1jax.stages import memory
from r1jax.stages.build import sampler
from r1jax.stages.stage import Update

_GB = 1e9
# Passes over a layer's weights, and one-way exchanges of its tokens, of an
# update whose layers are computed again: forward, again, backward.
_WEIGHT_PASSES, _EXCHANGES, _SEQUENCE_COLLECTIVES = 3, 5, 10
_GATHERS_OF_A_PASS = (
  3  # Decoding reads a cache's blocks, writes and reads them.
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A mesh with its prediction.

  Attributes:
    mesh: Size of each axis.
    remat: The value of model.remat that fits.
    update_bytes: Bytes of one device in an update, with the other networks.
    sampling_bytes: Bytes of one device while sampling, with all that training
      keeps.
    update, decode: Seconds of the step's updates and of its decoding.
  """

  mesh: dict[str, int]
  remat: str
  update_bytes: int
  sampling_bytes: int
  update: Times
  decode: Times

  @property
  def seconds(self) -> float:
    """Seconds of both at the least."""
    return self.update.bound + self.decode.bound


def _check(config: RunConfig):
  """Refuses a run whose step is not planned."""
  if config.stages[-1] != 'rl':
    raise UserError(
      f'plan: the last stage is {config.stages[-1]!r}; it plans the stage rl'
    )
  if config.rollout.scope == 'host':
    raise UserError(
      "plan: rollout.scope = 'host' is not planned; give "
      '--config.rollout.scope=global, whose updates are the same'
    )
  if config.rollout.sampling_devices:
    raise UserError(
      'plan: rollout.sampling_devices is not planned; give '
      '--config.rollout.sampling_devices=0 and the chips that train'
    )


def propose(
  config: RunConfig, chip: Chip, chips: int, lengths: Lengths, count: int
) -> list[Plan]:
  """Returns the fastest meshes that fit, the best one first.

  Args:
    config: The run; its own mesh does not matter.
    chip: The chip.
    chips: Number of chips.
    lengths: Mean lengths of a step's samples.
    count: Number of meshes, at most.

  Raises:
    UserError: the last stage is not rl, or samples by host or on devices of
      its own; no mesh divides the model and the batch, or none fits.
  """
  _check(config)
  devices, limit = chips * chip.devices, chip.hbm_bytes // chip.devices
  shapes = _Shapes(config.model)
  estimates = []
  for mesh in meshes(devices):
    layout = abstract_layout(mesh)
    if shapes.divide(layout):
      update = _update_times(config, shapes, layout, lengths, chip)
      decode = _decode_times(config, shapes, layout, lengths, chip)
      # The one that reads and sends least comes first of equally fast ones.
      order = update.bound + decode.bound, update.total + decode.total
      estimates.append((order, mesh, update, decode))
  if not estimates:
    raise UserError(
      f'plan: no mesh of {devices} devices divides the model: its heads, its '
      'experts and its widths'
    )
  plans: list[Plan] = []
  reasons: dict[str, int] = {}
  for _, mesh, update, decode in sorted(estimates, key=lambda row: row[0]):
    if len(plans) == count:
      break
    try:
      found = _fitting(config, abstract_layout(mesh), int(memory.SHARE * limit))
    except UserError as error:
      reasons[str(error)] = reasons.get(str(error), 0) + 1
      continue
    plans.append(Plan(mesh, *found, update, decode))
  if not plans:
    common = max(reasons, key=lambda reason: reasons[reason])
    raise UserError(
      f'plan: none of {len(estimates)} meshes of {devices} devices fits; most '
      f'often: {common}'
    )
  return plans


def meshes(devices: int) -> Iterator[dict[str, int]]:
  """Yields all ways to split devices over the axes of a mesh."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  for sizes in itertools.product(divisors, repeat=len(MESH_AXES) - 1):
    rest, left = divmod(devices, math.prod(sizes))
    if rest and not left:
      yield dict(zip(MESH_AXES, (rest, *sizes)))


def abstract_layout(mesh: dict[str, int]) -> Layout:
  """Returns the layout of a mesh whose devices are not there."""
  return Layout(jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh)))


class _Shapes:
  """The parameters of a model, and what a device has of them."""

  def __init__(self, config: ModelConfig):
    self.config = config
    self.info = info.count(config)
    boxes = parameters.parameter_shapes(memory.on_one_device(config))
    self._boxes = traverse_util.flatten_dict(boxes, sep='/')

  def divide(self, layout: Layout) -> bool:
    """Whether the mesh divides the parameters, and uses all of its axes."""
    c = self.config
    heads, expert = layout.size('n'), layout.mesh.shape['expert']
    if c.num_attention_heads % heads or (expert > 1 and not c.num_moe_layers):
      return False
    try:
      for name, box in self._boxes.items():
        layout.check(name, box.value.shape, box.names)
    except UserError:
      return False
    return True

  def held(self, layout: Layout) -> float:
    """Parameters of one device."""
    return sum(
      math.prod(box.value.shape) / layout.weight_parts(box.names)
      for box in self._boxes.values()
    )

  def received(self, layout: Layout) -> float:
    """Parameters that one device gathers to compute all layers once."""
    return self.held(layout.decoding()) - self.held(layout)


def _times(
  flops: float, hbm: float, ici: float, layout: Layout, chip: Chip
) -> Times:
  """Seconds of FLOPs of all devices and bytes of one."""
  each = chip.devices
  return Times(
    compute=flops / layout.mesh.size / (chip.bf16_flops / each),
    hbm=hbm / (chip.hbm_bytes_per_sec / each),
    ici=ici / (chip.ici_bytes_per_sec / each),
    dcn=0.0,
  )


def _update_times(
  config: RunConfig,
  shapes: _Shapes,
  layout: Layout,
  lengths: Lengths,
  chip: Chip,
) -> Times:
  """The updates of a step, each of as many microbatches as its tokens fill."""
  c, m, counts = config.rl, config.model, shapes.info
  sequence = lengths.prompt + lengths.completion
  tokens = c.prompts_per_step * c.group_size * sequence
  group, tensor = layout.size('B'), layout.mesh.shape['tensor']
  sequence_shards = layout.size('T')
  # A device group computes at least a row of the longest sample at once.
  longest = config.data.max_prompt_tokens + c.max_new_tokens
  passes = max(tokens / group / max(longest, 1), c.num_minibatches)
  item = m.compute_dtype.itemsize
  again = 4 / 3  # Layers are computed again.
  flops = (
    again
    * tokens
    * (3 * counts.forward_flops + 3 * counts.attention_flops * sequence / 2)
  )
  hbm = passes * _WEIGHT_PASSES * shapes.held(layout.decoding()) * item
  ici = passes * _WEIGHT_PASSES * shapes.received(layout) * item
  of_device = tokens / group / sequence_shards  # Before tensor divides it.
  if tensor > 1:
    row = of_device * m.hidden_size * item * (1 - 1 / tensor)
    ici += _SEQUENCE_COLLECTIVES * m.num_hidden_layers * row
  shards = layout.weight_parts('E')
  if m.num_moe_layers and shards > 1:
    pairs = of_device / tensor * m.num_experts_per_tok
    pairs *= (m.capacity_factor or 1) * (1 - 1 / shards)
    ici += _EXCHANGES * m.num_moe_layers * pairs * m.hidden_size * item
  if sequence_shards > 1:  # Shards of rows for shards of heads, and back.
    heads = m.num_attention_heads * _head_width(m) / tensor
    ici += 4 * _WEIGHT_PASSES * m.num_hidden_layers * of_device * heads * item
  # Gradients are summed over the replicas of a parameter, once an update.
  replicas = layout.mesh.shape['data']
  if replicas > 1:
    ici += c.num_minibatches * 2 * 4 * shapes.held(layout)
  return _times(flops, hbm, ici, layout, chip)


def _head_width(model: ModelConfig) -> float:
  """Numbers of a query and of an output of a head, in the mean."""
  if model.attention == 'mla':
    query = model.qk_nope_head_dim + model.qk_rope_head_dim
    return (query + model.v_head_dim) / 2
  return model.head_dim


def _decode_times(
  config: RunConfig,
  shapes: _Shapes,
  layout: Layout,
  lengths: Lengths,
  chip: Chip,
) -> Times:
  """The forward passes that sample a step's completions, all rows in use."""
  c, m, counts = config.rl, config.model, shapes.info
  samples = sampler.groups_in_flight(config) * c.group_size
  group = layout.decoding().size('B')
  tensor = layout.mesh.shape['tensor']
  rows = -(-sampler.engine_config(config).max_num_seqs // group)
  at_once = rows * group
  passes = samples * lengths.completion / at_once
  context = lengths.prompt + lengths.completion / 2
  item = m.compute_dtype.itemsize
  flops = at_once * (counts.forward_flops + counts.attention_flops * context)
  heads = layout.size('K') if m.attention != 'mla' else 1
  cache = rows * context * counts.cache_bytes / heads
  hbm = shapes.held(layout.decoding()) * item + _GATHERS_OF_A_PASS * cache
  ici = 0.0
  if tensor > 1:
    row = rows * m.hidden_size * item * (1 - 1 / tensor)
    ici += 2 * 2 * m.num_hidden_layers * row
  shards = layout.weight_parts('E')
  if m.num_moe_layers and shards > 1:
    tokens = rows * layout.mesh.shape['expert']
    ici += m.num_moe_layers * tokens * m.hidden_size * (item + 4)
  return _times(passes * flops, passes * hbm, passes * ici, layout, chip)


def _fitting(
  config: RunConfig, layout: Layout, limit: int
) -> tuple[str, int, int]:
  """The remat policy that fits, and bytes of an update and of sampling.

  Raises:
    UserError: nothing fits, or the batch does not divide.
  """
  mesh = dataclasses.replace(config.mesh, **dict(layout.mesh.shape))
  config = dataclasses.replace(config, mesh=mesh)
  trained = info.training_bytes(config, layout)
  sampling = sum(list(memory.sampling_bytes(config, layout).values())[1:])
  gradients = trained.get('gradients, float32', 0)
  beside = trained['in all'] - gradients
  if beside + sampling > limit:
    raise UserError(
      f'sampling takes {(beside + sampling) / _GB:.0f} GB of a device'
    )
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, remat='none')
  )
  updates: Sequence[Update] = stage_list.updates(config, layout)
  others = beside - max(
    memory.predict(update, 'block').state for update in updates
  )
  remat = memory.choose(updates, limit - max(others, 0))
  used = max(memory.predict(update, remat).total for update in updates)
  used += max(others, 0)
  if used > limit:
    raise UserError(f'an update takes {used / _GB:.0f} GB of a device')
  return remat, used, beside + sampling


def show(
  config: RunConfig, chip: Chip, chips: int, lengths: Lengths, count: int
):
  """Prints the table of `r1jax plan`; see `propose`."""
  plans = propose(config, chip, chips, lengths, count)
  table = Table(box=None, pad_edge=False)
  names = (
    *MESH_AXES,
    'remat',
    'update GB',
    'sampling GB',
    'update s',
    'decode s',
    'both s',
    'limit',
  )
  for name in names:
    table.add_column(name, justify='right')
  for plan in plans:
    table.add_row(
      *map(str, plan.mesh.values()),
      plan.remat,
      f'{plan.update_bytes / _GB:.1f}',
      f'{plan.sampling_bytes / _GB:.1f}',
      f'{plan.update.bound:.3g}',
      f'{plan.decode.bound:.3g}',
      f'{plan.seconds:.3g}',
      f'{plan.update.limit}, {plan.decode.limit}',
    )
  limit = chip.hbm_bytes / chip.devices / _GB
  print(
    f'{chips} {chip.name} chips, {limit:.1f} GB a device; '
    f'{config.rl.prompts_per_step * config.rl.group_size:,} samples of '
    f'{lengths.prompt:g} + {lengths.completion:g} tokens a step, seconds at the '
    'least:'
  )
  Console(width=120).print(table)
  best = ', '.join(f'{axis}={size}' for axis, size in plans[0].mesh.items())
  print(f'config.mesh.update({best})')
