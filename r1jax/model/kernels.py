"""Causal attention over whole sequences: one function, several kernels.

'plain' is the definition, and the oracle in tests of the others. None of the
others stores a [T, T] matrix: like flash attention, the backward pass
recomputes the probabilities from the log-sum-exp of each query's scores.

They differ in what a row of packed segments costs. 'blocked' skips blocks of
keys that no query of a block may see, so its cost follows the sum of the
squared segment lengths. 'splash' and 'flash' skip what causality hides, which
is known when they are compiled, and nothing else: segment ids mask scores
within the blocks that they compute, so a row costs T²/2 whatever its segments.

On a mesh a device computes whole rows for some of the heads. Where the axis
`sequence` shards rows between the layers, an all-to-all exchanges shards of rows
for shards of heads, and another one brings the result back (DeepSpeed Ulysses,
arXiv 2309.14509): no kernel knows of it, every device has the same number of
blocks to compute, whatever the segments, and nothing is computed twice. MLA
gathers its latent instead of exchanging the longer keys and values, and expands
it for the heads of the device alone.
"""

from functools import partial
import math

import jax
from jax.experimental.pallas.ops.gpu import attention as flash
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.errors import UserError
from r1jax.model import blocked, quant
from r1jax.model.blocked import NEG_INF
from r1jax.sharding import Layout


def attend(
  q_BTNH,
  k_BTKH,
  v_BTKU,
  segment_BT,
  scale: float,
  layout: Layout,
  kernel: str,
  prefix_BT=None,
):
  """Computes causal attention within segments, with the softmax in float32.

  Query heads n·M … n·M + M − 1 share key-value head n, with M = N/K.

  Args:
    q_BTNH: Queries.
    k_BTKH: Keys.
    v_BTKU: Values.
    segment_BT: int32; a token attends within its segment only. 0 is padding,
      whose outputs are finite but differ between kernels.
    scale: Factor on the scores.
    layout: The mesh and its sharding tables.
    kernel: 'plain'; 'blocked', for any device, whose products fit a CPU's
      cache; 'flash' and 'splash', JAX's fused kernels for GPU and TPU, which
      are interpreted elsewhere; or 'auto' for the device's own kernel, with
      'blocked' on CPU. On GPU, 'auto' is 'blocked' for dtypes wider than 16
      bits too, which the fused kernel would multiply in TF32.
    prefix_BT: int32, for each token the id of an earlier segment of its row
      that it attends to besides its own, or a number below 1; None if no token
      does. With a
      prompt and two completions that share it:
        segment_BT = [1, 1, 2, 2, 3, 3]     prefix_BT = [-1, -1, 1, 1, 1, 1]

  Returns:
    [B, T, N, U]

  Raises:
    ValueError: prefix_BT is given to a kernel that knows segments alone.
    UserError: see check_heads.
  """
  if kernel == 'auto':
    kernel = _best(layout.platform, q_BTNH.dtype)
  if prefix_BT is not None and not sees_prefixes(
    kernel, layout.platform, q_BTNH.dtype
  ):
    raise ValueError(
      f'prefix_BT: the attention kernel {kernel!r} knows equality of segments '
      "alone; set model.attention_kernel = 'blocked'"
    )
  qkv = _whole_rows(q_BTNH, k_BTKH, v_BTKU, layout)
  rows = (segment_BT,) if prefix_BT is None else (segment_BT, prefix_BT)
  if kernel == 'plain':
    return layout.constrain(_plain(*qkv, *rows, scale=scale), 'BTNH')
  function = {
    'blocked': partial(_blocked, in_turn=layout.platform == 'cpu'),
    'flash': partial(_flash, interpret=layout.platform != 'gpu'),
    'splash': partial(_splash, interpret=layout.platform != 'tpu'),
  }[kernel]
  mix_BTNU = _on_each_device(partial(function, scale=scale), qkv, rows, layout)
  return layout.constrain(mix_BTNU, 'BTNH')


def check_heads(heads: int, layout: Layout):
  """Checks that every device computes the attention of as many heads.

  Args:
    heads: N.
    layout: The mesh.

  Raises:
    UserError: rows are sharded over the axis sequence, and the mesh does not
      divide the heads.
  """
  parts = layout.size('n')
  if layout.size('T') > 1 and heads % parts:
    raise UserError(
      f'mesh: model.num_attention_heads = {heads} do not divide over '
      f'{" × ".join(layout.activation_axes("n"))} = {parts}, and each device '
      'computes the attention of as many heads; change mesh in the config'
    )


def _whole_rows(q_BTNH, k_BTKH, v_BTKU, layout: Layout):
  """Lays out queries, keys and values with whole rows of heads on a device.

  Key-value heads that are fewer than the shards of heads are repeated first, so
  that each shard has those of its queries and no others: with four shards, the
  heads [a, b] become [a, a, b, b].
  """
  check_heads(q_BTNH.shape[2], layout)
  K = k_BTKH.shape[2]
  copies = math.lcm(K, layout.size('n')) // K
  if layout.size('T') > 1 and copies > 1:
    # The shards of rows are kept, so that only copies that are used travel.
    k_BTKH, v_BTKU = (
      layout.constrain(jnp.repeat(x, copies, axis=2), 'BTNH')
      for x in (k_BTKH, v_BTKU)
    )
  return [layout.constrain(x, 'B_nH') for x in (q_BTNH, k_BTKH, v_BTKU)]


def sees_prefixes(kernel: str, platform: str, dtype) -> bool:
  """Returns whether `attend` takes a prefix_BT.

  Args:
    kernel, dtype: See `attend`; the dtype is that of queries.
    platform: 'cpu', 'gpu' or 'tpu'.
  """
  if kernel == 'auto':
    kernel = _best(platform, jnp.dtype(dtype))
  return kernel not in ('flash', 'splash')


def _best(platform: str, dtype) -> str:
  if platform == 'tpu':
    return 'splash'
  return 'flash' if platform == 'gpu' and dtype.itemsize == 2 else 'blocked'


def _on_each_device(function, qkv, rows, layout: Layout):
  """Runs a kernel on each device's sequences and heads separately.

  Args:
    function: Function of the arrays of both.
    qkv: Queries, keys and values, [B, T, heads, width].
    rows: Arrays [B, T].
    layout: The mesh.
  """
  if layout.mesh.size == 1:
    return function(*qkv, *rows)
  heads = layout.fitting_spec(qkv[1].shape, 'B_nH')
  return jax.shard_map(
    function,
    mesh=layout.mesh,
    in_specs=(heads,) * len(qkv) + (PartitionSpec(heads[0]),) * len(rows),
    out_specs=heads,
    check_vma=False,
  )(*qkv, *rows)


def _plain(q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT=None, *, scale: float):
  B, T, N, H = q_BTNH.shape
  K = k_BTKH.shape[2]
  score_BKMTS = scale * jnp.einsum(
    'BTKMH,BSKH->BKMTS',
    q_BTNH.reshape(B, T, K, N // K, H),
    k_BTKH,
    preferred_element_type=quant.wide(q_BTNH.dtype),
  )
  segment_B1S = segment_BT[:, None]
  see_BTS = segment_BT[:, :, None] == segment_B1S
  if prefix_BT is not None:
    prefix_BT1 = prefix_BT[:, :, None]
    see_BTS |= (prefix_BT1 == segment_B1S) & (prefix_BT1 > 0)
  see_BTS &= jnp.tri(T, dtype=bool)
  score_BKMTS = jnp.where(see_BTS[:, None, None], score_BKMTS, NEG_INF)
  prob_BKMTS = jax.nn.softmax(score_BKMTS, -1).astype(v_BTKU.dtype)
  mix_BTKMU = jnp.einsum('BKMTS,BSKU->BTKMU', prob_BKMTS, v_BTKU)
  return mix_BTKMU.reshape(B, T, N, -1)


def _blocked(
  q_BTNH,
  k_BTKH,
  v_BTKU,
  segment_BT,
  prefix_BT=None,
  *,
  scale: float,
  in_turn: bool,
):
  """A CPU works on one sequence after another, other devices on all at once."""
  together = 1 if in_turn else q_BTNH.shape[0]
  return blocked.attention(
    q_BTNH, k_BTKH, v_BTKU, segment_BT, prefix_BT, scale, together
  )


_TILE = 128  # Tokens per tile of the fused kernels, which need whole tiles.


def _padded(multiple: int, segment_BT, *x_BTNH):
  """Pads sequences to a multiple of tokens; padding is a separate segment."""
  pad = ((0, 0), (0, -segment_BT.shape[1] % multiple))
  return (
    jnp.pad(segment_BT, pad, constant_values=-1),
    *(jnp.pad(x, (*pad, (0, 0), (0, 0))) for x in x_BTNH),
  )


def _flash(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, *, scale: float, interpret: bool
):
  (_, T, N, H), (K, U) = q_BTNH.shape, v_BTKU.shape[2:]
  segment_BT, *qkv = _padded(_TILE, segment_BT, q_BTNH, k_BTKH, v_BTKU)
  wide = max(H, U)  # The kernel takes one width for keys and values.
  q, k, v = (
    jnp.pad(x, ((0, 0),) * 3 + ((0, wide - x.shape[-1]),)) for x in qkv
  )
  mix_BTNH = flash.mha(
    q,
    *(jnp.repeat(x, N // K, axis=2) for x in (k, v)),
    segment_BT,
    sm_scale=scale,
    causal=True,
    interpret=interpret,
  )
  return mix_BTNH[:, :T, :, :U]


def _splash(
  q_BTNH, k_BTKH, v_BTKU, segment_BT, *, scale: float, interpret: bool
):
  T, N = q_BTNH.shape[1:3]
  # Blocks must divide the length: pad to whole blocks if there are several.
  segment_BT, *qkv = _padded(
    _TILE if T <= _SPLASH_BLOCK else _SPLASH_BLOCK,
    segment_BT,
    q_BTNH * scale,
    k_BTKH,
    v_BTKU,
  )
  kernel = _splash_kernel(N, segment_BT.shape[1], interpret)

  def one(q, k, v, segment):
    return kernel(q, k, v, splash.SegmentIds(q=segment, kv=segment))

  q, k, v = (x.swapaxes(1, 2) for x in qkv)
  mix_BNTU = jax.vmap(one)(q, k, v, segment_BT)
  return mix_BNTU.swapaxes(1, 2)[:, :T]


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
