"""The rows that the samples or examples of updates are packed into."""

import dataclasses
from typing import Any

import jax

from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.training import RowsConfig
from r1jax.data.sample_packing import RowShape
from r1jax.errors import UserError
from r1jax.model import kernels
from r1jax.sharding import Layout

# Tokens of a device in a microbatch, at least, where the config leaves it open:
# enough for large matrix products, few enough for little memory and padding. A
# CPU is fastest while activations stay in its caches.
_DEVICE_TOKENS, _CPU_TOKENS = 8192, 1536
# Rows have room for several short samples, and for several prompts of the greatest
# length where samples share them, so that most of their tokens are completions.
# Wider rows, for longer samples, are so many times as wide.
_ROW_TOKENS, _SHARED_PROMPTS, _SHARED_ROW_TOKENS = 1024, 4, 4096
_WIDER = 4


def row_shape(config: RunConfig, layout: Layout) -> RowShape:
  """Returns the shape of the rows that config.rl asks for.

  Raises:
    UserError: a row does not hold the longest sample, or a microbatch is not
      made of whole rows on every device; the message names the key.
  """
  c = config.rl
  num_samples = c.prompts_per_step * c.group_size
  if num_samples % c.num_minibatches:
    raise UserError(
      f'rl.prompts_per_step × rl.group_size = {num_samples} does not divide '
      f'into rl.num_minibatches = {c.num_minibatches} parts'
    )
  repeated, narrowest = _repeated_tokens(config, layout), _ROW_TOKENS
  if repeated:
    sharing = _SHARED_PROMPTS * config.data.max_prompt_tokens
    narrowest = max(narrowest, min(sharing, _SHARED_ROW_TOKENS))
  shape = _row_shape(
    'rl',
    c,
    layout,
    'sample, data.max_prompt_tokens + rl.max_new_tokens',
    config.data.max_prompt_tokens + c.max_new_tokens,
    num_samples,
    c.num_minibatches,
    narrowest,
  )
  return dataclasses.replace(shape, repeated_tokens=repeated)


def example_row_shape(config: RunConfig, name: str, layout: Layout) -> RowShape:
  """Returns the shape of the rows of a stage that learns from sequences.

  Its samples are the examples of a batch; a pair is one, with the tokens of
  both responses.

  Args:
    config: The run.
    name: The stage, whose section is a PackedConfig.
    layout: The mesh.

  Raises:
    UserError: as of row_shape, or a sequence may exceed the context.
  """
  c: Any = getattr(config, name)
  longest, context = c.max_tokens, config.model.max_position_embeddings
  if longest > context:
    raise UserError(
      f'{name}.max_tokens = {longest} exceeds '
      f'model.max_position_embeddings = {context}'
    )
  of_example = f'example, {name}.max_tokens'
  if c.is_paired:
    of_example, longest = f'pair, 2 × {name}.max_tokens', 2 * longest
  return _row_shape(name, c, layout, of_example, longest, c.batch_size, 1)


def _row_shape(
  name: str,
  c: RowsConfig,
  layout: Layout,
  item: str,
  longest: int,
  num_samples: int,
  num_updates: int,
  narrowest: int = _ROW_TOKENS,
) -> RowShape:
  """Returns the shape of the rows that a section asks for.

  Args:
    name: The section's name.
    c: The section.
    layout: The mesh.
    item: What stands in one row, and the keys that say how long it may be.
    longest: The tokens of the longest one.
    num_samples, num_updates: See RowShape.
    narrowest: Tokens of the narrowest rows, where the config leaves them open.
  """
  shards, multiple = layout.size('B'), layout.row_multiple
  row_tokens = c.row_tokens or _rounded(max(longest, narrowest), multiple)
  if row_tokens < longest:
    raise UserError(
      f'{name}.row_tokens = {row_tokens} is less than the longest {item} = '
      f'{longest} tokens; raise it, or leave it at 0'
    )
  layout.check_row(f'{name}.row_tokens', row_tokens)
  if c.microbatch_tokens % (row_tokens * shards):
    axes = ' × '.join(layout.activation_axes('B'))
    raise UserError(
      f'{name}.microbatch_tokens = {c.microbatch_tokens} is no multiple of '
      f'{row_tokens * shards} tokens: a row of {row_tokens} for each of the '
      f"mesh's {axes} = {shards}; change it, or leave it at 0"
    )
  widths, narrowest = [row_tokens], _rounded(narrowest, multiple)
  while not c.row_tokens and 2 * narrowest <= widths[-1]:
    widths.insert(-1, narrowest)
    narrowest *= _WIDER
  of_update = -(-num_samples // num_updates // shards)  # Samples of a device.
  tokens = _CPU_TOKENS if _platform(layout) == 'cpu' else _DEVICE_TOKENS
  tokens *= layout.size('T')  # So many devices share a row.

  def microbatch_rows(width: int) -> int:
    if c.microbatch_tokens:
      return c.microbatch_tokens // (width * shards) * shards
    room = min(tokens, of_update * longest)
    return shards * min(-(-room // width), of_update)

  *narrower, widest = [(width, microbatch_rows(width)) for width in widths]
  return RowShape(
    row_tokens=row_tokens,
    microbatch_rows=widest[1],
    num_updates=num_updates,
    num_samples=num_samples,
    max_sample_tokens=longest,
    narrower=tuple(narrower),
  )


def _rounded(tokens: int, multiple: int) -> int:
  return -(-tokens // multiple) * multiple


def _repeated_tokens(config: RunConfig, layout: Layout) -> int:
  """Returns RowShape.repeated_tokens: 0 if samples cannot share prompts."""
  c, model = config.rl, config.model
  if c.share_prompts == 'never' or c.group_size == 1:
    return 0
  kernel, dtype = model.attention_kernel, model.compute_dtype
  if not kernels.sees_prefixes(kernel, _platform(layout), dtype):
    return 0
  return 1 + (model.prediction_depth if c.mtp_loss_weight else 0)


def _platform(layout: Layout) -> str:
  """Returns the devices' platform; an abstract mesh stands for a pod of TPUs."""
  abstract = isinstance(layout.mesh, jax.sharding.AbstractMesh)
  return 'tpu' if abstract else layout.platform
