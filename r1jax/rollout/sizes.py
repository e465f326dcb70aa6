"""Sizes of the rollout engine, and the memory that they need."""

from collections.abc import Callable
import dataclasses
import math
import os

from flax import traverse_util
import jax
from jax.experimental import layout as array_layout
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config.field import key
from r1jax.config.schema.rollout import RolloutConfig
from r1jax.errors import UserError
from r1jax.model import int8_weights
from r1jax.model.parameters import param_compute_dtype, parameter_shapes
from r1jax.model.transformer import Transformer
from r1jax.rollout import speculative
from r1jax.rollout.programs import Programs
from r1jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class EngineConfig(RolloutConfig):
  """Sizes of the rollout engine: config.rollout, and the longest sequence.

  Attributes:
    max_model_len: Maximum number of prompt and completion tokens together.
  """

  max_model_len: int = key(
    0, 'Prompt and completion tokens together.', at_least=1
  )

  @property
  def max_blocks_per_seq(self) -> int:
    """W, the maximum number of blocks of one sequence.

    It is one more than its tokens fill, since both its prompt and its
    completion may end in a partial block.
    """
    return -(-self.max_model_len // self.block_size) + 1

  def of_one_replica(self, replicas: int) -> 'EngineConfig':
    """Returns the sizes of one of so many replicas that share the work."""
    return dataclasses.replace(
      self,
      max_num_seqs=-(-self.max_num_seqs // replicas),
      kv_cache_tokens=-(-self.kv_cache_tokens // replicas),
    )

  def num_blocks(self, num_shards: int) -> int:
    """Returns the number of blocks of each shard's pool, block 0 among them.

    Raises:
      UserError: a pool cannot hold one request of max_model_len.
    """
    num_seqs = -(-self.max_num_seqs // num_shards) * num_shards
    enough = num_seqs * self.max_blocks_per_seq * self.block_size
    tokens = self.kv_cache_tokens or enough
    num_blocks = 1 + -(-tokens // (self.block_size * num_shards))
    if num_blocks <= self.max_blocks_per_seq:
      raise UserError(
        f'rollout: kv_cache_tokens = {tokens} holds no request of '
        f'max_model_len = {self.max_model_len}; it needs '
        f'{self.max_blocks_per_seq * self.block_size * num_shards}'
      )
    return num_blocks


def memory_per_device(
  model: Transformer,
  layout: Layout,
  config: EngineConfig,
  decoding: Layout | None = None,
  apart: bool = False,
) -> dict[str, int]:
  """Returns the bytes that sampling needs on one device, by purpose.

  They count the trained weights, the copy of them that is sampled from where
  the two differ, and the KV cache. Training has the optimizer's moments and
  the reference policy beside them.

  Args:
    model: The model that is sampled from.
    layout: Its training layout; the mesh may be abstract.
    config: Sizes.
    decoding: Its layout to sample with; by default on the same mesh.
    apart: Whether the devices that sample do not train.
  """
  decoding = decoding or layout.decoding()
  boxes = traverse_util.flatten_dict(parameter_shapes(model))

  def weight_bytes(layout: Layout, itemsize: Callable) -> int:
    return sum(
      int(itemsize(path, box) * math.prod(box.value.shape))
      // layout.weight_parts(box.names)
      for path, box in boxes.items()
    )

  def sampled_itemsize(path, box) -> float:
    plain = param_compute_dtype(model.config, path[-1]).itemsize
    if not config.weights_int8:
      return plain
    return int8_weights.bytes_of(path, box, layout.decoding(), plain)

  shared = _is_shared(model, layout, decoding, config)
  num_shards = decoding.size('B')
  num_blocks = config.num_blocks(num_shards) * num_shards
  pools = programs(model, config, record_routing=False)
  kv_cache = jax.eval_shape(lambda: pools.init_kv_cache(num_blocks))
  dtype = 'int8' if config.weights_int8 else model.config.compute_dtype
  return {
    'weights as trained, float32': 0
    if apart
    else weight_bytes(layout, lambda *_: 4),
    f'weights as sampled, {dtype}': 0
    if shared
    else weight_bytes(decoding, sampled_itemsize),
    'cache': sum(
      math.prod(x.shape)
      * x.dtype.itemsize
      // decoding.parts(kv_cache_spec(decoding, x))
      for x in jax.tree.leaves(kv_cache)
    ),
  }


def _is_shared(
  model: Transformer, layout: Layout, decoding: Layout, config: EngineConfig
) -> bool:
  """Whether the weights as trained are those that are sampled from."""
  # The decoding layout drops axes of the training one and adds none.
  return (
    model.config.compute_dtype == jnp.float32
    and not config.weights_int8
    and not should_unroll(model)
    and decoding.mesh == layout.mesh
    and all(
      layout.weight_parts(box.names) == decoding.weight_parts(box.names)
      for box in jax.tree.leaves(
        parameter_shapes(model), is_leaf=lambda x: hasattr(x, 'names')
      )
    )
  )


def programs(
  model: Transformer, config: EngineConfig, record_routing: bool
) -> Programs:
  """Returns the functions that sampling compiles, for a model and its sizes."""
  max_drafts = speculative.max_drafts(config, model.layout.platform)
  return Programs(
    model=model,
    block_size=config.block_size,
    kv_cache_int8=config.kv_cache_int8,
    record_routing=record_routing,
    speculative=max_drafts > 0,
    max_drafts=max_drafts,
    confidence_threshold=config.draft_confidence_threshold,
    decode_steps=config.decode_steps,
  )


def kv_cache_spec(layout: Layout, x) -> PartitionSpec:
  """Returns the partition of one array of the KV cache."""
  return layout.fitting_spec(x.shape, {2: 'Y_', 5: 'LYKSX'}[x.ndim])


def kv_cache_format(layout: Layout, x) -> NamedSharding | array_layout.Format:
  """Returns how an array of the KV cache lies on the devices.

  On TPUs its dimensions stay in order. By default a TPU puts those last that
  fill its tiles best, such as the blocks: each call would copy the pool into
  another layout, and back.
  """
  sharding = NamedSharding(layout.mesh, kv_cache_spec(layout, x))
  if layout.platform != 'tpu':
    return sharding
  return array_layout.Format(
    array_layout.Layout(major_to_minor=tuple(range(x.ndim))), sharding
  )


_MAX_UNROLLED_LAYERS = (
  8  # At most so many layers are unrolled: each is compiled.
)


def should_unroll(model: Transformer) -> bool:
  """Whether layers are unrolled instead of scanned.

  It pays on a CPU, which multiplies only what it has first copied out of a
  stack of layers, and where layers are few. It costs a second copy of the
  parameters.
  """
  return (
    model.layout.platform == 'cpu'
    and model.config.num_hidden_layers <= _MAX_UNROLLED_LAYERS
  )


def check_memory(layout: Layout, required: dict[str, int]):
  """Raises UserError where one device cannot hold what sampling needs.

  Args:
    layout: The mesh, whose devices are there.
    required: Bytes by purpose; see memory_per_device.
  """
  devices = layout.mesh.local_devices
  if not devices:  # The processes that have them ask them.
    return
  limit = (devices[0].memory_stats() or {}).get('bytes_limit')
  if limit is None:  # CPU devices share the host's memory.
    limit = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    limit /= len(devices)
  if sum(required.values()) > limit:
    listed = ', '.join(
      f'{name}: {size / 1e9:.1f}' for name, size in required.items()
    )
    raise UserError(
      f'rollout: a device has {limit / 1e9:.1f} GB, and sampling needs '
      f'{listed}; lower kv_cache_tokens or max_num_seqs, or split the weights '
      'over more of the mesh'
    )
