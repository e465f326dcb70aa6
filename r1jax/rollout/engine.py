"""The rollout engine: completes requests, decoding on the device in chunks.

Two programs serve requests of all lengths: prefill, and a chunk of decode
steps (see programs.py). Between two calls the host assigns sequences and cache
blocks (see scheduler.py). Where fewer sequences run, a narrower copy of the
same program is used: a sequence is nothing but a list of blocks, so moving it
to another row of the batch costs nothing.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import os
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from r1jax.config.field import key
from r1jax.config.schema.rollout import RolloutConfig
from r1jax.errors import UserError
from r1jax.model.parameters import (
  cast_to_compute,
  param_compute_dtype,
  parameter_shapes,
  parameter_shardings,
  unstack_layers,
)
from r1jax.model.transformer import Transformer
from r1jax.records import PromptBatch, Rollout
from r1jax.rollout import assemble, speculative
from r1jax.rollout.programs import Programs
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Session
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


class Engine:
  """Compiled programs and sizes that complete requests.

  It holds no parameters, and nothing of a run outlives it. The tokens of a
  sample are a function of its key and of how many tokens it has generated,
  whatever else is in the batch and wherever in the batch it stands. This holds
  with speculative decoding too: how many tokens are drafted for a sample
  depends on its own earlier drafts alone.

  Attributes:
    config: Sizes.
    detokenize: Function from token ids to text, or None.
    layout: The decoding layout on the mesh.
    num_shards: Shards of the batch on the mesh; each has its own block pool.
    max_num_seqs: Sequences of one shard that decode at once.
    max_blocks_per_seq: W, see EngineConfig.
    num_blocks: Blocks of one shard's pool.
    model: The model in its decoding layout.
    programs: The functions that are compiled.
    prefill, decode: The jitted programs; the KV cache is donated.
  """

  def __init__(
    self,
    model: Transformer,
    config: EngineConfig,
    record_routing: bool = False,
    detokenize: Callable[[Sequence[int]], str] | None = None,
  ):
    """Builds the programs; they are compiled when they are first called.

    Args:
      model: The model in its training layout.
      config: Sizes.
      record_routing: Whether completions record the experts of their tokens.
      detokenize: Function from token ids to text; stop strings need it.

    Raises:
      UserError: a block pool cannot hold one request, a device's memory
        cannot hold the pool, or `speculative` is set without an MTP module.
    """
    self.config, self.detokenize = config, detokenize
    if config.speculative and not model.config.num_nextn_predict_layers:
      raise UserError(
        'rollout: speculative needs an MTP module, but '
        'model.num_nextn_predict_layers is 0'
      )
    self.layout = layout = model.layout.decoding()
    self.num_shards = layout.size('B')
    self.max_num_seqs = -(-config.max_num_seqs // self.num_shards)
    self.max_blocks_per_seq = config.max_blocks_per_seq
    self.num_blocks = config.num_blocks(self.num_shards)
    _check_memory(layout, memory_per_device(model, model.layout, config))
    # The model that samples has no capacity, so no (token, expert) pair is
    # dropped, and a sample does not depend on the others in its batch.
    self.model = model.clone(
      layout=layout,
      scan_layers=not _should_unroll(model),
      config=dataclasses.replace(model.config, capacity_factor=0.0),
    )
    self.programs = _programs(self.model, config, record_routing)
    self._shardings = self._decoding_shardings(model)
    self._relayout = jax.jit(
      self._decoding_params, out_shardings=self._shardings
    )
    self._init_kv_cache = jax.jit(
      self._empty_kv_cache, out_shardings=self._kv_cache_shardings()
    )
    self.prefill = jax.jit(
      self.programs.prefill,
      donate_argnums=1,
      out_shardings=self._output_shardings(),
    )
    self.decode = jax.jit(
      self.programs.decode,
      donate_argnums=1,
      static_argnames=('num_top_logprobs',),
      out_shardings=self._output_shardings(),
    )

  def _decoding_shardings(self, model: Transformer):
    """Returns the shardings of decoding parameters, as their layers lie."""
    stacked = parameter_shardings(model, self.layout)
    if self.model.scan_layers:
      return stacked
    return unstack_layers(model.config, stacked, _layer_sharding)

  def num_compiled_programs(self) -> int:
    """Returns how many programs have been compiled so far."""
    programs: list[Any] = [self.prefill, self.decode]
    return sum(program._cache_size() for program in programs)

  def run(self, params, requests: Sequence[Request]) -> list[Completion]:
    """Completes all requests; returns their completions in the same order.

    Raises:
      UserError: a request cannot be served; see `validate`.
    """
    session = self.session(params)
    completions = [session.submit(request) for request in requests]
    for _ in session:
      pass
    return completions

  def speculative_metrics(
    self, completions: Sequence[Completion]
  ) -> dict[str, float]:
    """Returns assemble.speculative_metrics, and whether there are drafts at all.

    It is empty unless `speculative` is set. `speculative_enabled` is 0 where
    the sizes turn speculation off, and otherwise 1.
    """
    if not self.config.speculative:
      return {}
    return assemble.speculative_metrics(completions) | {
      'speculative_enabled': float(self.programs.speculative)
    }

  def session(self, params, policy_version: int = 0) -> Session:
    """Opens a session with an empty cache for these parameters.

    A cache never survives a change of the parameters.
    """
    return Session(self, self.prepare_params(params), policy_version)

  def prepare_params(self, params):
    """Returns the parameters in the decoding layout and the compute dtype.

    Parameters that already are as the programs take them, such as those that
    an earlier call returned, are not copied.
    """
    target = jax.eval_shape(self._decoding_params, params)
    structure: Any = jax.tree.structure(self._shardings)
    if structure == jax.tree.structure(params) and all(
      x.dtype == like.dtype
      and isinstance(x, jax.Array)
      and x.sharding.is_equivalent_to(sharding, x.ndim)
      for x, like, sharding in zip(
        *map(jax.tree.leaves, (params, target, self._shardings))
      )
    ):
      return params
    return self._relayout(params)

  def _decoding_params(self, params):
    params = cast_to_compute(self.model.config, params)
    if self.model.scan_layers:
      return params
    return unstack_layers(self.model.config, params)

  def generate(
    self,
    params,
    prompts: PromptBatch,
    group_size: int,
    sampling_params: SamplingParams,
    key: jax.Array,
  ) -> Rollout:
    """Completes every prompt `group_size` times.

    Args:
      params: Parameters in any layout.
      prompts: P prompts.
      group_size: G.
      sampling_params: Sampling parameters of all completions.
      key: PRNG key of this step; see assemble.sample_keys.

    Returns:
      A Rollout of B = P · G rows, on the host.
    """
    requests = assemble.build_requests(
      prompts, group_size, sampling_params, key
    )
    return assemble.build_rollout(
      prompts,
      group_size,
      self.run(params, requests),
      width=sampling_params.max_new_tokens,
    )

  def validate(self, request: Request):
    """Checks that a request can be served.

    Raises:
      UserError: it cannot; the message names the request.
    """

    def need(ok, message):
      if not ok:
        raise UserError(f'request {request.name}: {message}')

    params, num_prompt = request.sampling_params, len(request.prompt)
    budget = params.max_completion_tokens(num_prompt)
    need(num_prompt, 'the prompt is empty')
    need(
      budget >= 1,
      f'prompt of {num_prompt} leaves nothing of max_total_tokens = '
      f'{params.max_total_tokens}',
    )
    need(
      num_prompt + budget <= self.config.max_model_len,
      f'prompt of {num_prompt} and max_new_tokens of {budget} exceed '
      f'max_model_len = {self.config.max_model_len}',
    )
    need(
      np.shape(request.key) == (2,),
      f'its key has shape {np.shape(request.key)}; a raw key is uint32 [2]',
    )
    need(
      self.detokenize or not params.stop_strings,
      'stop strings need a tokenizer',
    )
    V = self.model.config.vocab_size
    need(
      0 <= request.prompt.min() and request.prompt.max() < V,
      f'the prompt has a token outside of the vocabulary of {V}',
    )
    try:
      params.validate(V)
    except UserError as error:
      raise UserError(f'request {request.name}: {error}') from error

  @property
  def prefill_shape(self) -> tuple[int, int]:
    """Rows of a shard, and columns, of a prefill call."""
    columns = min(_PREFILL_COLUMNS, self.config.max_model_len)
    tokens_per_row = columns * self.num_shards
    rows = max(1, self.config.max_num_batched_tokens // tokens_per_row)
    return rows, columns

  def new_kv_cache(self):
    """Returns an empty block pool for each stack of layers, on the mesh."""
    return self._init_kv_cache()

  def _output_shardings(self):
    """The KV cache stays where it is; other outputs go to every device."""
    return self._kv_cache_shardings(), self.layout.replicated()

  def _empty_kv_cache(self):
    return self.programs.init_kv_cache(self.num_blocks * self.num_shards)

  def _kv_cache_shardings(self):
    return jax.tree.map(
      lambda x: NamedSharding(self.layout.mesh, _kv_cache_spec(self.layout, x)),
      jax.eval_shape(self._empty_kv_cache),
    )


def memory_per_device(
  model: Transformer, layout: Layout, config: EngineConfig
) -> dict[str, int]:
  """Returns the bytes that sampling needs on one device, by purpose.

  They count the trained weights, the copy of them that is sampled from where
  the two differ, and the KV cache. Training has the optimizer's moments and
  the reference policy beside them.

  Args:
    model: The model that is sampled from.
    layout: Its training layout; the mesh may be abstract.
    config: Sizes.
  """
  decoding = layout.decoding()
  boxes = traverse_util.flatten_dict(parameter_shapes(model))

  def weight_bytes(layout: Layout, itemsize: Callable[[str], int]) -> int:
    return sum(
      itemsize(path[-1])
      * math.prod(box.value.shape)
      // layout.weight_parts(box.names)
      for path, box in boxes.items()
    )

  # The decoding layout drops axes of the training one and adds none.
  shared = (
    model.config.compute_dtype == jnp.float32
    and not _should_unroll(model)
    and all(
      layout.weight_parts(box.names) == decoding.weight_parts(box.names)
      for box in boxes.values()
    )
  )
  num_shards = decoding.size('B')
  num_blocks = config.num_blocks(num_shards) * num_shards
  programs = _programs(model, config, record_routing=False)
  kv_cache = jax.eval_shape(lambda: programs.init_kv_cache(num_blocks))
  dtype = model.config.compute_dtype
  return {
    'weights as trained, float32': weight_bytes(layout, lambda name: 4),
    f'weights as sampled, {dtype}': 0
    if shared
    else weight_bytes(
      decoding, lambda name: param_compute_dtype(model.config, name).itemsize
    ),
    'cache': sum(
      math.prod(x.shape)
      * x.dtype.itemsize
      // decoding.parts(_kv_cache_spec(decoding, x))
      for x in jax.tree.leaves(kv_cache)
    ),
  }


def _programs(
  model: Transformer, config: EngineConfig, record_routing: bool
) -> Programs:
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


def _kv_cache_spec(layout: Layout, x) -> PartitionSpec:
  """Returns the partition of one array of the KV cache."""
  return layout.fitting_spec(x.shape, {2: 'Y_', 5: 'LYKSX'}[x.ndim])


_PREFILL_COLUMNS = 64  # Tokens of one row that a prefill call computes.
_MAX_UNROLLED_LAYERS = (
  8  # At most so many layers are unrolled: each is compiled.
)


def _should_unroll(model: Transformer) -> bool:
  """Whether layers are unrolled instead of scanned.

  It pays on a CPU, which multiplies only what it has first copied out of a
  stack of layers, and where layers are few. It costs a second copy of the
  parameters.
  """
  return (
    model.layout.platform == 'cpu'
    and model.config.num_hidden_layers <= _MAX_UNROLLED_LAYERS
  )


def _layer_sharding(sharding: NamedSharding, layer: int) -> NamedSharding:
  """Returns a layer's sharding, given its stack's; L is never split."""
  del layer
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _check_memory(layout: Layout, required: dict[str, int]):
  """Raises UserError where one device cannot hold what sampling needs."""
  devices = layout.mesh.local_devices
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
