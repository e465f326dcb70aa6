"""The routed experts' SwiGLU on one device, over (token, expert) pairs.

A pair is a token and one of its A experts; pair p belongs to token p // A.
Pairs are sorted by expert and multiplied by one of two dispatches, which give
the same numbers:

  'ragged'  jax.lax.ragged_dot, a fused kernel on TPU. On CPU, XLA would
            multiply every row with every expert.
  'blocks'  A loop over the experts that have pairs, and within it over blocks
            of each expert's pairs. An expert's weights are read once, and all
            that a block needs fits a CPU's cache.

In FP8 an FP8 unit can multiply the blocks, since each belongs to one expert and
is one tile of rows. XLA has neither a ragged_dot that promotes partial sums nor
a cheap one of E4M3 numbers, so 'ragged' simulates FP8 on every device. In both
dispatches the tiles along tokens consist of the pairs on one device; therefore
the FP8 gradients of experts' weights depend on the number of devices.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model import quant
from r1jax.sharding import Layout


def swiglu(
  x_TD,
  expert_TA,
  gating_TA,
  weights,
  dispatch: str,
  fp8: bool,
  units: Layout | None = None,
) -> jax.Array:
  """Computes Σ_a g_a · down_e(silu(gate_e(x)) · up_e(x)), e the a-th expert.

  The gating weight g_a multiplies before the last product: its gradient is then
  a sum over I numbers, and no expert's output has to be stored for it.

  Args:
    x_TD: Hidden states of the device's tokens.
    expert_TA: int32, the experts of each token; E stands for no expert, which
      adds nothing.
    gating_TA: The gating weights g of these experts.
    weights: gate [E, D, I], up [E, D, I], down [E, I, D].
    dispatch: 'ragged' or 'blocks'.
    fp8: Whether products are in FP8.
    units: A layout of this device alone, whose FP8 unit multiplies the blocks;
      None simulates FP8.

  Returns:
    [T, D]
  """
  expert_p = expert_TA.reshape(-1)
  gating_p = gating_TA.reshape(-1).astype(x_TD.dtype)
  if dispatch == 'ragged':
    return _ragged(x_TD, expert_p, gating_p, weights, fp8)
  # An FP8 unit multiplies at least 16 rows.
  slots = assign_slots(
    expert_p, weights[0].shape[0], smallest=16 if units else 2
  )
  return _blocks(x_TD, gating_p, weights, slots, fp8, units)


def sorted_pairs(expert_p, experts: int) -> jax.Array:
  """Returns the int32 permutation that sorts pairs stably by expert.

  Sorting one key of expert and pair number is several times faster than sorting
  two arrays.

  Args:
    expert_p: int32, the expert of each pair; `experts` stands for none and
      comes last.
    experts: E.

  Raises:
    ValueError: (E + 1) · pairs exceeds 32 bits.
  """
  pairs = expert_p.shape[0]
  if (experts + 1) * pairs > 2**32:
    raise ValueError(
      f'{pairs} (token, expert) pairs of {experts} experts on one device '
      'are too many to sort; use smaller batches'
    )
  number = jnp.arange(pairs, dtype=jnp.uint32)
  key = jax.lax.sort(
    expert_p.astype(jnp.uint32) * pairs + number, is_stable=False
  )
  return (key % pairs).astype(jnp.int32)


def _ragged(x_TD, expert_p, gating_p, weights, fp8: bool):
  gate_EDI, up_EDI, down_EID = weights
  T, pairs, E = x_TD.shape[0], expert_p.shape[0], gate_EDI.shape[0]
  order = sorted_pairs(expert_p, E)
  size_E = jnp.bincount(expert_p, length=E).astype(jnp.int32)
  # Pairs of no expert come last, and ragged_dot leaves their rows undefined.
  grouped = jnp.arange(pairs) < size_E.sum()
  only = lambda x: jnp.where(jnp.expand_dims(grouped, range(1, x.ndim)), x, 0)

  def times(x_sD, w_EDF):
    if fp8:
      return quant.product(jax.lax.ragged_dot, None, x_sD, w_EDF, size_E)
    return jax.lax.ragged_dot(x_sD, w_EDF, size_E)

  x_sD = only(x_TD[order // (pairs // T)])
  hidden_sI = _activate(
    times(x_sD, gate_EDI), times(x_sD, up_EDI), only(gating_p[order])[:, None]
  )
  rank = (
    jnp.zeros(pairs, jnp.int32)
    .at[order]
    .set(jnp.arange(pairs, dtype=jnp.int32))
  )
  return _sum_of_pairs(only(times(hidden_sI, down_EID))[rank], T)


class Slots(NamedTuple):
  """Assignment of pairs to slots, sorted by expert and padded to whole blocks.

  Attributes:
    pair_s: int32, the pair in each slot; the number of pairs in an empty slot.
    slot_p: int32, the slot of each pair; the number of slots for a pair
      of no expert.
    expert_w: int32, the expert of each block.
    end_E: int32, the first block after those of each expert. Blocks from
      end_E[-1] on are empty.
  """

  pair_s: jax.Array
  slot_p: jax.Array
  expert_w: jax.Array
  end_E: jax.Array


def assign_slots(expert_p, experts: int, smallest: int) -> Slots:
  """Assigns pairs to slots; pairs of expert E (none) get no slot.

  Args:
    expert_p: int32, the expert of each pair.
    experts: E.
    smallest: Least number of slots per block.
  """
  pairs, E = expert_p.shape[0], experts
  block = slots_per_block(pairs, E, smallest)
  order = sorted_pairs(expert_p, E)
  size_E = jnp.bincount(expert_p, length=E).astype(jnp.int32)
  blocks_E = -(-size_E // block)
  num_blocks = -(-pairs // block) + E  # Each expert pads less than one block.
  expert_w = jnp.repeat(
    jnp.arange(E, dtype=jnp.int32), blocks_E, total_repeat_length=num_blocks
  )
  starts = lambda size: jnp.cumsum(size) - size
  shift_E = starts(blocks_E) * block - starts(size_E)
  rank = jnp.arange(pairs, dtype=jnp.int32)
  slot_of_rank = jnp.where(
    rank < size_E.sum(),
    rank + jnp.repeat(shift_E, size_E, total_repeat_length=pairs),
    num_blocks * block,
  )
  return Slots(
    pair_s=jnp.full(num_blocks * block, pairs, jnp.int32)
    .at[slot_of_rank]
    .set(order, mode='drop'),
    slot_p=jnp.zeros(pairs, jnp.int32).at[order].set(slot_of_rank),
    expert_w=expert_w,
    end_E=jnp.cumsum(blocks_E),
  )


def slots_per_block(pairs: int, experts: int, smallest: int) -> int:
  """Returns the number of slots per block, a power of two of at most 128.

  It is about a quarter of the mean number of pairs per expert, so that few
  slots are empty, but not below `smallest` nor below min(mean, 4).
  """
  mean_pairs = pairs // experts
  size = max(min(mean_pairs, 4), mean_pairs // 4, smallest)
  return min(128, 1 << (size.bit_length() - 1))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blocks(
  x_TD, gating_p, weights, slots: Slots, fp8: bool, units: Layout | None
):
  return _forward_blocks(
    x_TD, gating_p, weights, slots, fp8, units, keep=False
  )[0]


def _blocks_forward(
  x_TD, gating_p, weights, slots: Slots, fp8: bool, units: Layout | None
):
  y_TD, kept = _forward_blocks(
    x_TD, gating_p, weights, slots, fp8, units, keep=True
  )
  return y_TD, (x_TD, gating_p, weights, slots, *kept)


def _forward_blocks(
  x_TD,
  gating_p,
  weights,
  slots: Slots,
  fp8: bool,
  units: Layout | None,
  keep: bool,
):
  """Returns y_TD and, with keep, the outputs of gate and up, [s, I] each."""
  num_slots, A = slots.pair_s.shape[0], _per_token(x_TD, slots)
  D, I = weights[0].shape[1:]
  times = partial(_times, fp8=fp8, units=units)

  def of_expert(e, loop_blocks, carry):
    gate_DI, up_DI, down_ID = (w_E[e] for w_E in weights)

    def one(w, carry):
      pair = _block(slots.pair_s, w, slots)
      x, gating = _gather(x_TD, pair // A), _gather(gating_p, pair)
      gate, up = times(x, gate_DI), times(x, up_DI)
      out = times(_activate(gate, up, gating[:, None]), down_ID)
      parts = (out, gate, up) if keep else (out,)
      return tuple(_put(x_s, part, w) for x_s, part in zip(carry, parts))

    return loop_blocks(one, carry)

  widths = (D, I, I) if keep else (D,)
  out_sD, *kept = _by_expert(
    of_expert,
    slots,
    tuple(jnp.zeros((num_slots, width), x_TD.dtype) for width in widths),
  )
  y_TD = _sum_of_pairs(_gather(out_sD, slots.slot_p), x_TD.shape[0])
  return y_TD, kept


def _blocks_backward(fp8: bool, units: Layout | None, kept, dy_TD):
  x_TD, gating_p, weights, slots, gate_sI, up_sI = kept
  num_slots, A = slots.pair_s.shape[0], _per_token(x_TD, slots)

  gradients = partial(_product_gradients, fp8=fp8, units=units)

  def of_expert(e, loop_blocks, carry):
    gate_DI, up_DI, down_ID = mine = [w_E[e] for w_E in weights]

    def one(w, carry):
      dx_sD, d_gating_s, d_gate_DI, d_up_DI, d_down_ID = carry
      pair = _block(slots.pair_s, w, slots)
      x, dy, gating = (
        _gather(x_TD, pair // A),
        _gather(dy_TD, pair // A),
        _gather(gating_p, pair),
      )
      hidden, activation = jax.vjp(
        _activate,
        _block(gate_sI, w, slots),
        _block(up_sI, w, slots),
        gating[:, None],
      )
      d_hidden, d_down = gradients(hidden, down_ID, dy)
      d_gate_out, d_up_out, d_gating = activation(d_hidden)
      dx_of_gate, d_gate = gradients(x, gate_DI, d_gate_out)
      dx_of_up, d_up = gradients(x, up_DI, d_up_out)
      return (
        _put(dx_sD, dx_of_gate + dx_of_up, w),
        _put(d_gating_s, d_gating[:, 0], w),
        d_gate_DI + d_gate,
        d_up_DI + d_up,
        d_down_ID + d_down,
      )

    *of_slots, d_weights = carry
    *of_slots, d_gate_DI, d_up_DI, d_down_ID = loop_blocks(
      one, (*of_slots, *map(empty, mine))
    )
    return *of_slots, [
      d_E.at[e].set(d)
      for d_E, d in zip(d_weights, (d_gate_DI, d_up_DI, d_down_ID))
    ]

  empty = lambda like: jnp.zeros(like.shape, quant.wide(like.dtype))
  dx_sD, d_gating_s, d_weights = _by_expert(
    of_expert,
    slots,
    (
      jnp.zeros((num_slots, x_TD.shape[1]), x_TD.dtype),
      jnp.zeros(num_slots, gating_p.dtype),
      [*map(empty, weights)],
    ),
  )
  return (
    _sum_of_pairs(_gather(dx_sD, slots.slot_p), x_TD.shape[0]),
    _gather(d_gating_s, slots.slot_p),
    tuple(d.astype(w.dtype) for d, w in zip(d_weights, weights)),
    None,
  )


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _by_expert(of_expert, slots: Slots, carry):
  """Loops over the experts that have pairs, and over the blocks of each.

  Each expert's weights are thus read once.

  Args:
    of_expert: Function (e, loop_blocks, carry) → carry of one expert, in which
      loop_blocks(body, carry) runs body(w, carry) → carry over its blocks.
    slots: The assignment of pairs to slots.
    carry: The initial carry.

  Returns:
    The final carry.
  """

  def turn(state):
    w, carry = state
    e = slots.expert_w[w]
    end = slots.end_E[e]
    return end, of_expert(
      e, lambda one, kept: jax.lax.fori_loop(w, end, one, kept), carry
    )

  return jax.lax.while_loop(
    lambda state: state[0] < slots.end_E[-1], turn, (jnp.int32(0), carry)
  )[1]


def _per_token(x_TD, slots: Slots) -> int:
  return slots.slot_p.shape[0] // x_TD.shape[0]


def _block(x_s, w, slots: Slots):
  """Slices the slots of block w."""
  size = slots.pair_s.shape[0] // slots.expert_w.shape[0]
  return jax.lax.dynamic_slice_in_dim(x_s, w * size, size)


def _put(x_s, part, w):
  return jax.lax.dynamic_update_slice_in_dim(
    x_s, part.astype(x_s.dtype), w * part.shape[0], 0
  )


def _gather(x, rows):
  """Gathers rows of x; an index beyond the last gives zeros."""
  return x.at[rows].get(mode='fill', fill_value=0)


def _activate(gate, up, gating):
  return jax.nn.silu(gate) * up * gating


def _sum_of_pairs(x_pD, tokens: int):
  """Sums the pairs of each token, which are adjacent: [T·A, D] → [T, D]."""
  x_TAD = x_pD.reshape(tokens, -1, x_pD.shape[-1])
  return x_TAD.sum(1, dtype=quant.wide(x_pD.dtype)).astype(x_pD.dtype)


def _product_gradients(x, w, dy, fp8: bool, units: Layout | None):
  """Returns dx and dw; the product itself is not computed again."""
  return jax.vjp(partial(_times, fp8=fp8, units=units), x, w)[1](dy)


def _times(x, w, fp8: bool, units: Layout | None):
  return quant.product(jnp.matmul, units, x, w) if fp8 else x @ w
