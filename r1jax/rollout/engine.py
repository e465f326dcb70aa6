"""The rollout engine: completes requests, decoding on the device in chunks.

Two programs serve requests of all lengths: prefill, and a chunk of decode
steps (see programs.py). Between two calls the host assigns sequences and cache
blocks (see scheduler.py). Where fewer sequences run, a narrower copy of the
same program is used: a sequence is nothing but a list of blocks, so moving it
to another row of the batch costs nothing.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from r1jax import processes
from r1jax.errors import UserError
from r1jax.model import int8_weights
from r1jax.model.parameters import (
  cast_to_compute,
  parameter_shapes,
  parameter_shardings,
  unstack_layers,
)
from r1jax.model.transformer import Transformer
from r1jax.records import PromptBatch, Rollout
from r1jax.rollout import assemble, hosts, replicas, saved_completions, sizes
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request
from r1jax.rollout.session import Session
from r1jax.rollout.sizes import EngineConfig
from r1jax.sharding import Layout


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
    layout: The decoding layout of this process's replica.
    replicas: The copies of the policy that share the work.
    by_host: Whether each host, or each few hosts, has a copy of its own.
    num_shards: Shards of the batch on the mesh; each has its own block pool.
    max_num_seqs: Sequences of one shard that decode at once.
    max_blocks_per_seq: W, see EngineConfig.
    num_blocks: Blocks of one shard's pool.
    model: The model in its decoding layout.
    programs: The functions that are compiled.
    prefill, decode: The jitted programs; the KV cache is donated.
    relayout: The jitted program that makes the parameters to sample with.
    param_shardings: How these parameters lie on the mesh.
  """

  def __init__(
    self,
    model: Transformer,
    config: EngineConfig,
    record_routing: bool = False,
    detokenize: Callable[[Sequence[int]], str] | None = None,
    check_memory: bool = True,
  ):
    """Builds the programs; they are compiled when they are first called.

    Args:
      model: The model in its training layout.
      config: Sizes.
      record_routing: Whether completions record the experts of their tokens.
      detokenize: Function from token ids to text; stop strings need it.
      check_memory: Whether the devices are there, and are asked for their
        memory.

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
    self.replicas = replicas.divide(model.layout, config)
    self.by_host = config.scope == 'host'
    self.layout = layout = self.replicas.layout
    config = config.of_one_replica(len(self.replicas.layouts))
    self.num_shards = layout.size('B')
    self.max_num_seqs = -(-config.max_num_seqs // self.num_shards)
    self.max_blocks_per_seq = config.max_blocks_per_seq
    self.num_blocks = config.num_blocks(self.num_shards)
    if check_memory:
      required = sizes.memory_per_device(
        model, model.layout, config, layout, self.replicas.apart
      )
      sizes.check_memory(layout, required)
    # The model that samples has no capacity, so no (token, expert) pair is
    # dropped, and a sample does not depend on the others in its batch.
    self.model = model.clone(
      layout=layout,
      scan_layers=not sizes.should_unroll(model),
      config=dataclasses.replace(model.config, capacity_factor=0.0),
    )
    self.programs = sizes.programs(self.model, config, record_routing)
    self._trained = model
    self.param_shardings = self._decoding_shardings(model, layout)
    self._compile_later()

  def _compile_later(self):
    """Makes the jitted programs, which are compiled by their first calls."""
    # Copies for other meshes are made where the weights are, and then sent.
    self.relayout = jax.jit(
      self._decoding_params,
      out_shardings=self._decoding_shardings(
        self._trained, self._trained.layout.decoding()
      )
      if self.replicas.are_copies
      else self.param_shardings,
    )
    self._init_kv_cache = jax.jit(
      self._empty_kv_cache, out_shardings=self.kv_cache_formats()
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

  def _decoding_shardings(self, model: Transformer, layout: Layout):
    """Returns the shardings of decoding parameters, as their layers lie."""
    stacked = parameter_shardings(model, layout)
    if self.config.weights_int8:
      stacked = int8_weights.shardings(stacked, parameter_shapes(model))
    if self.model.scan_layers:
      return stacked
    return unstack_layers(model.config, stacked, _layer_sharding)

  def num_compiled_programs(self) -> int:
    """Returns how many programs have been compiled so far."""
    programs: list[Any] = [self.prefill, self.decode]
    return sum(program._cache_size() for program in programs)

  def run(self, params, requests: Sequence[Request]) -> list[Completion]:
    """Completes all requests; returns their completions in the same order.

    If replicas share the work, each completes an equal part of the requests,
    side by side since neighbours share prompts, and all are told the others.

    Raises:
      UserError: a request cannot be served; see `validate`.
    """
    session = self.session(params)
    completions = [Completion(request) for request in requests]
    own = range(len(requests))
    if self.shares_work:
      count, here = len(self.replicas.layouts), self.replicas.own
      own = range(0)
      if here is not None:
        first, end = (len(requests) * i // count for i in (here, here + 1))
        own = range(first, end)
    for i in own:
      session.submit(requests[i], completions[i])
    for _ in session:
      pass
    if self.shares_work:
      told = hosts.tell_all(
        {i: saved_completions.to_json(completions[i]) for i in own}
        if self.replicas.leads
        else {}
      )
      for i, saved in told.items():
        saved_completions.restore(completions[i], saved)
    return completions

  @property
  def shares_work(self) -> bool:
    """Whether other processes complete a part of the requests."""
    return processes.several() and not self.replicas.in_lockstep

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
    if self._is_prepared(params):
      return params
    if not self.replicas.are_copies:
      return self.relayout(params)
    if self._trained.layout.is_local:
      sampled = self.relayout(params)
    else:
      sampled = jax.eval_shape(self._decoding_params, params)
    return replicas.send(sampled, self.param_shardings, self.replicas)

  def _is_prepared(self, params) -> bool:
    """Whether parameters are as the programs take them."""
    structure: Any = jax.tree.structure(self.param_shardings)
    if structure != jax.tree.structure(params):
      return False
    # Only prepared parameters have weights in 8 bits.
    target = (
      params
      if self.config.weights_int8
      else jax.eval_shape(self._decoding_params, params)
    )
    return all(
      x.dtype == like.dtype
      and isinstance(x, jax.Array)
      and x.sharding.is_equivalent_to(sharding, x.ndim)
      for x, like, sharding in zip(
        *map(jax.tree.leaves, (params, target, self.param_shardings))
      )
    )

  def _decoding_params(self, params):
    if self.config.weights_int8:
      params = int8_weights.quantized(
        params, parameter_shapes(self._trained), self._trained.layout.decoding()
      )
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
    return self.kv_cache_formats(), self.layout.replicated()

  def _empty_kv_cache(self):
    return self.programs.init_kv_cache(self.num_blocks * self.num_shards)

  def kv_cache_formats(self):
    """Returns how the block pools lie on the devices, as new_kv_cache's."""
    return jax.tree.map(
      lambda x: sizes.kv_cache_format(self.layout, x),
      jax.eval_shape(self._empty_kv_cache),
    )


_PREFILL_COLUMNS = 64  # Tokens of one row that a prefill call computes.


def _layer_sharding(sharding: NamedSharding, layer: int) -> NamedSharding:
  """Returns a layer's sharding, given its stack's; L is never split."""
  del layer
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
