"""SwiGLU of every token's experts: pairs sorted by expert, group by group.

A pair is a token and one of its A experts: pair p belongs to token p // A.
XLA's ragged_dot is a fused kernel on TPU, but on CPU it multiplies every row
with every expert. There one loop walks over the experts that have pairs, and
one within it over blocks of each one's pairs: weights are brought near once,
and all that a block needs stays in a processor's cache. Both dispatches give
the same numbers.

In FP8 the blocks are what an FP8 unit multiplies: one expert's rows, and one
tile of them. XLA has no ragged_dot that promotes partial sums, nor a cheap one
of E4M3 numbers: 'ragged' simulates FP8 on every device. Tiles along tokens
are made of the pairs that meet on a device, in either case: the gradients of
experts' weights, in FP8 alone, depend on how many devices there are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model import quant
from r1jax.sharding import Layout


def swiglu(
  x_RD,
  expert_RA,
  share_RA,
  weights,
  dispatch: str,
  fp8: bool,
  units: Layout | None = None,
) -> jax.Array:
  """Σ_a share_a · down_e(silu(gate_e(x)) · up_e(x)), e the a-th expert.

  The share enters before the last product: its gradient is then a sum over I
  numbers, and no expert's output has to be kept for it.

  Args:
    x_RD: Tokens.
    expert_RA: int32; E stands for no expert, which adds nothing.
    share_RA: The gate weight of each of them.
    weights: gate [E, D, I], up [E, D, I], down [E, I, D].
    dispatch: 'ragged' or 'blocks'.
    fp8: Products in FP8.
    units: A mesh of this device, whose FP8 unit multiplies the blocks; None
      simulates.

  Returns:
    [R, D]
  """
  pair_expert = expert_RA.reshape(-1)
  pair_share = share_RA.reshape(-1).astype(x_RD.dtype)
  if dispatch == 'ragged':
    return _ragged(x_RD, pair_expert, pair_share, weights, fp8)
  where = plan(
    pair_expert, weights[0].shape[0], smallest=16 if units else 2
  )  # What an FP8 unit takes.
  return _blocks(x_RD, pair_share, weights, where, fp8, units)


def in_order(pair_expert, experts: int) -> jax.Array:
  """Pairs by expert, and those of one expert by number: int32, a permutation.

  Expert and number in one key sort several times as fast as two arrays do.

  Args:
    pair_expert: int32, of each pair; `experts` stands for none and comes last.
    experts: E.

  Raises:
    ValueError: (E + 1) · pairs is no 32-bit number.
  """
  pairs = pair_expert.shape[0]
  if (experts + 1) * pairs > 2**32:
    raise ValueError(
      f'{pairs} pairs of a token and one of {experts} experts '
      'on one device; use smaller batches'
    )
  number = jnp.arange(pairs, dtype=jnp.uint32)
  key = jax.lax.sort(
    pair_expert.astype(jnp.uint32) * pairs + number, is_stable=False
  )
  return (key % pairs).astype(jnp.int32)


def _ragged(x_RD, pair_expert, pair_share, weights, fp8: bool):
  gate_EDI, up_EDI, down_EID = weights
  R, pairs, E = x_RD.shape[0], pair_expert.shape[0], gate_EDI.shape[0]
  order = in_order(pair_expert, E)
  size_E = jnp.bincount(pair_expert, length=E).astype(jnp.int32)
  # Rows of no group come last. What a product makes of them is undefined.
  grouped = jnp.arange(pairs) < size_E.sum()
  only = lambda x: jnp.where(jnp.expand_dims(grouped, range(1, x.ndim)), x, 0)

  def times(x_SD, w_EDF):
    if fp8:
      return quant.product(jax.lax.ragged_dot, None, x_SD, w_EDF, size_E)
    return jax.lax.ragged_dot(x_SD, w_EDF, size_E)

  x_SD = only(x_RD[order // (pairs // R)])
  hidden_SI = _activate(
    times(x_SD, gate_EDI), times(x_SD, up_EDI), only(pair_share[order])[:, None]
  )
  rank = (
    jnp.zeros(pairs, jnp.int32)
    .at[order]
    .set(jnp.arange(pairs, dtype=jnp.int32))
  )
  return _sum_of_pairs(only(times(hidden_SI, down_EID))[rank], R)


class Blocks(NamedTuple):
  """Slots sorted by expert, each expert's padded up to whole blocks.

  Attributes:
    pair_S: The pair in each slot; one beyond the last where there is none.
    slot_of_pair: Its reverse; one beyond the last for a pair of no expert.
    expert_W: The expert of each block.
    end_E: The block after the last of each expert. Beyond the last of all no
      block holds a pair.
  """

  pair_S: jax.Array
  slot_of_pair: jax.Array
  expert_W: jax.Array
  end_E: jax.Array


def plan(pair_expert, experts: int, smallest: int) -> Blocks:
  """Sorts pairs by expert; those of expert E have no slot."""
  pairs, E = pair_expert.shape[0], experts
  block = block_slots(pairs, E, smallest)
  order = in_order(pair_expert, E)
  size_E = jnp.bincount(pair_expert, length=E).astype(jnp.int32)
  blocks_E = -(-size_E // block)
  W = -(-pairs // block) + E  # Each expert pads less than one block.
  expert_W = jnp.repeat(
    jnp.arange(E, dtype=jnp.int32), blocks_E, total_repeat_length=W
  )
  starts = lambda size: jnp.cumsum(size) - size
  shift_E = starts(blocks_E) * block - starts(size_E)
  rank = jnp.arange(pairs, dtype=jnp.int32)
  slot_of_rank = jnp.where(
    rank < size_E.sum(),
    rank + jnp.repeat(shift_E, size_E, total_repeat_length=pairs),
    W * block,
  )
  return Blocks(
    pair_S=jnp.full(W * block, pairs, jnp.int32)
    .at[slot_of_rank]
    .set(order, mode='drop'),
    slot_of_pair=jnp.zeros(pairs, jnp.int32).at[order].set(slot_of_rank),
    expert_W=expert_W,
    end_E=jnp.cumsum(blocks_E),
  )


def block_slots(pairs: int, experts: int, smallest: int) -> int:
  """A power of two: near a quarter of an expert's fair share of pairs, so that
  few slots are empty; that share itself up to 4, and 128 at most."""
  share = pairs // experts
  wanted = max(min(share, 4), share // 4, smallest)
  return min(128, 1 << (wanted.bit_length() - 1))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blocks(
  x_RD, pair_share, weights, where: Blocks, fp8: bool, units: Layout | None
):
  return _walk(x_RD, pair_share, weights, where, fp8, units, keep=False)[0]


def _blocks_forward(
  x_RD, pair_share, weights, where: Blocks, fp8: bool, units: Layout | None
):
  y_RD, kept = _walk(x_RD, pair_share, weights, where, fp8, units, keep=True)
  return y_RD, (x_RD, pair_share, weights, where, *kept)


def _walk(
  x_RD,
  pair_share,
  weights,
  where: Blocks,
  fp8: bool,
  units: Layout | None,
  keep: bool,
):
  """y_RD, and what gate and up made, [S, I] each, if that is to be kept."""
  slots, A = where.pair_S.shape[0], _per_token(x_RD, where)
  D, I = weights[0].shape[1:]
  times = partial(_times, fp8=fp8, units=units)

  def of_expert(e, its_blocks, made):
    gate_DI, up_DI, down_ID = (w_E[e] for w_E in weights)

    def one(w, made):
      pair = _block(where.pair_S, w, where)
      x, share = _gather(x_RD, pair // A), _gather(pair_share, pair)
      gate, up = times(x, gate_DI), times(x, up_DI)
      out = times(_activate(gate, up, share[:, None]), down_ID)
      parts = (out, gate, up) if keep else (out,)
      return tuple(_put(x_S, part, w) for x_S, part in zip(made, parts))

    return its_blocks(one, made)

  widths = (D, I, I) if keep else (D,)
  out_SD, *kept = _by_expert(
    of_expert,
    where,
    tuple(jnp.zeros((slots, width), x_RD.dtype) for width in widths),
  )
  y_RD = _sum_of_pairs(_gather(out_SD, where.slot_of_pair), x_RD.shape[0])
  return y_RD, kept


def _blocks_backward(fp8: bool, units: Layout | None, kept, dy_RD):
  x_RD, pair_share, weights, where, gate_SI, up_SI = kept
  A = _per_token(x_RD, where)

  def gradients(x, w, dy):  # Of their product, which is not made again.
    return jax.vjp(partial(_times, fp8=fp8, units=units), x, w)[1](dy)

  def of_expert(e, its_blocks, made):
    gate_DI, up_DI, down_ID = mine = [w_E[e] for w_E in weights]

    def one(w, made):
      dx_SD, d_share_S, d_gate_DI, d_up_DI, d_down_ID = made
      pair = _block(where.pair_S, w, where)
      x, dy, share = (
        _gather(x_RD, pair // A),
        _gather(dy_RD, pair // A),
        _gather(pair_share, pair),
      )
      hidden, activation = jax.vjp(
        _activate,
        _block(gate_SI, w, where),
        _block(up_SI, w, where),
        share[:, None],
      )
      d_hidden, d_down = gradients(hidden, down_ID, dy)
      d_gate_out, d_up_out, d_share = activation(d_hidden)
      dx_of_gate, d_gate = gradients(x, gate_DI, d_gate_out)
      dx_of_up, d_up = gradients(x, up_DI, d_up_out)
      return (
        _put(dx_SD, dx_of_gate + dx_of_up, w),
        _put(d_share_S, d_share[:, 0], w),
        d_gate_DI + d_gate,
        d_up_DI + d_up,
        d_down_ID + d_down,
      )

    *of_slots, d_weights = made
    *of_slots, d_gate_DI, d_up_DI, d_down_ID = its_blocks(
      one, (*of_slots, *map(empty, mine))
    )
    return *of_slots, [
      d_E.at[e].set(d)
      for d_E, d in zip(d_weights, (d_gate_DI, d_up_DI, d_down_ID))
    ]

  empty = lambda like: jnp.zeros(like.shape, quant.wide(like.dtype))
  slots = where.pair_S.shape[0]
  dx_SD, d_share_S, d_weights = _by_expert(
    of_expert,
    where,
    (
      jnp.zeros((slots, x_RD.shape[1]), x_RD.dtype),
      jnp.zeros(slots, pair_share.dtype),
      [*map(empty, weights)],
    ),
  )
  return (
    _sum_of_pairs(_gather(dx_SD, where.slot_of_pair), x_RD.shape[0]),
    _gather(d_share_S, where.slot_of_pair),
    tuple(d.astype(w.dtype) for d, w in zip(d_weights, weights)),
    None,
  )


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _by_expert(of_expert, where: Blocks, made):
  """Walks over the experts that have pairs, so that each one's weights are
  read once, and over the blocks of each.

  Args:
    of_expert: (e, its_blocks, made) → made, where its_blocks(one, kept) runs
      one(w, kept) → kept over the expert's blocks.
    where: The blocks.
    made: Arrays, before.
  """

  def turn(state):
    w, made = state
    e = where.expert_W[w]
    end = where.end_E[e]
    return end, of_expert(
      e, lambda one, kept: jax.lax.fori_loop(w, end, one, kept), made
    )

  return jax.lax.while_loop(
    lambda state: state[0] < where.end_E[-1], turn, (jnp.int32(0), made)
  )[1]


def _per_token(x_RD, where: Blocks) -> int:
  return where.slot_of_pair.shape[0] // x_RD.shape[0]


def _block(x_S, w, where: Blocks):
  """The slots of block w."""
  size = where.pair_S.shape[0] // where.expert_W.shape[0]
  return jax.lax.dynamic_slice_in_dim(x_S, w * size, size)


def _put(x_S, part, w):
  return jax.lax.dynamic_update_slice_in_dim(
    x_S, part.astype(x_S.dtype), w * part.shape[0], 0
  )


def _gather(x, rows):
  """Rows of x; zeros for a row beyond its last."""
  return x.at[rows].get(mode='fill', fill_value=0)


def _activate(gate, up, share):
  return jax.nn.silu(gate) * up * share


def _sum_of_pairs(x_PD, tokens: int):
  """[R·A, D] → [R, D]: a token's pairs lie side by side."""
  x_RAD = x_PD.reshape(tokens, -1, x_PD.shape[-1])
  return x_RAD.sum(1, dtype=quant.wide(x_PD.dtype)).astype(x_PD.dtype)


def _times(x, w, fp8: bool, units: Layout | None):
  return quant.product(jnp.matmul, units, x, w) if fp8 else x @ w
