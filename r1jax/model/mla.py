"""Multi-head latent attention (DeepSeek-V2 section 2.1, V3 eq. 1–11).

Keys and values are up-projections of one small latent c of C numbers a token;
position enters through R more, shared by all heads. Training expands the
latent into per-head keys and values. Decoding absorbs the up-projections into
the query and the output instead, and so attends to the latent cache itself:
C + R numbers a token and layer, no more.
"""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import cache, quant
from r1jax.model.config import ModelConfig
from r1jax.model.kernels import attend
from r1jax.model.layers import RMSNorm, linear, merge_heads, weight
from r1jax.model.rope import rotate
from r1jax.sharding import Layout

LATENT_NORM_EPS = (
  1e-6  # Of the two latents' norms, whatever config.rms_norm_eps.
)


class MLA(nn.Module):
  config: ModelConfig
  layout: Layout

  def setup(self):
    c = self.config
    D, N, Q, C = (
      c.hidden_size,
      c.num_attention_heads,
      c.q_lora_rank,
      c.kv_lora_rank,
    )
    H, R, U, std = (
      c.qk_nope_head_dim,
      c.qk_rope_head_dim,
      c.v_head_dim,
      c.initializer_range,
    )
    if Q:
      self.q_down_DQ = weight(self, 'q_down', 'Dq', (D, Q), std)
      self.q_norm = RMSNorm(LATENT_NORM_EPS)
      self.q_up_QNJ = weight(self, 'q_up', 'QNJ', (Q, N, H + R), std)
    else:
      self.q_DNJ = weight(self, 'q', 'DNJ', (D, N, H + R), std)
    self.kv_down_DX = weight(self, 'kv_down', 'Dx', (D, C + R), std)
    self.kv_norm = RMSNorm(LATENT_NORM_EPS)
    self.k_up_CNH = weight(self, 'k_up', 'CNH', (C, N, H), std)
    self.v_up_CNU = weight(self, 'v_up', 'CNU', (C, N, U), std)
    self.out_NUD = weight(self, 'out', 'NUD', (N, U, D), std)
    shared = dict(layout=self.layout, fp8=c.fp8)
    self.times = partial(linear, **shared)
    self.merge = partial(merge_heads, **shared)
    self.scale = (H + R) ** -0.5 * c.rope.softmax_factor

  def entry(self, x: jax.Array, position: jax.Array) -> jax.Array:
    """What the cache stores: [..., D] → [..., 1, X]."""
    return self._latent(x, position)[..., None, :]

  def _latent(self, x, position):
    """[..., D] → [..., X]: normed c, then the rotated key."""
    C = self.config.kv_lora_rank
    down = self.times(x, self.kv_down_DX)
    key = rotate(down[..., C:], position, self.config.rope)
    return jnp.concatenate([self.kv_norm(down[..., :C]), key], -1)

  def query(self, x: jax.Array, position: jax.Array):
    """[..., D] → the plain part [..., N, H] and the rotated [..., N, R]."""
    H = self.config.qk_nope_head_dim
    if self.config.q_lora_rank:
      low = self.q_norm(self.times(x, self.q_down_DQ))
      q = self.times(low, self.q_up_QNJ)
    else:
      q = self.times(x, self.q_DNJ)
    return q[..., :H], rotate(q[..., H:], position[..., None], self.config.rope)

  def __call__(self, x_BTD, position_BT, segment_BT):
    """Causal attention within segments, expanded form → [B, T, D]."""
    C, N = self.config.kv_lora_rank, self.config.num_attention_heads
    q_BTNH, q_rope_BTNR = self.query(x_BTD, position_BT)
    latent_BTX = self._latent(x_BTD, position_BT)
    c_BTC, k_rope_BTR = latent_BTX[..., :C], latent_BTX[..., C:]
    # One product serves both parts of the score: the rotated key is repeated.
    q_BTNJ = jnp.concatenate([q_BTNH, q_rope_BTNR], -1)
    k_rope_BTNR = jnp.repeat(k_rope_BTR[:, :, None], N, axis=2)
    k_BTNH = self.times(c_BTC, self.k_up_CNH)
    k_BTNJ = jnp.concatenate([k_BTNH, k_rope_BTNR], -1)
    v_BTNU = self.times(c_BTC, self.v_up_CNU)
    mix_BTNU = attend(
      q_BTNJ,
      k_BTNJ,
      v_BTNU,
      segment_BT,
      self.scale,
      self.layout,
      self.config.attention_kernel,
    )
    return self.merge(mix_BTNU, self.out_NUD)

  def extend(self, x_BTD, position_BT, view: cache.View):
    """T more tokens of each row, absorbed form → [B, T, D].

    A query in latent space, q·k = (q W_kᵀ)·c, makes attention a matrix product
    with the cache: every head of a row multiplies the one latent.
    """
    c, C = self.config, self.config.kv_lora_rank
    q_BTNH, q_rope_BTNR = self.query(x_BTD, position_BT)
    k_up_CNH, v_up_CNU = self.k_up_CNH, self.v_up_CNU
    split = lambda x: (x, x)
    if c.fp8:  # What the expanded form multiplies, rounded as there.
      k_up_CNH, v_up_CNU = _rounded(k_up_CNH), _rounded(v_up_CNU)

      def split(x):
        rounded = quant.tiles(x[..., :C], -1).astype(x.dtype)
        return (jnp.concatenate([rounded, x[..., C:]], -1),) * 2

    # Brought into the order of tokens once: fused with what follows, XLA's code
    # on CPU picks each number from a head of its own.
    q_BTNC = jax.lax.optimization_barrier(
      jnp.einsum('BTNH,CNH->NBTC', q_BTNH, k_up_CNH).transpose(1, 2, 0, 3)
    )
    q_BTNX = jnp.concatenate([q_BTNC.astype(x_BTD.dtype), q_rope_BTNR], -1)
    mix_BTKNX = cache.attend(  # Whole entries: no part of the cache is copied.
      q_BTNX[:, :, None],
      view,
      split,
      c.cache_parts,
      self.scale,
      self.layout,
      'BTkNX',
    )
    mix_BTNU = jnp.einsum('BTNC,CNU->BTNU', mix_BTKNX[:, :, 0, :, :C], v_up_CNU)
    return self.merge(mix_BTNU.astype(x_BTD.dtype), self.out_NUD)


def _rounded(w_CNH: jax.Array) -> jax.Array:
  """In FP8 blocks of the matrix that the expanded form multiplies with."""
  return quant.blocks(w_CNH.reshape(w_CNH.shape[0], -1)).reshape(w_CNH.shape)
