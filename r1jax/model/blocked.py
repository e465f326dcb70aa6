"""Attention whose cost follows the segments of a row: kernel 'blocked'.

A row may hold many packed segments. Its tokens are cut into W blocks; a block
of queries visits only those blocks of keys that one of its tokens may attend
to (`visible_blocks`), forward and backward. A row thus costs about the sum of
its squared segment lengths, and a row of padding next to nothing.

As in flash attention no [T, T] matrix is stored: the softmax is updated block
by block, and the backward pass recomputes the probabilities from the
log-sum-exp of each query's scores (arXiv 2307.08691, algorithms 1 and 2). Both
are loops, whose program does not grow with T or W.

Lower-case dimensions: b sequences that are processed together; t and s, the
tokens of a block of queries and of keys (the same number); r = M·t, the queries
of a key-value head in one block. Scores are [b, K, s, r]: with queries in the
last dimension, XLA's CPU code vectorizes the maximum and the sum over keys.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model import quant

NEG_INF = -1e30  # Finite, so that a fully masked row gives no NaN.
_BLOCK = 64  # The most tokens per block.


def attention(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, scale: float, together: int
):
  """Computes kernels.attend on one device.

  Tokens of segment 0 attend only to those of their own block, since padding
  must cost nothing and its output is not used.

  Args:
    q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, scale: See kernels.attend.
    together: The number of sequences that are processed together, which divides
      B. They visit the blocks that any of them needs.

  Returns:
    [B, T, N, U] in the dtype of v_BTKU.
  """
  T = q_BTNH.shape[1]
  block = block_tokens(T)

  def padded(x_BT):
    rest = ((0, 0),) * (x_BT.ndim - 2)
    return jnp.pad(x_BT, ((0, 0), (0, -T % block), *rest))

  arrays = q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT
  padded_arrays = jax.tree.map(padded, arrays)
  return _attention(*padded_arrays, scale, block, together)[:, :T]


def block_tokens(tokens: int) -> int:
  """Returns the block size for a length: 64, 100 and 150 tokens → 64, 56, 56.

  It is a multiple of 8 up to 64 with little padding at the end of the row.
  """
  blocks = -(-tokens // _BLOCK)
  return -(-tokens // blocks // 8) * 8


def visible_blocks(segment_BT, prefix_BT, block: int) -> jax.Array:
  """Returns the blocks of keys that each block of queries must visit.

  Segments that are contiguous and whose ids rise give no block more than
  needed; any other order gives at least the blocks that are needed. Example
  with segment ids [1 1 2 2 2 0] and blocks of 2: the first block of queries
  visits itself, the second itself, the third, which holds the last token of
  segment 2, the second and itself.

  Args:
    segment_BT: int32 segment ids, 0 on padding. T is a multiple of the block.
    prefix_BT: int32, for each token the id of a second segment that it sees, or
      a number below 1; or None.
    block: Tokens per block.

  Returns:
    bool [B, W, W], by block of queries and block of keys.
  """
  B, T = segment_BT.shape
  W = T // block
  id_BWt = segment_BT.reshape(B, W, block)
  limits = jnp.iinfo(id_BWt.dtype)
  low_BW = jnp.where(id_BWt != 0, id_BWt, limits.max).min(-1)
  high_BW = jnp.where(id_BWt != 0, id_BWt, limits.min).max(-1)
  see_BWW = (low_BW[:, :, None] <= high_BW[:, None]) & (
    low_BW[:, None] <= high_BW[:, :, None]
  )
  if prefix_BT is not None:
    prefix_BWt1 = prefix_BT.reshape(B, W, block, 1)
    see_BWtW = (low_BW[:, None, None] <= prefix_BWt1) & (
      prefix_BWt1 <= high_BW[:, None, None]
    )
    see_BWW |= (see_BWtW & (prefix_BWt1 > 0)).any(2)
  return (see_BWW | jnp.eye(W, dtype=bool)) & jnp.tri(W, dtype=bool)


class _Rows(NamedTuple):
  """Segments of all rows by block, and the blocks that they visit.

  The rows are in G groups of b that are processed together.

  Attributes:
    segment_GbWt: int32 segment ids.
    prefix_GbWt: int32, the second segment that a token sees, or None.
    key_block_GWW: int32, the blocks of keys that each block of queries visits,
      rising; only the first ones of each list count.
    count_GW: int32, how many count.
  """

  segment_GbWt: jax.Array
  prefix_GbWt: jax.Array | None
  key_block_GWW: jax.Array
  count_GW: jax.Array

  def mask(self, g, w, M: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function of a block of keys: who is seen, bool [b, 1, s, r]."""
    t = jnp.arange(self.segment_GbWt.shape[-1])

    def queries(id_GbWt):
      return jnp.tile(id_GbWt[g, :, w], (1, M))[:, None]

    # Whatever is repeated M times is computed here, once per block of queries.
    column_r = jnp.tile(t, M) + w * t.size
    segment_b1r = queries(self.segment_GbWt)
    if self.prefix_GbWt is not None:
      prefix_b1r = queries(self.prefix_GbWt)
      prefix_b1r = jnp.where(prefix_b1r > 0, prefix_b1r, segment_b1r)

    def see(j):
      key_bs1 = self.segment_GbWt[g, :, j][..., None]
      see_bsr = key_bs1 == segment_b1r
      if self.prefix_GbWt is not None:
        see_bsr |= key_bs1 == prefix_b1r
      return (see_bsr & (t[:, None] + j * t.size <= column_r))[:, None]

    return see

  def visit(self, g, w, body, carry):
    """Runs body(block of keys, carry) for the blocks that a block visits."""
    W = self.count_GW.shape[1]
    # launch/flops.py reads how many blocks a row of one segment visits.
    with jax.named_scope(f'loop_{(W + 1) / 2}'):
      return jax.lax.fori_loop(
        0,
        self.count_GW[g, w],
        lambda n, carry: body(self.key_block_GWW[g, w, n], carry),
        carry,
      )


def _rows(segment_BT, prefix_BT, block: int, together: int) -> _Rows:
  see_BWW = visible_blocks(segment_BT, prefix_BT, block)
  W = see_BWW.shape[-1]
  see_GWW = see_BWW.reshape(-1, together, W, W).any(1)
  blocks = partial(_blocks, block=block, together=together)
  return _Rows(
    segment_GbWt=blocks(segment_BT),
    prefix_GbWt=None if prefix_BT is None else blocks(prefix_BT),
    key_block_GWW=jnp.sort(jnp.where(see_GWW, jnp.arange(W), W), -1),
    count_GW=see_GWW.sum(-1),
  )


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, scale, block, together
):
  return _forward(
    q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, scale, block, together
  )[0]


def _forward(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, scale, block, together
):
  inputs = q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT
  (K, U), M = v_BTKU.shape[2:], q_BTNH.shape[2] // v_BTKU.shape[2]
  dtype, wide = v_BTKU.dtype, quant.wide(q_BTNH.dtype)
  rows = _rows(segment_BT, prefix_BT, block, together)
  q_GbWtNH = _blocks(q_BTNH, block, together)
  k_GWbKsH = _keys(k_BTKH, block, together)
  v_GWbKUs = _keys(v_BTKU, block, together).swapaxes(4, 5)

  def query_block(g, w):
    q_bKHr = _columns(q_GbWtNH[g, :, w], K)
    see = rows.mask(g, w, M)

    def key_block(j, carry):
      top, total, mix_bKUr = carry
      score = _times('bKsH,bKHr->bKsr', k_GWbKsH[g, j], q_bKHr)
      score = jnp.where(see(j), score * scale, NEG_INF)
      new_top = jnp.maximum(top, score.max(2, keepdims=True))
      prob = jnp.exp(score - new_top)
      keep = jnp.exp(top - new_top)
      return (
        new_top,
        total * keep + prob.sum(2, keepdims=True),
        mix_bKUr * keep
        + _times('bKUs,bKsr->bKUr', v_GWbKUs[g, j], prob.astype(dtype)),
      )

    shape = together, K, 1, M * block
    top, total, mix_bKUr = rows.visit(
      g,
      w,
      key_block,
      (
        jnp.full(shape, NEG_INF, wide),
        jnp.zeros(shape, wide),
        jnp.zeros((together, K, U, M * block), wide),
      ),
    )
    return _tokens((mix_bKUr / total).astype(dtype), M), top + jnp.log(total)

  _, (mix_GWbtNU, log_GWbK1r) = _scan_blocks(
    lambda _, g, w: ((), query_block(g, w)), (), rows
  )
  mix_BTNU = _joined(mix_GWbtNU)
  return mix_BTNU, (*inputs, mix_BTNU, log_GWbK1r)


def _backward(scale, block, together, kept, d_mix_BTNU):
  q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, mix_BTNU, log_GWbK1r = kept
  K, M = k_BTKH.shape[2], q_BTNH.shape[2] // k_BTKH.shape[2]
  wide = quant.wide(q_BTNH.dtype)
  rows = _rows(segment_BT, prefix_BT, block, together)
  q_GbWtNH, mix_GbWtNU, d_mix_GbWtNU = (
    _blocks(x_BT, block, together) for x_BT in (q_BTNH, mix_BTNU, d_mix_BTNU)
  )
  k_GWbKsH = _keys(k_BTKH, block, together)
  v_GWbKsU = _keys(v_BTKU, block, together)

  def query_block(d_keys, g, w):
    q_bKHr = _columns(q_GbWtNH[g, :, w], K)
    d_mix_btNU = d_mix_GbWtNU[g, :, w]
    d_mix_bKUr = _columns(d_mix_btNU, K)
    inner_bK1r = _columns(
      jnp.sum(d_mix_btNU.astype(wide) * mix_GbWtNU[g, :, w], -1, keepdims=True),
      K,
    )
    see = rows.mask(g, w, M)

    def key_block(j, carry):
      dq_bKHr, (dk_GWbKsH, dv_GWbKsU) = carry
      k_bKsH, v_bKsU = k_GWbKsH[g, j], v_GWbKsU[g, j]
      score = _times('bKsH,bKHr->bKsr', k_bKsH, q_bKHr)
      score = jnp.where(see(j), score * scale, NEG_INF)
      prob = jnp.exp(score - log_GWbK1r[g, w])
      dv_bKsU = _times('bKsr,bKUr->bKsU', prob.astype(v_bKsU.dtype), d_mix_bKUr)
      d_prob = _times('bKsU,bKUr->bKsr', v_bKsU, d_mix_bKUr)
      d_score = (prob * (d_prob - inner_bK1r) * scale).astype(q_bKHr.dtype)
      dk_bKsH = _times('bKsr,bKHr->bKsH', d_score, q_bKHr)
      dq_bKHr += _times('bKsH,bKsr->bKHr', k_bKsH, d_score)
      return dq_bKHr, (
        dk_GWbKsH.at[g, j].add(dk_bKsH),
        dv_GWbKsU.at[g, j].add(dv_bKsU),
      )

    dq_bKHr, d_keys = rows.visit(
      g, w, key_block, (jnp.zeros(q_bKHr.shape, wide), d_keys)
    )
    return d_keys, _tokens(dq_bKHr.astype(q_bKHr.dtype), M)

  zeros = jnp.zeros(k_GWbKsH.shape, wide), jnp.zeros(v_GWbKsU.shape, wide)
  (dk_GWbKsH, dv_GWbKsU), dq_GWbtNH = _scan_blocks(query_block, zeros, rows)
  return (
    _joined(dq_GWbtNH),
    _joined(dk_GWbKsH.swapaxes(3, 4)).astype(k_BTKH.dtype),
    _joined(dv_GWbKsU.swapaxes(3, 4)).astype(v_BTKU.dtype),
    None,
    None,
  )


_attention.defvjp(_forward, _backward)


def _scan_blocks(function, carry, rows: _Rows):
  """Scans function(carry, g, w) over all groups and their blocks of queries.

  Returns:
    The final carry, and the outputs with leading axes [G, W].
  """
  G, W = rows.count_GW.shape
  carry, out = jax.lax.scan(
    lambda carry, i: function(carry, i // W, i % W), carry, jnp.arange(G * W)
  )
  return carry, jax.tree.map(lambda x: x.reshape(G, W, *x.shape[1:]), out)


def _blocks(x_BT, block: int, together: int) -> jax.Array:
  """Cuts sequences into groups and blocks: [B, T, …] → [G, b, W, t, …]."""
  return x_BT.reshape(
    -1, together, x_BT.shape[1] // block, block, *x_BT.shape[2:]
  )


def _joined(x_GWbt) -> jax.Array:
  """Joins groups and blocks again: [G, W, b, t, …] → [B, T, …]."""
  G, W, b, t, *rest = x_GWbt.shape
  return x_GWbt.swapaxes(1, 2).reshape(G * b, W * t, *rest)


def _keys(x_BTKH, block: int, together: int) -> jax.Array:
  """Cuts keys or values into blocks of matrices, [G, W, b, K, s, H]."""
  return _blocks(x_BTKH, block, together).transpose(0, 2, 1, 4, 3, 5)


def _columns(x_btNH, K: int) -> jax.Array:
  """Makes the queries of each key-value head columns: [b, K, H, r]."""
  b, t, N, H = x_btNH.shape
  x_bKHMt = x_btNH.reshape(b, t, K, N // K, H).transpose(0, 2, 4, 3, 1)
  return x_bKHMt.reshape(b, K, H, -1)


def _tokens(x_bKHr, M: int) -> jax.Array:
  """Makes columns tokens again, the inverse of _columns: [b, t, N, H]."""
  b, K, H, r = x_bKHr.shape
  x_btKMH = x_bKHr.reshape(b, K, H, M, r // M).transpose(0, 4, 1, 3, 2)
  return x_btKMH.reshape(b, r // M, K * M, H)


def _times(letters: str, a, b) -> jax.Array:
  return jnp.einsum(letters, a, b, preferred_element_type=quant.wide(a.dtype))
