"""Causal attention of whole sequences: one function, several kernels.

'plain' is the definition and the oracle of the others. None of the others
stores a [T, T] matrix: the backward pass computes the probabilities again from
the logarithm of each row's softmax denominator, as flash attention does.
"""

from functools import partial

import jax
from jax.experimental.pallas.ops.gpu import attention as flash
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.model import quant
from r1jax.sharding import Layout

NEG_INF = -1e30  # Finite, so that a row with nothing to attend to has no NaN.


def attend(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, scale: float, layout: Layout, kernel: str
):
  """Causal attention within segments; softmax in float32.

  Query heads n·M … n·M + M − 1 share key head n, with M = N/K.

  Args:
    q_BTNH: Queries.
    k_BTKH: Keys.
    v_BTKU: Values.
    segment_BT: int32; tokens of other segments are not seen.
    scale: Of the scores.
    layout: Of the mesh.
    kernel: 'plain'; 'blocked', products that fit a processor's cache, for any
      device; 'flash' and 'splash', JAX's fused kernels for GPU and for TPU,
      which are interpreted elsewhere; or 'auto': the device's own, and blocked
      where it has none. On GPU wide numbers are blocked too: the fused kernel
      would multiply them in TF32.

  Returns:
    [B, T, N, U]
  """
  if kernel == 'auto':
    kernel = _best(layout.platform, q_BTNH.dtype)
  q_BNTH, k_BKTH, v_BKTU = (
    layout.constrain(x.swapaxes(1, 2), 'BNTH')  # As a matrix product wants.
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
  """Batch rows and heads do not look at each other: no device waits."""
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
  q_BKRH = q_BNTH.reshape(B, K, N // K * T, -1)  # R = M·T rows.
  score_BKRS = jnp.einsum(
    'BKRH,BKSH->BKRS',
    q_BKRH,
    k_BKTH,
    preferred_element_type=quant.wide(q_BNTH.dtype),
  )
  see_BTS = jnp.tril(jnp.ones((T, T), bool)) & (
    segment_BT[:, :, None] == segment_BT[:, None, :]
  )
  score_BKMTS = jnp.where(
    see_BTS[:, None, None], score_BKRS.reshape(B, K, -1, T, T) * scale, NEG_INF
  )
  prob_BKRS = (
    jax.nn.softmax(score_BKMTS, -1).astype(v_BKTU.dtype).reshape(B, K, -1, T)
  )
  mix_BKRU = jnp.einsum('BKRS,BKSU->BKRU', prob_BKRS, v_BKTU)
  return mix_BKRU.reshape(B, N, T, -1)


# Blocked: a block of t query columns meets the s columns up to its end, so
# half of the products are never made. Blocks are unrolled and rows looped
# over, so many at a time that their scores stay in a processor's cache.
_BLOCK, _MAX_BLOCKS = 64, 16
_CACHED_SCORES = 1 << 18


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float):
  return _blocked_forward(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale)[0]


def _blocked_forward(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float):
  B, N, T, H = q_BNTH.shape
  K = k_BKTH.shape[1]
  q_BKMTH = q_BNTH.reshape(B, K, N // K, T, H)

  def some(q, k, v, segments):
    mixes, logs = [], []
    for start, end in _spans(T):
      score = _times('bkrh,bksh->bkrs', _rows(q, start, end), k[:, :, :end])
      score = _masked(
        score,
        scale,
        _see(segments, (start, end), (0, end), jnp.greater_equal, N // K),
      )
      top = jax.lax.stop_gradient(score.max(-1, keepdims=True))
      unscaled = jnp.exp(score - top)
      total = unscaled.sum(-1, keepdims=True)
      mix = _times('bkrs,bksu->bkru', unscaled.astype(v.dtype), v[:, :, :end])
      mixes.append(_columns(mix / total, end - start))
      logs.append(_columns(top + jnp.log(total), end - start))
    return jnp.concatenate(mixes, 3).astype(v.dtype), jnp.concatenate(logs, 3)

  mix_BKMTU, log_BKMT1 = _over_rows(
    some, N * T, (q_BKMTH, k_BKTH, v_BKTU, _both_ways(segment_BT))
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

  def some(q, k, v, segments, mix, log, d_mix):
    wide = quant.wide(q.dtype)
    inner = jnp.sum(mix.astype(wide) * d_mix, -1, keepdims=True)
    dq, dk, dv = jnp.zeros(q.shape, wide), [], []
    for start, end in _spans(T):  # Keys here, and the queries from start on.
      q_r, log_r, d_mix_r, inner_r = (
        _rows(x, start, T) for x in (q, log, d_mix, inner)
      )
      k_s, v_s = k[:, :, start:end], v[:, :, start:end]
      score = _masked(
        _times('bksh,bkrh->bksr', k_s, q_r),
        scale,
        _see(segments, (start, end), (start, T), jnp.less_equal, M),
      )
      prob = jnp.exp(score - log_r.swapaxes(2, 3))
      dv.append(_times('bksr,bkru->bksu', prob.astype(v.dtype), d_mix_r))
      d_prob = _times('bksu,bkru->bksr', v_s, d_mix_r)
      d_score = (prob * (d_prob - inner_r.swapaxes(2, 3)) * scale).astype(
        q.dtype
      )
      dk.append(_times('bksr,bkrh->bksh', d_score, q_r))
      dq = dq.at[:, :, :, start:].add(
        _columns(_times('bksr,bksh->bkrh', d_score, k_s), T - start)
      )
    return (
      dq.astype(q.dtype),
      jnp.concatenate(dk, 2).astype(k.dtype),
      jnp.concatenate(dv, 2).astype(v.dtype),
    )

  dq_BKMTH, dk_BKTH, dv_BKTU = _over_rows(
    some,
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
  """Columns [start, end) of each block: (0, 64), (64, 100) for 100 tokens."""
  block = max(_BLOCK, -(-tokens // _MAX_BLOCKS))
  return [
    (start, min(start + block, tokens)) for start in range(0, tokens, block)
  ]


def _over_rows(function, scores_a_column: int, args):
  """function over all of the leading axis, a few rows of it at a time."""
  B = args[0].shape[0]
  most = max(1, _CACHED_SCORES // (scores_a_column * _BLOCK))
  some = max(d for d in range(1, min(B, most) + 1) if B % d == 0)
  if some == B:
    return function(*args)
  chunks = jax.tree.map(
    lambda x: x.reshape(B // some, some, *x.shape[1:]), args
  )
  found = jax.lax.map(lambda chunk: function(*chunk), chunks)
  return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), found)


def _rows(x_bKMTH, start: int, end: int):
  """Columns of all M heads of a key head as the rows of one product."""
  b, K = x_bKMTH.shape[:2]
  return x_bKMTH[:, :, :, start:end].reshape(b, K, -1, x_bKMTH.shape[-1])


def _columns(x_bKRH, columns: int):
  """The reverse of _rows."""
  b, K, R, H = x_bKRH.shape
  return x_bKRH.reshape(b, K, R // columns, columns, H)


def _times(letters: str, a, b):
  return jnp.einsum(letters, a, b, preferred_element_type=quant.wide(a.dtype))


def _see(
  segments, first: tuple[int, int], second: tuple[int, int], looks, M: int
):
  """bool [b, 1, t, s], one for all heads: may these columns meet?

  Args:
    segments: Of the first axis [b, T, 1], and of the second [b, 1, T].
    first, second: Columns [start, end) of the two axes.
    looks: Of their two places: jnp.greater_equal where the first are queries.
    M: The columns of queries are repeated so many times.
  """
  places = looks(
    *jnp.meshgrid(jnp.arange(*first), jnp.arange(*second), indexing='ij')
  )
  see_bts = places & (
    segments[0][:, slice(*first)] == segments[1][:, :, slice(*second)]
  )
  repeats = (1, M, 1) if looks is jnp.greater_equal else (1, 1, M)
  return jnp.tile(see_bts, repeats)[:, None]


def _both_ways(segment_BT):
  """For _see. As two inputs of the loop: XLA's code for two slices of one is
  ten times slower on CPU."""
  return segment_BT[:, :, None], segment_BT[:, None]


def _masked(score, scale: float, see):
  return jnp.where(see, score * scale, NEG_INF)


_TILE = 128  # The fused kernels work on whole tiles of so many tokens.


def _padded(multiple: int, segment_BT, *x_BNTH):
  """Up to whole tiles, by tokens of a segment of their own, after all others."""
  pad = (0, -segment_BT.shape[1] % multiple)
  return (
    jnp.pad(segment_BT, ((0, 0), pad), constant_values=-1),
    *(jnp.pad(x, ((0, 0), (0, 0), pad, (0, 0))) for x in x_BNTH),
  )


def _flash(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale: float, interpret: bool):
  (_, N, T, H), (_, K, _, U) = q_BNTH.shape, v_BKTU.shape
  segment_BT, *qkv = _padded(_TILE, segment_BT, q_BNTH, k_BKTH, v_BKTU)
  wide = max(H, U)  # The kernel knows one width.
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
  # Blocks are a divisor of the length: beyond one block, pad to whole ones.
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

  # The backward kernel keeps a copy of dq for each of its key blocks: few.
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
