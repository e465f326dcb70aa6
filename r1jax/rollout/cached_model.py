"""The model with its paged KV cache: what prefill and decode have in common."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model import cache
from r1jax.model.transformer import Transformer, first_mtp_module


class MTPInput(NamedTuple):
  """Tokens for the MTP module, each with the model's state one token before.

  Attributes:
    token_BT: int32.
    hidden_BTD: The model's hidden state at the token before each.
    live_BT: bool, tokens that count.
  """

  token_BT: jax.Array
  hidden_BTD: jax.Array
  live_BT: jax.Array


@dataclasses.dataclass(frozen=True)
class CachedModel:
  """A model, and the layout of its KV cache.

  The cache of a stack of layers is a pool of blocks. The entries of one call's
  own tokens are collected in columns beside the pool, one for each token, and
  written to the pool when the call ends.

  Attributes:
    model: The model in its decoding layout.
    block_size: S, tokens that a block has room for.
    kv_cache_int8: Whether cache entries are stored in 8 bits.
    record_routing: Whether the experts of each token are returned.
    speculative: Whether the first MTP module drafts tokens; it then has a
      cache too.
  """

  model: Transformer
  block_size: int
  kv_cache_int8: bool
  record_routing: bool
  speculative: bool

  def init_kv_cache(self, num_blocks: int) -> dict[str, cache.KVCache]:
    """Returns an empty pool of so many blocks for each stack of layers."""
    c = self.model.config
    pool = {
      stack: self.init_cache(stack, num_blocks, self.block_size)
      for stack in self._num_layers()
    }
    if self.speculative:
      pool['mtp'] = dataclasses.replace(
        pool['mtp'],
        hidden_YD=jnp.zeros((num_blocks, c.hidden_size), c.compute_dtype),
      )
    return pool

  def init_columns(self, num_rows: int, num_columns: int):
    """Returns empty columns for one call's tokens, for each stack of layers."""
    return {
      stack: self.init_cache(stack, num_rows, num_columns)
      for stack in self._num_layers()
    }

  def init_cache(
    self, stack: str, num_blocks: int, block_size: int
  ) -> cache.KVCache:
    """Returns empty blocks for one stack of layers."""
    c = self.model.config
    return cache.init(
      self._num_layers()[stack],
      num_blocks,
      c.cache_heads,
      block_size,
      c.cache_parts,
      c.compute_dtype,
      self.kv_cache_int8,
    )

  def _num_layers(self) -> dict[str, int]:
    """Number of layers of each stack that has a cache."""
    c = self.model.config
    stacks = {
      'dense_layers': c.first_k_dense_replace,
      'moe_layers': c.num_moe_layers,
      'mtp': int(self.speculative),
    }
    return {stack: layers for stack, layers in stacks.items() if layers}

  def apply(self, params, *args, method: str):
    """Calls a method of the model."""
    return self.model.apply({'params': params}, *args, method=method)

  def apply_mtp(
    self,
    params,
    kv_cache,
    block_tables: cache.BlockTables,
    inputs: MTPInput,
    position_BT,
    see_BTS,
    columns: cache.KVCache,
    column,
  ):
    """Runs the first MTP module on T tokens a row.

    Args:
      params: Parameters of the whole model.
      kv_cache: The KV cache of each stack, cache.KVCache.
      block_tables: Block tables of the rows, cache.BlockTables.
      inputs: Tokens and hidden states.
      position_BT: int32 positions; negative ones count as 0.
      see_BTS: bool, columns that each token attends to.
      columns: The module's columns of this call.
      column: Column of the first of the T tokens.

    Returns:
      Hidden states [B, T, D], and the columns with the new entries.
    """
    module, module_params = first_mtp_module(self.model, params)
    return module.apply(
      {'params': module_params},
      inputs.hidden_BTD,
      self.apply(params, inputs.token_BT, method='embed'),
      jnp.maximum(position_BT, 0),
      inputs.live_BT,
      see_BTS,
      columns,
      column,
      kv_cache['mtp'],
      block_tables,
      method='extend',
    )

  def flush(self, kv_cache, block_tables, columns, valid_BS, hidden_BSD):
    """Appends the valid columns of a call to the rows' blocks.

    Args:
      kv_cache: The KV cache of each stack, cache.KVCache.
      block_tables: Block tables of the rows, cache.BlockTables.
      columns: Entries of this call, by stack.
      valid_BS: bool, columns to append.
      hidden_BSD: The model's hidden state at each column, which the MTP
        module's pool keeps for each block's last token.
    """
    return {
      stack: cache.flush(
        kv_cache[stack],
        block_tables,
        columns[stack],
        valid_BS,
        self.model.layout,
        hidden_BSD if stack == 'mtp' else None,
      )
      for stack in kv_cache
    }


def num_cached(block_tables: cache.BlockTables) -> jax.Array:
  """Returns the number of tokens of each row that lie in blocks, int32 [B]."""
  return block_tables.num_tokens_BW.sum(-1)
