"""The paged KV cache on the device, and attention to it.

The cache of a stack of layers is a pool of blocks of S tokens each. A sequence
lists its blocks in a block table, with the number of tokens in each; sequences
that share a prefix list the same blocks. During one call of a prefill or decode
program the pool is read only: the entries of the call's own tokens are
collected in columns, a KVCache with one block per sequence that is as long as
the call. At its end `flush` appends the columns that are kept to the sequences'
last blocks, so that a call writes to the pool once. An entry is quantized to
int8 as soon as it is written to a column, so it is the same for every token
that attends to it.

A token's entry is X numbers for each of K key-value heads. MLA has one such
head: its key is the latent with the rotated part, its value the latent again.
"""

from collections.abc import Callable
import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.model import int8, quant
from r1jax.model.blocked import NEG_INF
from r1jax.records import Array
from r1jax.sharding import Layout

# Bounds on the tokens per sequence that one iteration of attention reads.
_MIN_STRIDE_TOKENS, _MAX_STRIDE_TOKENS = 64, 256
# Most sequences per iteration on CPU, so that their blocks fit its cache.
_MAX_CPU_ROWS = 16


@chex.dataclass(frozen=True)
class KVCache:
  """The cache entries of one stack of layers: a block pool, or columns.

  Attributes:
    entry_LYKSX: The entries, in the model's dtype or int8.
    scale_LYKS2: float32 scales of an int8 entry's two parts; else None.
    hidden_YD: The model's hidden state at the last token of each block, only in
      the pool of an MTP module, which joins it with the token after; else None.
  """

  entry_LYKSX: Array
  scale_LYKS2: Array
  hidden_YD: Array | None = None


@chex.dataclass(frozen=True)
class BlockTables:
  """The positions of B sequences in a block pool.

  On a mesh each shard of the batch has its own shard of the pool, in which
  blocks are numbered from 0.

  Attributes:
    block_id_BW: int32, the blocks of each sequence in order, unused ones last.
    num_tokens_BW: int32, tokens in each block; 0 for a block without any yet.
    next_slot_B: int32, where the sequence's next token goes: w · S + its slot
      in block w.
  """

  block_id_BW: Array
  num_tokens_BW: Array
  next_slot_B: Array


@chex.dataclass(frozen=True)
class View:
  """The part of the cache that the attention of one layer reads.

  Attributes:
    pool: The block pool of the layer's stack.
    layer: Index of the layer in the stack.
    block_tables: Positions of the sequences in the pool.
    columns_BKSX: The entries of this call, including those of the new tokens.
    see_BTS: bool, the columns that each new token attends to, at least one.
    skip: Number of first tokens of each sequence that are masked in the pool.
  """

  pool: KVCache
  layer: jax.Array
  block_tables: BlockTables
  columns_BKSX: jax.Array
  see_BTS: jax.Array
  skip: int = 0


def init(
  layers: int,
  num_blocks: int,
  heads: int,
  block_size: int,
  parts: tuple[int, int],
  dtype,
  quantized: bool,
) -> KVCache:
  """Creates an empty cache.

  Args:
    layers: L.
    num_blocks: Y.
    heads: K.
    block_size: S, tokens per block.
    parts: Widths of the two parts of an entry; see ModelConfig.cache_parts.
    dtype: Dtype of the entries unless quantized.
    quantized: Whether entries are int8, each part with its own scale.
  """
  shape = layers, num_blocks, heads, block_size
  if not quantized:
    return KVCache(
      entry_LYKSX=jnp.zeros((*shape, sum(parts)), dtype), scale_LYKS2=None
    )
  return KVCache(
    entry_LYKSX=jnp.zeros((*shape, sum(parts)), jnp.int8),
    scale_LYKS2=jnp.zeros((*shape, 2), jnp.float32),
  )


def write(
  columns: KVCache, entry_BTKX, layer, column, parts: tuple[int, int]
) -> KVCache:
  """Writes the entries of T new tokens per sequence into columns.

  Args:
    columns: Columns of this call.
    entry_BTKX: The entries.
    layer: Index of the layer in its stack.
    column: The first of the T columns to write.
    parts: See `init`.
  """

  def update(x_LBKS_, new_BTK_):
    return jax.lax.dynamic_update_slice(
      x_LBKS_,
      new_BTK_.swapaxes(1, 2)[None].astype(x_LBKS_.dtype),
      (layer, 0, 0, column, 0),
    )

  if columns.scale_LYKS2 is None:
    return dataclasses.replace(
      columns, entry_LYKSX=update(columns.entry_LYKSX, entry_BTKX)
    )
  scale_BTK2, rounded_BTKX = int8.quantize(entry_BTKX, parts)
  return dataclasses.replace(
    columns,
    entry_LYKSX=update(columns.entry_LYKSX, rounded_BTKX),
    scale_LYKS2=update(columns.scale_LYKS2, scale_BTK2),
  )


def attend(
  q_BTKMX,
  view: View,
  split: Callable,
  parts: tuple[int, int],
  scale: float,
  layout: Layout,
  letters: str,
):
  """Attends from T new tokens per sequence to its blocks and to the columns.

  The softmax is accumulated over blocks in float32. On CPU the sequences are
  processed a few at a time, and each such iteration takes as long as its
  longest sequence needs, so sequences of similar length should be adjacent.

  Args:
    q_BTKMX: Queries; M of them share a key head.
    view: The cache that they attend to.
    split: Function from entries [..., X] to keys [..., X'] and values [..., U].
    parts: See `init`.
    scale: Factor on the scores.
    layout: The mesh and its sharding tables.
    letters: Sharding letters of q's dimensions.

  Returns:
    [B, T, K, M, U]
  """
  attend_rows = partial(
    _attend_rows,
    skip=view.skip,
    split=split,
    parts=parts,
    scale=scale,
    max_rows=_MAX_CPU_ROWS if layout.platform == 'cpu' else q_BTKMX.shape[0],
  )
  args = (
    q_BTKMX,
    dataclasses.replace(view.pool, hidden_YD=None),
    view.layer,
    view.block_tables,
    view.columns_BKSX,
    view.see_BTS,
  )
  if layout.mesh.size == 1:
    return attend_rows(*args)
  rows, _, heads, *_ = q_spec = layout.fitting_spec(q_BTKMX.shape, letters)
  return jax.shard_map(
    attend_rows,
    mesh=layout.mesh,
    in_specs=(
      q_spec,
      PartitionSpec(None, rows, heads),
      PartitionSpec(),
      PartitionSpec(rows),
      PartitionSpec(rows, heads),
      PartitionSpec(rows),
    ),
    out_specs=q_spec,
    check_vma=False,
  )(*args)


def _attend_rows(
  q_BTKMX, pool, layer, *by_row, skip, split, parts, scale, max_rows
):
  """Attends on one device, at most max_rows sequences at a time."""

  def attend_chunk(chunk):
    q_BTKMX, block_tables, columns_BKSX, see_BTS = chunk
    view = View(
      pool=pool,
      layer=layer,
      block_tables=block_tables,
      columns_BKSX=columns_BKSX,
      see_BTS=see_BTS,
      skip=skip,
    )
    return _attend(q_BTKMX, view, split, parts, scale)

  by_row, rows = (q_BTKMX, *by_row), q_BTKMX.shape[0]
  chunk_rows = max(n for n in range(1, max_rows + 1) if rows % n == 0)
  if chunk_rows == rows:
    return attend_chunk(by_row)
  mix = jax.lax.map(
    attend_chunk,
    jax.tree.map(lambda x: x.reshape(-1, chunk_rows, *x.shape[1:]), by_row),
  )
  return mix.reshape(rows, *mix.shape[2:])


def _attend(
  q_BTKMX, view: View, split: Callable, parts: tuple[int, int], scale: float
):
  B, T, K, M, _ = q_BTKMX.shape
  dtype, wide = q_BTKMX.dtype, quant.wide(q_BTKMX.dtype)
  q_BKrX = q_BTKMX.swapaxes(1, 2).reshape(B, K, T * M, -1)
  tables = view.block_tables
  S, W = view.pool.entry_LYKSX.shape[3], tables.block_id_BW.shape[1]
  stride = _stride_blocks(S, W)
  pad = ((0, 0), (0, -W % stride))
  block_id_BW, num_tokens_BW = (
    jnp.pad(x_BW, pad) for x_BW in (tables.block_id_BW, tables.num_tokens_BW)
  )

  def scores(key_BKSX, see_BrS):
    score = (
      jnp.einsum(
        'BKrX,BKSX->BKrS', q_BKrX, key_BKSX, preferred_element_type=wide
      )
      * scale
    )
    return jnp.where(see_BrS[:, None], score, NEG_INF)

  weighted_sum = partial(_weighted_sum, dtype=dtype, wide=wide)
  key, value = split(view.columns_BKSX)
  score = scores(key, jnp.repeat(view.see_BTS, M, axis=1))
  top = score.max(-1, keepdims=True)
  prob = jnp.exp(score - top)
  carry = top, prob.sum(-1, keepdims=True), weighted_sum(prob, value)

  def add_blocks(i, carry):
    top, total, mix = carry
    take = lambda x_BW: jax.lax.dynamic_slice_in_dim(
      x_BW, i * stride, stride, axis=1
    )
    block_id, num_tokens = take(block_id_BW), take(num_tokens_BW)
    entry_BWKSX = read(view.pool, (view.layer, block_id), parts, dtype)
    key, value = split(entry_BWKSX.swapaxes(1, 2).reshape(B, K, stride * S, -1))
    see = (jnp.arange(S) < num_tokens[..., None]).reshape(B, 1, stride * S)
    see &= i * stride * S + jnp.arange(stride * S) >= view.skip
    score = scores(key, see)
    higher = jnp.maximum(top, score.max(-1, keepdims=True))
    prob, decay = jnp.exp(score - higher), jnp.exp(top - higher)
    return (
      higher,
      total * decay + prob.sum(-1, keepdims=True),
      mix * decay + weighted_sum(prob, value),
    )

  used = jnp.max(jnp.sum(num_tokens_BW > 0, -1))
  with jax.named_scope(f'upto_{num_tokens_BW.shape[1] // stride}'):
    _, total, mix_BKrU = jax.lax.fori_loop(
      0, -(-used // stride), add_blocks, carry
    )
  mix_BKTMU = (mix_BKrU / total).astype(dtype).reshape(B, K, T, M, -1)
  return mix_BKTMU.swapaxes(1, 2)


def _weighted_sum(prob_BKrS, value_BKSU, dtype, wide):
  return jnp.einsum(
    'BKrS,BKSU->BKrU',
    prob_BKrS.astype(dtype),
    value_BKSU,
    preferred_element_type=wide,
  )


def _stride_blocks(block_size: int, table_blocks: int) -> int:
  """Returns the blocks of each sequence that one iteration of attention reads.

  They hold about 1/32 of the tokens of a full block table, so that long
  contexts take larger steps.
  """
  tokens = table_blocks * block_size // 32
  tokens = min(max(tokens, _MIN_STRIDE_TOKENS), _MAX_STRIDE_TOKENS)
  return max(1, min(tokens // block_size, table_blocks))


def read(cache: KVCache, index, parts: tuple[int, int], dtype) -> jax.Array:
  """Returns the entries at an index of [L, Y], dequantized to dtype."""
  entry = cache.entry_LYKSX[index]
  if cache.scale_LYKS2 is None:
    return entry
  return (entry * int8.repeat_scales(cache.scale_LYKS2[index], parts)).astype(
    dtype
  )


def flush(
  pool: KVCache,
  block_tables: BlockTables,
  columns: KVCache,
  kept_BS,
  layout: Layout,
  hidden_BSD=None,
) -> KVCache:
  """Appends the columns that are kept to the blocks of their sequences.

  Example, blocks of 4 tokens, a sequence with next_slot = 6 and kept =
  [1, 0, 1, 1]: columns 0, 2 and 3 go to slots 2 and 3 of its block 1 and slot 0
  of its block 2.

  Args:
    pool: The block pool.
    block_tables: Positions of the sequences in it.
    columns: The columns of this call.
    kept_BS: bool, the columns to append.
    layout: The mesh and its sharding tables.
    hidden_BSD: The model's hidden state at each column, if the pool keeps it.

  Returns:
    The updated pool.
  """
  args = pool, block_tables, columns, kept_BS, hidden_BSD
  if layout.mesh.size == 1:
    return _append(*args)
  batch = layout.fitting_spec(kept_BS.shape, 'B_')[0]
  heads = layout.fitting_spec(columns.entry_LYKSX.shape, 'LBKSX')[2]
  rows, entries = PartitionSpec(batch), PartitionSpec(None, batch, heads)
  pools = KVCache(entry_LYKSX=entries, scale_LYKS2=entries, hidden_YD=rows)
  return jax.shard_map(
    _append,
    mesh=layout.mesh,
    in_specs=(pools, rows, entries, rows, rows),
    out_specs=pools,
    check_vma=False,
  )(*args)


def _append(pool, tables, columns, kept_BS, hidden_BSD):
  S, Y = pool.entry_LYKSX.shape[3], pool.entry_LYKSX.shape[1]
  slot_BS = tables.next_slot_B[:, None] + jnp.cumsum(kept_BS, -1) - 1
  block_id_BS = jnp.take_along_axis(
    tables.block_id_BW, jnp.where(kept_BS, slot_BS // S, 0), 1
  )
  block_id_BS = jnp.where(kept_BS, block_id_BS, Y)  # Out of range: dropped.
  # Layers and heads are indices too: a scatter whose windows span them makes
  # the TPU's compiler copy the whole pool into another layout and back.
  L, _, K = pool.entry_LYKSX.shape[:3]
  index = (
    jnp.arange(L)[:, None, None, None],
    block_id_BS[:, None],
    jnp.arange(K)[:, None],
    (slot_BS % S)[:, None],
  )
  update = lambda old, new_LBKS_: old.at[index].set(new_LBKS_, mode='drop')
  if hidden_BSD is not None:
    last_BS = (slot_BS % S == S - 1) | (slot_BS == slot_BS[:, -1:])
    pool = dataclasses.replace(
      pool,
      hidden_YD=pool.hidden_YD.at[jnp.where(last_BS, block_id_BS, Y)].set(
        hidden_BSD, mode='drop'
      ),
    )
  return dataclasses.replace(
    pool,
    entry_LYKSX=update(pool.entry_LYKSX, columns.entry_LYKSX),
    scale_LYKS2=None
    if pool.scale_LYKS2 is None
    else update(pool.scale_LYKS2, columns.scale_LYKS2),
  )


def last_hidden(
  pool: KVCache, block_tables: BlockTables, layout: Layout
) -> jax.Array:
  """Returns the model's hidden state at each sequence's last cached token.

  It is read from the block pool of an MTP module, [B, D], and is arbitrary for
  a sequence without cached tokens.
  """

  def gather(hidden_YD, tables):
    last_B = jnp.maximum(jnp.sum(tables.num_tokens_BW > 0, -1) - 1, 0)
    return hidden_YD[
      jnp.take_along_axis(tables.block_id_BW, last_B[:, None], 1)[:, 0]
    ]

  args = pool.hidden_YD, block_tables
  if layout.mesh.size == 1:
    return gather(*args)
  batch = layout.fitting_spec(block_tables.block_id_BW.shape, 'B_')[0]
  rows = PartitionSpec(batch)
  return jax.shard_map(
    gather,
    mesh=layout.mesh,
    in_specs=(rows, rows),
    out_specs=rows,
    check_vma=False,
  )(*args)
