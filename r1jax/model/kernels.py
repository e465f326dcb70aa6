"""Causal attention over whole sequences: one function, several kernels.

'plain' is the definition, and the oracle in tests of the others. None of the
others stores a [T, T] matrix: like flash attention, the backward pass
recomputes the probabilities from the log-sum-exp of each query's scores.
"""

from functools import partial

import jax
from jax.experimental.pallas.ops.gpu import attention as flash
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.model import quant
from r1jax.sharding import Layout

NEG_INF = -1e30  # Finite, so that a fully masked row gives no NaN.


def attend(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, scale: float, layout: Layout, kernel: str
):
  """Computes causal attention within segments, with the softmax in float32.

  Query heads n·M … n·M + M − 1 share key-value head n, with M = N/K.

  Args:
    q_BTNH: Queries.
    k_BTKH: Keys.
    v_BTKU: Values.
    segment_BT: int32; a token attends within its segment only.
    scale: Factor on the scores.
    layout: The mesh and its sharding tables.
    kernel: 'plain'; 'blocked', for any device, whose products fit a CPU's
      cache; 'flash' and 'splash', JAX's fused kernels for GPU and TPU, which
      are interpreted elsewhere; or 'auto' for the device's own kernel, with
      'blocked' on CPU. On GPU, 'auto' is 'blocked' for dtypes wider than 16
      bits too, which the fused kernel would multiply in TF32.

  Returns:
    [B, T, N, U]
  """
  if kernel == 'auto':
    kernel = _best(layout.platform, q_BTNH.dtype)
  q_BNTH, k_BKTH, v_BKTU = (
    layout.constrain(x.swapaxes(1, 2), 'BNTH')  # Layout of matrix products.
    for x in (q_BTNH, k_BTKH, v_BTKU)
  )
  if kernel == 'plain':
    mix_BNTU = _plain(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale)
  else:
    function = {
      'blocked': _blocked,
      'flash': partial(_flash, interpret=layout.platform != 'gpu'),
      'splash': partial(_splash, interpret=layout.platform != 'tpu'),
    }[kernel]
    mix_BNTU = _on_each_device(
      function, q_BNTH, k_BKTH, v_BKTU, segment_BT, scale, layout
    )
  return mix_BNTU.swapaxes(1, 2)


def _best(platform: str, dtype) -> str:
  if platform == 'tpu':
    return 'splash'
  return 'flash' if platform == 'gpu' and dtype.itemsize == 2 else 'blocked'


def _on_each_device(
  function, q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float, layout: Layout
):
  """Runs a kernel on each device's sequences and heads separately."""
  if layout.mesh.size == 1:
    return function(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale)
  heads = layout.fitting_spec(k_BKTH.shape, 'BNTH')
  return jax.shard_map(
    lambda *args: function(*args, scale),
    mesh=layout.mesh,
    in_specs=(heads,) * 3 + (PartitionSpec(heads[0]),),
    out_specs=heads,
    check_vma=False,
  )(q_BNTH, k_BKTH, v_BKTU, segment_BT)


def _plain(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float):
  B, N, T, _ = q_BNTH.shape
  K = k_BKTH.shape[1]
  q_BKrH = q_BNTH.reshape(B, K, N // K * T, -1)
  score_BKrS = jnp.einsum(
    'BKrH,BKSH->BKrS',
    q_BKrH,
    k_BKTH,
    preferred_element_type=quant.wide(q_BNTH.dtype),
  )
  see_BTS = jnp.tril(jnp.ones((T, T), bool)) & (
    segment_BT[:, :, None] == segment_BT[:, None, :]
  )
  score_BKMTS = jnp.where(
    see_BTS[:, None, None], score_BKrS.reshape(B, K, -1, T, T) * scale, NEG_INF
  )
  prob_BKrS = (
    jax.nn.softmax(score_BKMTS, -1).astype(v_BKTU.dtype).reshape(B, K, -1, T)
  )
  mix_BKrU = jnp.einsum('BKrS,BKSU->BKrU', prob_BKrS, v_BKTU)
  return mix_BKrU.reshape(B, N, T, -1)


# Blocked: a block of queries is multiplied with the keys up to its end only,
# which saves half of the products. The loop over blocks is unrolled; sequences
# are looped over, as many at a time as their scores fit a CPU's cache.
_BLOCK, _MAX_BLOCKS = 64, 16
_CACHED_SCORES = 1 << 18


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float):
  return _blocked_forward(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale)[0]


def _blocked_forward(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float):
  B, N, T, H = q_BNTH.shape
  K = k_BKTH.shape[1]
  q_BKMTH = q_BNTH.reshape(B, K, N // K, T, H)

  def forward(q, k, v, segments):
    mixes, logs = [], []
    for start, end in _spans(T):
      score = _times('BKrH,BKSH->BKrS', _rows(q, start, end), k[:, :, :end])
      score = _masked(
        score,
        scale,
        _see(segments, (start, end), (0, end), jnp.greater_equal, N // K),
      )
      top = jax.lax.stop_gradient(score.max(-1, keepdims=True))
      unscaled = jnp.exp(score - top)
      total = unscaled.sum(-1, keepdims=True)
      mix = _times('BKrS,BKSU->BKrU', unscaled.astype(v.dtype), v[:, :, :end])
      mixes.append(_columns(mix / total, end - start))
      logs.append(_columns(top + jnp.log(total), end - start))
    return jnp.concatenate(mixes, 3).astype(v.dtype), jnp.concatenate(logs, 3)

  mix_BKMTU, log_BKMT1 = _over_rows(
    forward, N * T, (q_BKMTH, k_BKTH, v_BKTU, _both_ways(segment_BT))
  )
  return mix_BKMTU.reshape(B, N, T, -1), (
    q_BKMTH,
    k_BKTH,
    v_BKTU,
    segment_BT,
    mix_BKMTU,
    log_BKMT1,
  )


def _blocked_backward(scale: float, kept, d_mix_BNTU):
  q_BKMTH, k_BKTH, v_BKTU, segment_BT, mix_BKMTU, log_BKMT1 = kept
  B, K, M, T, H = q_BKMTH.shape

  def backward(q, k, v, segments, mix, log, d_mix):
    wide = quant.wide(q.dtype)
    inner = jnp.sum(mix.astype(wide) * d_mix, -1, keepdims=True)
    dq, dk, dv = jnp.zeros(q.shape, wide), [], []
    for start, end in _spans(T):  # A block of keys, and queries from start on.
      q_r, log_r, d_mix_r, inner_r = (
        _rows(x, start, T) for x in (q, log, d_mix, inner)
      )
      k_s, v_s = k[:, :, start:end], v[:, :, start:end]
      score = _masked(
        _times('BKSH,BKrH->BKSr', k_s, q_r),
        scale,
        _see(segments, (start, end), (start, T), jnp.less_equal, M),
      )
      prob = jnp.exp(score - log_r.swapaxes(2, 3))
      dv.append(_times('BKSr,BKrU->BKSU', prob.astype(v.dtype), d_mix_r))
      d_prob = _times('BKSU,BKrU->BKSr', v_s, d_mix_r)
      d_score = (prob * (d_prob - inner_r.swapaxes(2, 3)) * scale).astype(
        q.dtype
      )
      dk.append(_times('BKSr,BKrH->BKSH', d_score, q_r))
      dq = dq.at[:, :, :, start:].add(
        _columns(_times('BKSr,BKSH->BKrH', d_score, k_s), T - start)
      )
    return (
      dq.astype(q.dtype),
      jnp.concatenate(dk, 2).astype(k.dtype),
      jnp.concatenate(dv, 2).astype(v.dtype),
    )

  dq_BKMTH, dk_BKTH, dv_BKTU = _over_rows(
    backward,
    K * M * T,
    (
      q_BKMTH,
      k_BKTH,
      v_BKTU,
      _both_ways(segment_BT),
      mix_BKMTU,
      log_BKMT1,
      d_mix_BNTU.reshape(mix_BKMTU.shape),
    ),
  )
  return dq_BKMTH.reshape(B, K * M, T, H), dk_BKTH, dv_BKTU, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _spans(tokens: int) -> list[tuple[int, int]]:
  """Returns the tokens [start, end) of each block.

  For example (0, 64), (64, 100) for 100 tokens.
  """
  block = max(_BLOCK, -(-tokens // _MAX_BLOCKS))
  return [
    (start, min(start + block, tokens)) for start in range(0, tokens, block)
  ]


def _over_rows(function, scores_per_column: int, args):
  """Maps a function over the leading axis, a few rows at a time.

  Args:
    function: Function of arrays with a leading axis.
    scores_per_column: Scores per row and key column.
    args: The arrays; tuples of arrays are allowed.
  """
  B = args[0].shape[0]
  limit = max(1, _CACHED_SCORES // (scores_per_column * _BLOCK))
  rows = max(d for d in range(1, min(B, limit) + 1) if B % d == 0)
  if rows == B:
    return function(*args)
  chunks = jax.tree.map(
    lambda x: x.reshape(B // rows, rows, *x.shape[1:]), args
  )
  out = jax.lax.map(lambda chunk: function(*chunk), chunks)
  return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), out)


def _rows(x_BKMTH, start: int, end: int):
  """Merges M query heads of tokens [start, end) into rows: [B, K, M·t, H]."""
  B, K = x_BKMTH.shape[:2]
  return x_BKMTH[:, :, :, start:end].reshape(B, K, -1, x_BKMTH.shape[-1])


def _columns(x_BKrH, columns: int):
  """Splits rows into M heads and tokens again, the inverse of _rows."""
  B, K, rows, H = x_BKrH.shape
  return x_BKrH.reshape(B, K, rows // columns, columns, H)


def _times(letters: str, a, b):
  return jnp.einsum(letters, a, b, preferred_element_type=quant.wide(a.dtype))


def _see(
  segments, first: tuple[int, int], second: tuple[int, int], compare, M: int
):
  """Builds the attention mask of a block, for rows of M query heads.

  Args:
    segments: Segment ids along the first axis, [B, T, 1], and along the second,
      [B, 1, T].
    first: Tokens [start, end) along the first axis.
    second: Tokens [start, end) along the second axis.
    compare: Relation of the two axes' positions that allows attention:
      jnp.greater_equal if the first axis has the queries, jnp.less_equal if the
      second has.
    M: Number of times that the axis of queries is repeated.

  Returns:
    bool [B, 1, rows, columns], the same for all key-value heads.
  """
  ordered = compare(
    *jnp.meshgrid(jnp.arange(*first), jnp.arange(*second), indexing='ij')
  )
  see_BTS = ordered & (
    segments[0][:, slice(*first)] == segments[1][:, :, slice(*second)]
  )
  repeats = (1, M, 1) if compare is jnp.greater_equal else (1, 1, M)
  return jnp.tile(see_BTS, repeats)[:, None]


def _both_ways(segment_BT):
  """Returns segment ids as a column and as a row, for _see.

  They are two inputs of the loop, since XLA's CPU code for two slices of one
  input is ten times slower.
  """
  return segment_BT[:, :, None], segment_BT[:, None]


def _masked(score, scale: float, see):
  return jnp.where(see, score * scale, NEG_INF)


_TILE = 128  # Tokens per tile of the fused kernels, which need whole tiles.


def _padded(multiple: int, segment_BT, *x_BNTH):
  """Pads sequences to a multiple of tokens; padding is a separate segment."""
  pad = (0, -segment_BT.shape[1] % multiple)
  return (
    jnp.pad(segment_BT, ((0, 0), pad), constant_values=-1),
    *(jnp.pad(x, ((0, 0), (0, 0), pad, (0, 0))) for x in x_BNTH),
  )


def _flash(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float, interpret: bool):
  (_, N, T, H), (_, K, _, U) = q_BNTH.shape, v_BKTU.shape
  segment_BT, *qkv = _padded(_TILE, segment_BT, q_BNTH, k_BKTH, v_BKTU)
  wide = max(H, U)  # The kernel takes one width for keys and values.
  q, k, v = (
    jnp.pad(x, ((0, 0),) * 3 + ((0, wide - x.shape[-1]),)).swapaxes(1, 2)
    for x in qkv
  )
  mix_BTNH = flash.mha(
    q,
    *(jnp.repeat(x, N // K, axis=2) for x in (k, v)),
    segment_BT,
    sm_scale=scale,
    causal=True,
    interpret=interpret,
  )
  return mix_BTNH.swapaxes(1, 2)[:, :, :T, :U]


def _splash(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float, interpret: bool):
  N, T = q_BNTH.shape[1:3]
  # Blocks must divide the length: pad to whole blocks if there are several.
  segment_BT, q_BNTH, k_BKTH, v_BKTU = _padded(
    _TILE if T <= _SPLASH_BLOCK else _SPLASH_BLOCK,
    segment_BT,
    q_BNTH,
    k_BKTH,
    v_BKTU,
  )
  kernel = _splash_kernel(N, q_BNTH.shape[2], interpret)

  def one(q, k, v, segment):
    return kernel(q, k, v, splash.SegmentIds(q=segment, kv=segment))

  return jax.vmap(one)(q_BNTH * scale, k_BKTH, v_BKTU, segment_BT)[:, :, :T]


_SPLASH_BLOCK = 512


def _splash_kernel(heads: int, tokens: int, interpret: bool):
  def block(limit):
    return next(
      b for b in (2048, 1024, 512, 256, _TILE) if b <= limit and tokens % b == 0
    )

  # The backward kernel stores a copy of dq per key block, so these are large.
  size = block(_SPLASH_BLOCK)
  return splash.make_splash_mha(
    splash.MultiHeadMask([splash.CausalMask((tokens, tokens))] * heads),
    block_sizes=splash.BlockSizes(
      block_q=size,
      block_kv=size,
      block_q_dkv=size,
      block_kv_dkv=block(2048),
      block_kv_dkv_compute=size,
      use_fused_bwd_kernel=True,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
