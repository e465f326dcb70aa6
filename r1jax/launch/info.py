"""Counts the parameters, FLOPs and memory of a config: `r1jax info`."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
from jax.sharding import AbstractMesh
from rich.console import Console
from rich.table import Table

from r1jax.checkpoints import convert
from r1jax.config.load import model_config
from r1jax.config.schema.model import REMAT_POLICIES
from r1jax.config.schema.preferences import PackedConfig
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.model.model_flops import count
from r1jax.runs import stage_list
from r1jax.sharding import Layout, make_mesh, mesh_sizes
from r1jax.stages import memory
from r1jax.stages.build import sampler
from r1jax.stages.stage import Network
from r1jax.train import optimizer


def training_bytes(config: RunConfig, layout: Layout) -> dict[str, int]:
  """Returns the bytes that training the last stage keeps on one device.

  The stage says which networks it holds. Activations are not included, and
  gradients are those of one network at a time, the largest. A stage that only
  samples keeps weights alone. Models that it loads from files, such as a
  teacher or reward models, count where the file is there; see `uncounted`.

  Args:
    config: The run.
    layout: The mesh, which may be abstract, and its tables.

  Returns:
    Bytes by part, and in total.

  Raises:
    UserError: a file does not say what model it holds.
  """
  parts, gradients = {}, 0
  for network in _networks(config):
    size = memory.parameters_per_device(network.model, layout)
    prefix = network.label and f'{network.label}: '
    parts[f'{prefix}weights, float32'] = 4 * size
    if network.optimizer:
      moments = network.optimizer.moment_dtype
      width = 2 if moments == 'bfloat16' else 4
      times = partial(optimizer.num_moments, network.optimizer)
      count = memory.parameters_per_device(network.model, layout, times)
      kind = 'Muon and Adam' if network.optimizer.name == 'muon' else 'Adam'
      parts[f'{prefix}{kind} moments, {moments}'] = width * count
      gradients = max(gradients, 4 * size)
  if gradients:
    parts['gradients, float32'] = gradients
  for key, path in _loaded_models(config).items():
    if path.exists():
      model = model_config(convert.model_config_of(path), str(path))
      parts[f'{key}: weights, float32'] = 4 * memory.parameters_per_device(
        model, layout
      )
  return parts | {'in all': sum(parts.values())}


def uncounted(config: RunConfig) -> list[str]:
  """Returns keys of the models whose files training_bytes does not find."""
  return [
    key for key, path in _loaded_models(config).items() if not path.exists()
  ]


def _loaded_models(config: RunConfig) -> dict[str, Path]:
  stage = stage_list.stage_class(config.stages[-1])
  return {
    key: path.expanduser() for key, path in stage.loaded_models(config).items()
  }


def _networks(config: RunConfig) -> list[Network]:
  return stage_list.stage_class(config.stages[-1]).networks(config)


def trains(config: RunConfig) -> bool:
  """Returns whether the last stage of a run trains a network."""
  return any(network.optimizer for network in _networks(config))


def longest_tokens(config: RunConfig) -> int:
  """Returns the longest sequence of the last stage of a run, in tokens."""
  section = getattr(config, config.stages[-1])
  if hasattr(section, 'length_tokens'):
    return section.length_tokens
  if isinstance(section, PackedConfig):
    return section.max_tokens
  return config.data.max_prompt_tokens + config.rl.max_new_tokens


def show(config: RunConfig, devices: int):
  """Prints the table of `r1jax info`.

  Args:
    config: The config of one run.
    devices: Number of devices of the mesh.
  """
  table = Table(show_header=False, box=None)
  table.add_column()
  table.add_column(justify='right')
  table.add_column(justify='right')
  for row in _architecture_rows(config) + _device_rows(config, devices):
    table.add_row(*row)
  Console().print(table)


def _architecture_rows(config: RunConfig) -> list[tuple[str, str, str]]:
  """Rows of counts that do not depend on the mesh: name, number, short form."""
  model = config.model
  counts, context = count(model), longest_tokens(config)
  # A token attends to half of the sequence on average.
  core = counts.attention_flops * context // 2
  row = lambda name, number, short: (name, f'{number:,}', short)
  rows = [
    row('parameters', counts.total, _size(counts.total)),
    row('  used by one token', counts.active, _size(counts.active)),
  ]
  if model.num_nextn_predict_layers:
    rows.append(row('MTP modules, apart', counts.mtp, _size(counts.mtp)))
  sequence_bytes = counts.cache_bytes * context
  rows += [
    row('cache, bytes a token', counts.cache_bytes, ''),
    row(
      f'  of one sequence of {context:,} tokens',
      sequence_bytes,
      _short(sequence_bytes, 'B'),
    ),
    row(
      'forward FLOPs a token',
      counts.forward_flops,
      _short(counts.forward_flops),
    ),
    row(f'  attention core, mean of {context:,} tokens', core, _short(core)),
  ]
  if trains(config):
    flops = 3 * (counts.forward_flops + core)
    rows.append(row('training FLOPs a token, 3 × both', flops, _short(flops)))
  return rows


def _device_rows(config: RunConfig, devices: int) -> list[tuple[str, str, str]]:
  """Rows of what one device of the mesh keeps in memory."""
  axes = mesh_sizes(dataclasses.asdict(config.mesh), devices)
  layout = Layout(
    make_mesh(axes, jax.devices()[:devices])
    if devices <= jax.device_count()
    else jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
  )
  mesh = ' × '.join(f'{axis} {size}' for axis, size in axes.items())
  sampling = memory.sampling_bytes(config, layout)
  return [
    (f'a device of {mesh}', '', ''),
    *(
      (f'  {name}', f'{size:,}', _short(size, 'B'))
      for name, size in training_bytes(config, layout).items()
    ),
    *((f'  {key}', 'no file yet', 'not counted') for key in uncounted(config)),
    *_update_rows(config, layout),
    (
      f'  sampling, {sampler.engine_config(config).max_num_seqs} sequences in all',
      '',
      _as_global(config, layout),
    ),
    *(
      (f'    {name}', f'{size:,}', _short(size, 'B'))
      for name, size in sampling.items()
    ),
  ]


def _as_global(config: RunConfig, layout: Layout) -> str:
  """Says that sampling by host is counted on the whole mesh, where it is."""
  c = config.rollout
  if (c.scope == 'host' or c.sampling_devices) and isinstance(
    layout.mesh, AbstractMesh
  ):
    return "as with rollout.scope = 'global' on all devices"
  return ''


def _update_rows(
  config: RunConfig, layout: Layout
) -> list[tuple[str, str, str]]:
  """Rows of what an update takes under each value of model.remat."""
  if not trains(config):
    return []
  model = dataclasses.replace(config.model, remat=REMAT_POLICIES[0])
  concrete = dataclasses.replace(config, model=model)
  try:
    updates = stage_list.updates(concrete, layout)
  except UserError as error:
    return [(f'  update: {error}', '', 'not counted')]
  rows = []
  for update in updates:
    size = update.rows // update.accumulation_steps * update.tokens
    rows.append((f'  {update.label} update, {size:,} tokens at once', '', ''))
    for remat in REMAT_POLICIES:
      size = memory.predict(update, remat).total
      mark = ' (this config)' if remat == config.model.remat else ''
      rows.append(
        (f'    model.remat = {remat!r}{mark}', f'{size:,}', _short(size, 'B'))
      )
  return rows


def _size(parameters: float) -> str:
  """Formats a size as in names of models: 671B, 37B, 1.54B, 711K."""
  for name in ('', 'K', 'M', 'B', 'T'):
    if parameters < 999.5:
      break
    parameters /= 1000
  return f'{parameters:.{2 if name and parameters < 10 else 0}f}{name}'


def _short(number: float, unit: str = '') -> str:
  for name in ('', 'K', 'M', 'G' if unit else 'B', 'T', 'P', 'E'):
    if number < 1000:
      break
    number /= 1000
  return f'{number:.4g} {name}{unit}'.strip()
