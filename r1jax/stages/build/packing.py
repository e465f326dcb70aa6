"""The rows that the updates of an RL step are packed into."""

import jax

from r1jax.config.schema.run import RunConfig
from r1jax.data.sample_packing import RowShape
from r1jax.errors import UserError
from r1jax.model import kernels
from r1jax.sharding import Layout

# Tokens of a device in a microbatch, at least, where the config leaves it open:
# enough for large matrix products, few enough for little memory and padding. A
# CPU is fastest while activations stay in its caches.
_DEVICE_TOKENS, _CPU_TOKENS = 8192, 1536
# Rows for short samples have room for several of the longest ones, up to so many
# tokens: best fit leaves less of them empty.
_SHORT_ROW_TOKENS = 1024
# Where samples share prompts, a row has room for so many prompts as long as they
# may be, beside the longest completion, up to so many tokens: most of its tokens
# are then those of completions.
_SHARED_PROMPTS, _SHARED_ROW_TOKENS = 4, 4096


def row_shape(config: RunConfig, layout: Layout) -> RowShape:
  """Returns the shape of the rows that config.rl asks for.

  Raises:
    UserError: a row does not hold the longest sample, or a microbatch is not
      made of whole rows on every device; the message names the key.
  """
  c, shards = config.rl, layout.size('B')
  longest = config.data.max_prompt_tokens + c.max_new_tokens
  num_samples = c.prompts_per_step * c.group_size
  if num_samples % c.num_minibatches:
    raise UserError(
      f'rl.prompts_per_step × rl.group_size = {num_samples} does not divide '
      f'into rl.num_minibatches = {c.num_minibatches} parts'
    )
  repeated = _repeated_tokens(config, layout)
  room = _SHORT_ROW_TOKENS
  if repeated:
    sharing = _SHARED_PROMPTS * config.data.max_prompt_tokens + c.max_new_tokens
    room = max(room, min(sharing, _SHARED_ROW_TOKENS))
  row_tokens = c.row_tokens or longest * max(1, room // longest)
  if row_tokens < longest:
    raise UserError(
      f'rl.row_tokens = {row_tokens} is less than the longest sample, '
      f'data.max_prompt_tokens + rl.max_new_tokens = {longest} tokens; raise '
      'it, or leave it at 0'
    )
  if c.microbatch_tokens % (row_tokens * shards):
    axes = ' × '.join(layout.activation_axes('B'))
    raise UserError(
      f'rl.microbatch_tokens = {c.microbatch_tokens} is no multiple of '
      f'{row_tokens * shards} tokens: a row of {row_tokens} for each of the '
      f"mesh's {axes} = {shards}; change it, or leave it at 0"
    )
  rows = c.microbatch_tokens // row_tokens
  if not rows:
    of_update = -(-num_samples // c.num_minibatches // shards)
    tokens = _CPU_TOKENS if _platform(layout) == 'cpu' else _DEVICE_TOKENS
    rows = shards * min(-(-tokens // row_tokens), of_update)
  return RowShape(
    row_tokens=row_tokens,
    microbatch_rows=rows,
    num_updates=c.num_minibatches,
    num_samples=num_samples,
    max_sample_tokens=longest,
    repeated_tokens=repeated,
  )


def _repeated_tokens(config: RunConfig, layout: Layout) -> int:
  """Returns RowShape.repeated_tokens: 0 if samples cannot share prompts."""
  c, model = config.rl, config.model
  if c.share_prompts == 'never' or c.group_size == 1:
    return 0
  kernel, dtype = model.attention_kernel, model.compute_dtype
  if not kernels.sees_prefixes(kernel, _platform(layout), dtype):
    return 0
  return 1 + (model.num_nextn_predict_layers if c.mtp_loss_weight else 0)


def _platform(layout: Layout) -> str:
  """Returns the devices' platform; an abstract mesh stands for a pod of TPUs."""
  abstract = isinstance(layout.mesh, jax.sharding.AbstractMesh)
  return 'tpu' if abstract else layout.platform
