"""The engine's programs with abstract arguments, to compile them ahead."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model import cache
from r1jax.rollout import sampling, speculative
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingParams


class Call(NamedTuple):
  """One call of a jitted program.

  Attributes:
    function: The jitted function.
    arguments: Its arguments, as ShapeDtypeStructs or small NumPy arrays.
    keywords: Its static arguments.
    tokens: The tokens that all devices together compute; of a decode call with
      speculation, without drafts.
  """

  function: Any
  arguments: tuple[Any, ...]
  keywords: dict[str, Any]
  tokens: int


def sampled_params(engine: Engine, params) -> Any:
  """Returns the parameters to sample with, as ShapeDtypeStructs.

  Args:
    engine: The engine.
    params: The trained parameters, as shapes and dtypes.
  """
  shapes = jax.eval_shape(engine.relayout, params)
  shardings = engine.param_shardings
  return jax.tree.map(_laid_out, shapes, shardings)


def kv_cache(engine: Engine) -> Any:
  """Returns the block pools as ShapeDtypeStructs."""
  shapes = jax.eval_shape(engine.new_kv_cache)
  return jax.tree.map(_laid_out, shapes, engine.kv_cache_formats())


def prefill(engine: Engine, params) -> Call:
  """Returns a call of the widest prefill program.

  Args:
    engine: The engine.
    params: The parameters that `sampled_params` returned.
  """
  rows, columns = engine.prefill_shape
  B = rows * engine.num_shards
  arguments = (
    params,
    kv_cache(engine),
    _block_tables(engine, B),
    _ids(B, columns),
    _ids(B),
  )
  return Call(engine.prefill, arguments, {}, B * columns)


def decode(engine: Engine, params, sampling_params: SamplingParams) -> Call:
  """Returns a call of the widest decode program.

  Args:
    engine: The engine.
    params: The parameters that `sampled_params` returned.
    sampling_params: How all sequences are sampled.
  """
  B = engine.max_num_seqs * engine.num_shards
  V = engine.model.config.vocab_size
  features = sampling.required_features([sampling_params])
  metadata = sampling.build_metadata(
    [sampling_params] * B,
    np.zeros((B, 2), np.uint32),
    np.zeros(B, np.int32),
    np.ones(B, np.int32),
    features,
    V,
    [np.zeros(0, int)] * B if features.penalty else None,
  )
  arguments = (
    params,
    kv_cache(engine),
    _block_tables(engine, B),
    metadata,
    _ids(B),
    speculative.build_control([()] * B, engine.programs.max_drafts),
  )
  keywords = dict(num_top_logprobs=min(features.num_top_logprobs, V))
  return Call(
    engine.decode, arguments, keywords, B * engine.config.decode_steps
  )


def _block_tables(engine: Engine, B: int) -> cache.BlockTables:
  W = engine.max_blocks_per_seq
  return cache.BlockTables(
    block_id_BW=_ids(B, W), num_tokens_BW=_ids(B, W), next_slot_B=_ids(B)
  )


def _ids(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _laid_out(x, sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
