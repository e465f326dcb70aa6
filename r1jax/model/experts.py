"""SwiGLU of every token's experts: pairs sorted by expert, group by group.

A pair is a token and one of its A experts: pair p belongs to token p // A.
XLA's ragged_dot is a fused kernel on TPU, but on CPU it multiplies every row
with every expert. There a loop walks over blocks of pairs that share an
expert; it ends at the last block that holds any, and all that a block needs
stays in a processor's cache. Both give the same numbers.

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


def swiglu(x_RD, expert_RA, share_RA, weights, dispatch: str,
           fp8: bool, units: Layout | None = None) -> jax.Array:
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
  where = plan(pair_expert, weights[0].shape[0],
               smallest=16 if units else 2)  # What an FP8 unit takes.
  return _blocks(x_RD, pair_share, weights, where, fp8, units)


def _ragged(x_RD, pair_expert, pair_share, weights, fp8: bool):
  gate_EDI, up_EDI, down_EID = weights
  R, pairs, E = x_RD.shape[0], pair_expert.shape[0], gate_EDI.shape[0]
  order = jnp.argsort(pair_expert, stable=True)
  size_E = jnp.bincount(pair_expert, length=E).astype(jnp.int32)
  # Rows of no group come last. What a product makes of them is undefined.
  grouped = jnp.arange(pairs) < size_E.sum()
  only = lambda x: jnp.where(jnp.expand_dims(grouped, range(1, x.ndim)), x, 0)

  def times(x_SD, w_EDF):
    if fp8:
      return quant.product(jax.lax.ragged_dot, None, x_SD, w_EDF, size_E)
    return jax.lax.ragged_dot(x_SD, w_EDF, size_E)

  x_SD = only(x_RD[order // (pairs // R)])
  hidden_SI = _activate(times(x_SD, gate_EDI), times(x_SD, up_EDI),
                        only(pair_share[order])[:, None])
  rank = jnp.zeros(pairs, jnp.int32).at[order].set(
      jnp.arange(pairs, dtype=jnp.int32))
  return _sum_of_pairs(only(times(hidden_SI, down_EID))[rank], R)


class Blocks(NamedTuple):
  """Slots sorted by expert, each expert's padded up to whole blocks.

  Attributes:
    pair_S: The pair in each slot; one beyond the last where there is none.
    slot_of_pair: Its reverse; one beyond the last for a pair of no expert.
    expert_W: The expert of each block.
    used: How many blocks hold pairs; they come first.
  """

  pair_S: jax.Array
  slot_of_pair: jax.Array
  expert_W: jax.Array
  used: jax.Array


def plan(pair_expert, experts: int, smallest: int) -> Blocks:
  """Sorts pairs by expert; those of expert E have no slot."""
  pairs, E = pair_expert.shape[0], experts
  block = block_slots(pairs, E, smallest)
  order = jnp.argsort(pair_expert, stable=True).astype(jnp.int32)
  size_E = jnp.bincount(pair_expert, length=E).astype(jnp.int32)
  blocks_E = -(-size_E // block)
  W = -(-pairs // block) + E  # Each expert pads less than one block.
  expert_W = jnp.repeat(
      jnp.arange(E, dtype=jnp.int32), blocks_E, total_repeat_length=W)
  starts = lambda size: jnp.cumsum(size) - size
  shift_E = starts(blocks_E) * block - starts(size_E)
  rank = jnp.arange(pairs, dtype=jnp.int32)
  slot_of_rank = jnp.where(
      rank < size_E.sum(),
      rank + jnp.repeat(shift_E, size_E, total_repeat_length=pairs), W * block)
  return Blocks(
      pair_S=jnp.full(W * block, pairs, jnp.int32).at[slot_of_rank].set(
          order, mode='drop'),
      slot_of_pair=jnp.zeros(pairs, jnp.int32).at[order].set(slot_of_rank),
      expert_W=expert_W, used=blocks_E.sum())


def block_slots(pairs: int, experts: int, smallest: int) -> int:
  """A power of two: an expert's fair share of pairs where they are few, so
  that the loop does little but read weights; near half of it beyond 32, so
  that few slots are empty; 128 at most."""
  share = pairs // experts
  wanted = max(min(share, 16), share // 2, smallest)
  return min(128, 1 << (wanted.bit_length() - 1))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blocks(x_RD, pair_share, weights, where: Blocks, fp8: bool,
            units: Layout | None):
  return _blocks_forward(x_RD, pair_share, weights, where, fp8, units)[0]


def _blocks_forward(x_RD, pair_share, weights, where: Blocks, fp8: bool,
                    units: Layout | None):
  gate_EDI, up_EDI, down_EID = weights
  slots, A = where.pair_S.shape[0], _per_token(x_RD, where)
  D, I = gate_EDI.shape[1:]
  times = partial(_times, fp8=fp8, units=units)

  def one(block):
    w, gate_SI, up_SI, out_SD = block
    e, pair = where.expert_W[w], _block(where.pair_S, w, where)
    x, share = _gather(x_RD, pair // A), _gather(pair_share, pair)
    gate, up = times(x, gate_EDI[e]), times(x, up_EDI[e])
    out = times(_activate(gate, up, share[:, None]), down_EID[e])
    return (w + 1, _put(gate_SI, gate, w), _put(up_SI, up, w),
            _put(out_SD, out, w))

  empty = lambda width: jnp.zeros((slots, width), x_RD.dtype)
  _, gate_SI, up_SI, out_SD = jax.lax.while_loop(
      lambda block: block[0] < where.used, one,
      (jnp.int32(0), empty(I), empty(I), empty(D)))
  y_RD = _sum_of_pairs(_gather(out_SD, where.slot_of_pair), x_RD.shape[0])
  return y_RD, (x_RD, pair_share, weights, where, gate_SI, up_SI)


def _blocks_backward(fp8: bool, units: Layout | None, kept, dy_RD):
  x_RD, pair_share, weights, where, gate_SI, up_SI = kept
  gate_EDI, up_EDI, down_EID = weights
  A = _per_token(x_RD, where)

  def gradients(x, w, dy):  # Of their product, which is not made again.
    return jax.vjp(partial(_times, fp8=fp8, units=units), x, w)[1](dy)

  def one(block):
    w, dx_SD, d_share_S, d_gate_EDI, d_up_EDI, d_down_EID = block
    e, pair = where.expert_W[w], _block(where.pair_S, w, where)
    x, dy, share = (_gather(x_RD, pair // A), _gather(dy_RD, pair // A),
                    _gather(pair_share, pair))
    hidden, activation = jax.vjp(
        _activate, _block(gate_SI, w, where), _block(up_SI, w, where),
        share[:, None])
    d_hidden, d_down = gradients(hidden, down_EID[e], dy)
    d_gate_out, d_up_out, d_share = activation(d_hidden)
    dx_of_gate, d_gate = gradients(x, gate_EDI[e], d_gate_out)
    dx_of_up, d_up = gradients(x, up_EDI[e], d_up_out)
    return (w + 1, _put(dx_SD, dx_of_gate + dx_of_up, w),
            _put(d_share_S, d_share[:, 0], w), d_gate_EDI.at[e].add(d_gate),
            d_up_EDI.at[e].add(d_up), d_down_EID.at[e].add(d_down))

  empty = lambda like: jnp.zeros(like.shape, quant.wide(like.dtype))
  slots = where.pair_S.shape[0]
  _, dx_SD, d_share_S, *d_weights = jax.lax.while_loop(
      lambda block: block[0] < where.used, one,
      (jnp.int32(0), jnp.zeros((slots, x_RD.shape[1]), x_RD.dtype),
       jnp.zeros(slots, pair_share.dtype), *map(empty, weights)))
  return (_sum_of_pairs(_gather(dx_SD, where.slot_of_pair), x_RD.shape[0]),
          _gather(d_share_S, where.slot_of_pair),
          tuple(d.astype(w.dtype) for d, w in zip(d_weights, weights)), None)


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _per_token(x_RD, where: Blocks) -> int:
  return where.slot_of_pair.shape[0] // x_RD.shape[0]


def _block(x_S, w, where: Blocks):
  """The slots of block w."""
  size = where.pair_S.shape[0] // where.expert_W.shape[0]
  return jax.lax.dynamic_slice_in_dim(x_S, w * size, size)


def _put(x_S, part, w):
  return jax.lax.dynamic_update_slice_in_dim(
      x_S, part.astype(x_S.dtype), w * part.shape[0], 0)


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
