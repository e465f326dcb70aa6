"""Attention itself, and grouped-query attention with it.

An attention module has three methods, and MLA in mla.py has the same:
  entry(x, position) → [..., X], what a token leaves in the cache of a layer;
  __call__(x_BTD, position_BT, segment_BT) → [B, T, D] and the entries;
  decode(x_PGD, …) → [P, G, D], one token for each of P·G sequences.
"""

from functools import partial

from flax import linen as nn
import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.model import quant
from r1jax.model.config import ModelConfig
from r1jax.model.layers import RMSNorm, linear, merge_heads, weight
from r1jax.model.rope import rotate
from r1jax.sharding import Layout

NEG_INF = -1e30  # Finite, so that a row with nothing to attend to has no NaN.


def attend(q_BTNH, k_BTKH, v_BTKU, segment_BT, scale: float, layout: Layout,
           kernel: str):
  """Causal attention within segments; softmax in float32.

  Query heads n·M … n·M + M − 1 share key head n, with M = N/K.

  Args:
    q_BTNH: Queries.
    k_BTKH: Keys.
    v_BTKU: Values.
    segment_BT: int32; tokens of other segments are not seen.
    scale: Of the scores.
    layout: Of the mesh.
    kernel: 'plain'; 'splash', JAX's fused kernel for TPU, which is interpreted
      elsewhere; or 'auto': splash on TPU.

  Returns:
    [B, T, N, U]
  """
  if kernel == 'auto':
    kernel = 'splash' if layout.platform == 'tpu' else 'plain'
  q_BNTH, k_BKTH, v_BKTU = (
      layout.constrain(x.swapaxes(1, 2), 'BNTH')  # As a matrix product wants.
      for x in (q_BTNH, k_BTKH, v_BTKU))
  function = {'plain': _plain, 'splash': _splash}[kernel]
  mix_BNTU = function(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale, layout)
  return mix_BNTU.swapaxes(1, 2)


def _plain(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale, layout):
  del layout
  B, N, T, _ = q_BNTH.shape
  K = k_BKTH.shape[1]
  q_BKRH = q_BNTH.reshape(B, K, N // K * T, -1)  # R = M·T rows.
  score_BKRS = jnp.einsum('BKRH,BKSH->BKRS', q_BKRH, k_BKTH,
                          preferred_element_type=quant.wide(q_BNTH.dtype))
  see_BTS = (jnp.tril(jnp.ones((T, T), bool))
             & (segment_BT[:, :, None] == segment_BT[:, None, :]))
  score_BKMTS = jnp.where(
      see_BTS[:, None, None], score_BKRS.reshape(B, K, -1, T, T) * scale,
      NEG_INF)
  prob_BKRS = jax.nn.softmax(score_BKMTS, -1).astype(v_BKTU.dtype).reshape(
      B, K, -1, T)
  mix_BKRU = jnp.einsum('BKRS,BKSU->BKRU', prob_BKRS, v_BKTU)
  return mix_BKRU.reshape(B, N, T, -1)


_LANES = 128  # Splash works on whole tiles of so many tokens.


def _splash(q_BNTH, k_BKTH, v_BKTU, segment_BT, scale, layout):
  T = q_BNTH.shape[2]
  spare = -T % _LANES
  if spare:  # Tokens of a segment of their own, after all others.
    pad = ((0, 0), (0, 0), (0, spare), (0, 0))
    q_BNTH, k_BKTH, v_BKTU = (jnp.pad(x, pad) for x in (q_BNTH, k_BKTH, v_BKTU))
    segment_BT = jnp.pad(segment_BT, pad[1:3], constant_values=-1)
  heads_spec = layout.fitting_spec(k_BKTH.shape, 'BNTH')
  rows_spec = PartitionSpec(heads_spec[0])
  interpret = layout.platform != 'tpu'

  def on_device(q_BNTH, k_BKTH, v_BKTU, segment_BT):
    kernel = _splash_kernel(*q_BNTH.shape[1:3], interpret)

    def one(q, k, v, segment):
      return kernel(q, k, v, splash.SegmentIds(q=segment, kv=segment))

    return jax.vmap(one)(q_BNTH, k_BKTH, v_BKTU, segment_BT)

  mix_BNTU = jax.shard_map(
      on_device, mesh=layout.mesh, in_specs=(heads_spec,) * 3 + (rows_spec,),
      out_specs=heads_spec, check_vma=False)(
          q_BNTH * scale, k_BKTH, v_BKTU, segment_BT)
  return mix_BNTU[:, :, :T]


def _splash_kernel(heads: int, tokens: int, interpret: bool):
  def block(limit):
    return next(b for b in (2048, 1024, 512, 256, _LANES)
                if b <= limit and tokens % b == 0)

  # The backward kernel keeps a copy of dq for each of its key blocks: few.
  return splash.make_splash_mha(
      splash.MultiHeadMask([splash.CausalMask((tokens, tokens))] * heads),
      block_sizes=splash.BlockSizes(
          block_q=block(512), block_kv=block(512), block_q_dkv=block(512),
          block_kv_dkv=block(2048), block_kv_dkv_compute=block(512),
          use_fused_bwd_kernel=True),
      head_shards=1, q_seq_shards=1, interpret=interpret)


def attend_cached(prefix_PKRS, own_PGKMS, valid_PS, slot, scale: float):
  """The probabilities of one new token over a prompt and its own tokens.

  Args:
    prefix_PKRS: Scores over the prompt's S slots; R = G·M rows, any K.
    own_PGKMS: Scores over each sample's own slots.
    valid_PS: False on the prompt's padding.
    slot: Scalar; own slots beyond it are empty.

  Returns:
    Both as probabilities, float32, in the same shapes.
  """
  P, G, K, M, own_slots = own_PGKMS.shape
  prefix = prefix_PKRS.reshape(P, K, G, M, -1).swapaxes(1, 2)
  score = jnp.concatenate([
      jnp.where(valid_PS[:, None, None, None], prefix * scale, NEG_INF),
      jnp.where(jnp.arange(own_slots) <= slot, own_PGKMS * scale, NEG_INF)],
                          -1)
  prob = jax.nn.softmax(score, -1)
  S = prefix.shape[-1]
  of_prefix = prob[..., :S].swapaxes(1, 2).reshape(P, K, G * M, S)
  return of_prefix, prob[..., S:]


class GQA(nn.Module):
  """Grouped-query attention, with Qwen2's biases or Qwen3's head norms."""

  config: ModelConfig
  layout: Layout

  def setup(self):
    c = self.config
    D, N, K, H = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
    self.q_DNH = weight(self, 'q', 'DNH', (D, N, H), c.init_std)
    self.k_DKH = weight(self, 'k', 'DKH', (D, K, H), c.init_std)
    self.v_DKH = weight(self, 'v', 'DKH', (D, K, H), c.init_std)
    self.out_NHD = weight(self, 'out', 'NHD', (N, H, D), c.init_std)
    if c.qkv_bias:
      self.q_bias_NH = weight(self, 'q_bias', 'NH', (N, H), 0.0)
      self.k_bias_KH = weight(self, 'k_bias', 'KH', (K, H), 0.0)
      self.v_bias_KH = weight(self, 'v_bias', 'KH', (K, H), 0.0)
    if c.qk_norm:
      self.q_norm, self.k_norm = RMSNorm(c.norm_eps), RMSNorm(c.norm_eps)
    shared = dict(layout=self.layout, fp8=c.fp8)
    self.times = partial(linear, **shared)
    self.merge = partial(merge_heads, **shared)
    self.scale = H ** -0.5 * c.rope.softmax_factor

  def entry(self, x: jax.Array, position: jax.Array) -> jax.Array:
    """[..., D] → [..., X]: rotated keys, then values, of all K heads."""
    k = self.times(x, self.k_DKH)
    v = self.times(x, self.v_DKH)
    if self.config.qkv_bias:
      k, v = k + self.k_bias_KH, v + self.v_bias_KH
    if self.config.qk_norm:
      k = self.k_norm(k)
    k = rotate(k, position[..., None], self.config.rope)
    return jnp.concatenate([k, v], -1).reshape(*x.shape[:-1], -1)

  def query(self, x: jax.Array, position: jax.Array) -> jax.Array:
    """[..., D] → [..., N, H], rotated."""
    q = self.times(x, self.q_DNH)
    if self.config.qkv_bias:
      q += self.q_bias_NH
    if self.config.qk_norm:
      q = self.q_norm(q)
    return rotate(q, position[..., None], self.config.rope)

  def _keys_values(self, entry: jax.Array):
    """[..., X] → keys and values, [..., K, H] each."""
    K, H = self.config.num_kv_heads, self.config.head_dim
    kv = entry.reshape(*entry.shape[:-1], K, 2 * H)
    return kv[..., :H], kv[..., H:]

  def __call__(self, x_BTD, position_BT, segment_BT):
    entry_BTX = self.entry(x_BTD, position_BT)
    k_BTKH, v_BTKH = self._keys_values(entry_BTX)
    mix_BTNH = attend(self.query(x_BTD, position_BT), k_BTKH, v_BTKH,
                      segment_BT, self.scale, self.layout,
                      self.config.attention_kernel)
    return self.merge(mix_BTNH, self.out_NHD), entry_BTX

  def decode(self, x_PGD, position_PG, prefix_PSX, valid_PS, own_PGSX, slot):
    """See MLA.decode: the same arguments, over K heads of keys and values."""
    c = self.config
    P, G, K = *x_PGD.shape[:2], c.num_kv_heads
    q_PGKMH = self.query(x_PGD, position_PG).reshape(P, G, K, -1, c.head_dim)
    prefix_k, prefix_v = self._keys_values(prefix_PSX)
    own_k, own_v = self._keys_values(own_PGSX)
    q_PKRH = q_PGKMH.swapaxes(1, 2).reshape(P, K, -1, c.head_dim)
    of_prefix, of_own = attend_cached(
        jnp.einsum('PKRH,PSKH->PKRS', q_PKRH, prefix_k,
                   preferred_element_type=quant.wide(q_PKRH.dtype)),
        jnp.einsum('PGKMH,PGSKH->PGKMS', q_PGKMH, own_k,
                   preferred_element_type=quant.wide(q_PKRH.dtype)),
        valid_PS, slot, self.scale)
    mix_PKRH = jnp.einsum(
        'PKRS,PSKH->PKRH', of_prefix.astype(x_PGD.dtype), prefix_v)
    mix_PGKMH = mix_PKRH.reshape(P, K, G, -1, c.head_dim).swapaxes(1, 2)
    mix_PGKMH += jnp.einsum(
        'PGKMS,PGSKH->PGKMH', of_own.astype(x_PGD.dtype), own_v)
    return self.merge(mix_PGKMH.reshape(P, G, c.num_heads, c.head_dim),
                      self.out_NHD)
