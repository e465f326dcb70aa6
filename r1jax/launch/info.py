"""What a config's model is, counted and not run: `r1jax info`."""

import dataclasses
import math

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
from rich.console import Console
from rich.table import Table

from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.rollout import engine
from r1jax.sharding import Layout, make_mesh, mesh_sizes
from r1jax.stages import critic
from r1jax.stages.build import parts as build


@dataclasses.dataclass(frozen=True)
class Info:
  """Counts of one architecture.

  The look-ahead modules stand apart, as in published sizes: a policy without
  them is the same policy.

  Attributes:
    total: Parameters; the routing biases are not counted among them.
    active: Parameters that one token meets: its num_experts_per_tok experts
      and the shared ones. The embedding's one row is not counted.
    look_ahead: Parameters of the look-ahead modules, in neither of the two.
    cache_bytes: That a token leaves in the cache, in the compute dtype.
    forward_flops: A token's matrix products, without attention's core.
    attention_flops: Attention's core for one token, for each token of its
      context: scores and mixing, all layers.
  """

  total: int
  active: int
  look_ahead: int
  cache_bytes: int
  forward_flops: int
  attention_flops: int


def count(config: ModelConfig) -> Info:
  total = active = look_ahead = 0
  for name, box in _parameters(config).items():
    if name.endswith('ffn/bias'):
      continue
    size = math.prod(box.value.shape)
    if name.startswith('mtp/'):
      look_ahead += size
      continue
    total += size
    if name == 'embedding' and not config.tie_word_embeddings:
      continue  # A lookup, not a product.
    if 'E' in box.names:
      size = size // config.n_routed_experts * config.num_experts_per_tok
    active += size
  if config.attention == 'mla':
    head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
  else:
    head = 2 * config.head_dim
  return Info(
    total=total,
    active=active,
    look_ahead=look_ahead,
    cache_bytes=(
      config.num_hidden_layers
      * config.cache_width
      * config.compute_dtype.itemsize
    ),
    forward_flops=2 * active,
    attention_flops=2
    * config.num_hidden_layers
    * config.num_attention_heads
    * head,
  )


def parameters_per_device(config: ModelConfig, layout: Layout) -> int:
  """The most that one device of a mesh holds.

  Raises:
    UserError: the mesh does not divide a parameter.
  """
  held = 0
  for name, box in _parameters(config).items():
    layout.check(name, box.value.shape, box.names)
    held += math.prod(box.value.shape) // layout.weight_parts(box.names)
  return held


def training_bytes(
  config: ml_collections.ConfigDict, layout: Layout
) -> dict[str, int]:
  """What a device holds between the passes of a step of the last stage, part
  by part, and in all; RL's sums are of GRPO, and of PPO with either value
  function. A stage that only samples holds weights.

  Gradients are of one network at a time. On a shared trunk a value is a head
  of D numbers.
  """
  trained = config.stages[-1]
  model = build.model_config(config.model)
  policy = parameters_per_device(model, layout)
  if not trains(config):
    return {'weights, float32': 4 * policy}
  moments = config[trained].optimizer.moment_dtype
  wide = 2 * jnp.dtype(moments).itemsize
  parts = {
    'weights, float32': 4 * policy,
    f'Adam moments, {moments}': wide * policy,
    'gradients, float32': 4 * policy,
  }
  reference = trained == 'dpo' or (trained == 'rl' and bool(config.rl.kl_coef))
  if reference:
    parts['reference policy, float32'] = 4 * policy
  if trained != 'rl':
    return parts | {'in all': sum(parts.values())}
  valued, own = (
    parameters_per_device(each, layout)
    for each in (
      dataclasses.replace(model, scalar_head=True),
      critic.model_config(config),
    )
  )
  copies = 4 * (2 + reference) + wide  # Of each parameter.
  return parts | {
    'GRPO, in all': copies * policy,
    "PPO's own critic and its moments": (4 + wide) * own,
    'PPO with it, in all': (
      copies * policy + (4 + wide) * own + 4 * max(own - policy, 0)
    ),
    'PPO on a shared trunk, in all': copies * valued,
  }


def trains(config: ml_collections.ConfigDict) -> bool:
  """Has the last stage an optimiser?"""
  return 'optimizer' in config[config.stages[-1]]


def longest_tokens(config: ml_collections.ConfigDict) -> int:
  """Of the sequences of the last stage."""
  c = config[config.stages[-1]]
  if 'length_tokens' in c:
    return c.length_tokens
  if 'length_buckets' in c:
    return max(c.length_buckets)
  return config.data.max_prompt_tokens + config.rl.max_new_tokens


def show(config: ml_collections.ConfigDict, devices: int):
  """Prints the table."""
  model = build.model_config(config.model)
  found = count(model)
  sizes = mesh_sizes(config.mesh, devices)
  layout = Layout(
    jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  )
  context = longest_tokens(config)
  core = found.attention_flops * context // 2  # A token sees half of it.
  mesh = ' × '.join(f'{axis} {size}' for axis, size in sizes.items())
  rows = [
    ('parameters', f'{found.total:,}', _size(found.total)),
    ('  met by one token', f'{found.active:,}', _size(found.active)),
  ]
  if model.num_nextn_predict_layers:
    rows.append(
      (
        'look-ahead modules, apart',
        f'{found.look_ahead:,}',
        _size(found.look_ahead),
      )
    )
  rows += [
    ('cache, bytes a token', f'{found.cache_bytes:,}', ''),
    (
      f'  of one sequence of {context:,} tokens',
      f'{found.cache_bytes * context:,}',
      _short(found.cache_bytes * context, 'B'),
    ),
    (
      'forward FLOPs a token',
      f'{found.forward_flops:,}',
      _short(found.forward_flops),
    ),
    (
      f'  attention core, mean of {context:,} tokens',
      f'{core:,}',
      _short(core),
    ),
  ]
  if trains(config):
    rows.append(
      (
        'training FLOPs a token, 3 × both',
        f'{3 * (found.forward_flops + core):,}',
        _short(3 * (found.forward_flops + core)),
      )
    )
  sizes = build.engine_config(config)
  sampling = engine.memory_per_device(_on_one_device(model), layout, sizes)
  rows.append((f'a device of {mesh}', '', ''))
  rows += [
    (f'  {name}', f'{size:,}', _short(size, 'B'))
    for name, size in training_bytes(config, layout).items()
  ]
  rows.append((f'  sampling, {sizes.max_num_seqs} rows in all', '', ''))
  rows += [
    (f'    {name}', f'{size:,}', _short(size, 'B'))
    for name, size in sampling.items()
  ]
  table = Table(show_header=False, box=None)
  table.add_column()
  table.add_column(justify='right')
  table.add_column(justify='right')
  for row in rows:
    table.add_row(*row)
  Console().print(table)


def _parameters(config: ModelConfig) -> dict[str, nn.Partitioned]:
  return traverse_util.flatten_dict(
    transformer.parameter_shapes(_on_one_device(config)), sep='/'
  )


def _on_one_device(config: ModelConfig) -> Transformer:
  return Transformer(config, Layout(make_mesh({}, jax.devices()[:1])))


def _size(parameters: int) -> str:
  """As models are called: 671B, 37B, 1.54B, 711K."""
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
