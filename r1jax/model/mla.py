"""Multi-head latent attention (DeepSeek-V2 section 2.1, V3 eq. 1–11).

Keys and values are up-projections of one latent c of C numbers per token;
position enters through a rotated key of R more, shared by all heads. Training
expands the latent into per-head keys and values. Decoding absorbs the
up-projections into the query and the output instead, and attends to the latent
cache itself, which holds C + R numbers per token and layer.
"""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import cache, quant
from r1jax.model.kernels import attend
from r1jax.model.layers import RMSNorm, linear, merge_heads, weight
from r1jax.model.rope import rotate, softmax_factor
from r1jax.sharding import Layout

# ε of the norms of the two latents; rms_norm_eps does not apply to them.
LATENT_NORM_EPS = 1e-6


class MLA(nn.Module):
  """Multi-head latent attention; attention.py lists the methods."""

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
    self.times = partial(linear, layout=self.layout, fp8=c.fp8)
    self.merge = partial(merge_heads, layout=self.layout, fp8=c.fp8)
    self.scale = (H + R) ** -0.5 * softmax_factor(c.rope)

  def entry(self, x: jax.Array, position: jax.Array) -> jax.Array:
    """Computes the cache entry of each token: [..., D] → [..., 1, X]."""
    return self._latent(x, position)[..., None, :]

  def _latent(self, x, position):
    """Computes the normed latent and the rotated key: [..., D] → [..., X]."""
    C = self.config.kv_lora_rank
    down = self.times(x, self.kv_down_DX)
    key = rotate(down[..., C:], position, self.config.rope)
    return jnp.concatenate([self.kv_norm(down[..., :C]), key], -1)

  def query(self, x: jax.Array, position: jax.Array):
    """Computes queries: the part without position [..., N, H], and the rotated
    part [..., N, R].
    """
    H = self.config.qk_nope_head_dim
    if self.config.q_lora_rank:
      low = self.q_norm(self.times(x, self.q_down_DQ))
      q = self.times(low, self.q_up_QNJ)
    else:
      q = self.times(x, self.q_DNJ)
    return q[..., :H], rotate(q[..., H:], position[..., None], self.config.rope)

  def _expanded(self, c_BTC, up_CNX):
    """Expands the latents of whole rows: [B, T, C] → [B, T, N, X]."""
    if self.layout.size('T') > 1:
      # Else each device would expand its shard of C for all heads. XLA has no
      # single exchange from there to shards of heads, so C is gathered first.
      up_CNX = self.layout.constrain(up_CNX, '_NX')
      up_CNX = self.layout.constrain(up_CNX, '_nX')
    return self.layout.constrain(self.times(c_BTC, up_CNX), 'B_nX')

  def __call__(self, x_BTD, position_BT, segment_BT, prefix_BT=None):
    """Attends causally within segments and prefixes, in expanded form; returns
    [B, T, D].
    """
    C, N = self.config.kv_lora_rank, self.config.num_attention_heads
    constrain = self.layout.constrain
    q_BTNH, q_rope_BTNR = self.query(x_BTD, position_BT)
    latent_BTX = constrain(self._latent(x_BTD, position_BT), 'BTX')
    # A device needs keys and values of all tokens for some of the heads. The
    # latent is what is gathered: it is a fraction of their size.
    latent_BTX = constrain(latent_BTX, 'B_X')
    c_BTC, k_rope_BTR = latent_BTX[..., :C], latent_BTX[..., C:]
    # Repeating the rotated key makes both parts of the score one product.
    q_BTNJ = jnp.concatenate([q_BTNH, q_rope_BTNR], -1)
    k_rope_BTNR = jnp.repeat(k_rope_BTR[:, :, None], N, axis=2)
    k_BTNH = self._expanded(c_BTC, self.k_up_CNH)
    k_BTNJ = jnp.concatenate([k_BTNH, k_rope_BTNR], -1)
    v_BTNU = self._expanded(c_BTC, self.v_up_CNU)
    mix_BTNU = attend(
      constrain(q_BTNJ, 'BTNJ'),
      k_BTNJ,
      v_BTNU,
      segment_BT,
      self.scale,
      self.layout,
      self.config.attention_kernel,
      prefix_BT,
    )
    return self.merge(mix_BTNU, self.out_NUD)

  def extend(self, x_BTD, position_BT, view: cache.View):
    """Attends from T new tokens per sequence to the cache, in absorbed form.

    The up-projections are applied to the queries instead of the cache. Since q·k = (q W_kᵀ)·c, attention with queries in latent space is a product
    with the cache itself, whose one latent all heads of a sequence share.

    Args:
      x_BTD: Hidden states of the new tokens.
      position_BT: int32, their positions.
      view: The cache that they attend to.

    Returns:
      [B, T, D].
    """
    c, C = self.config, self.config.kv_lora_rank
    q_BTNH, q_rope_BTNR = self.query(x_BTD, position_BT)
    k_up_CNH, v_up_CNU = self.k_up_CNH, self.v_up_CNU
    split = lambda x: (x, x)
    if c.fp8:  # Round the operands as the expanded form does.
      k_up_CNH, v_up_CNU = _rounded(k_up_CNH), _rounded(v_up_CNU)

      def split(x):
        rounded = quant.tiles(x[..., :C], -1).astype(x.dtype)
        return (jnp.concatenate([rounded, x[..., C:]], -1),) * 2

    # The barrier transposes once. Fused into the next product, XLA's CPU code
    # would gather each number from another head.
    q_BTNC = jax.lax.optimization_barrier(
      jnp.einsum('BTNH,CNH->NBTC', q_BTNH, k_up_CNH).transpose(1, 2, 0, 3)
    )
    q_BTNX = jnp.concatenate([q_BTNC.astype(x_BTD.dtype), q_rope_BTNR], -1)
    mix_BTKNX = cache.attend(  # Values are whole entries, which saves a copy.
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
  """Rounds an up-projection in the FP8 blocks of the expanded form's matrix."""
  return quant.blocks(w_CNH.reshape(w_CNH.shape[0], -1)).reshape(w_CNH.shape)
