"""Grouped-query attention (GQA).

An attention module has three methods; MLA in mla.py has the same:
  __call__(x_BTD, position_BT, segment_BT, prefix_BT) → [B, T, D], for whole
    sequences;
  entry(x, position) → [..., K, X], the cache entry of a token in one layer;
  extend(x_BTD, position_BT, view) → [B, T, D], for new tokens with a cache.
"""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.config.schema.model import ModelConfig
from r1jax.model import cache
from r1jax.model.kernels import attend
from r1jax.model.layers import RMSNorm, linear, merge_heads, weight
from r1jax.model.rope import rotate, softmax_factor
from r1jax.sharding import Layout


class GQA(nn.Module):
  """Grouped-query attention, with Qwen2's biases or Qwen3's head norms."""

  config: ModelConfig
  layout: Layout

  def setup(self):
    c = self.config
    D, N, K, H = (
      c.hidden_size,
      c.num_attention_heads,
      c.num_key_value_heads,
      c.head_dim,
    )
    self.q_DNH = weight(self, 'q', 'DNH', (D, N, H), c.initializer_range)
    self.k_DKH = weight(self, 'k', 'DKH', (D, K, H), c.initializer_range)
    self.v_DKH = weight(self, 'v', 'DKH', (D, K, H), c.initializer_range)
    self.out_NHD = weight(self, 'out', 'NHD', (N, H, D), c.initializer_range)
    if c.qkv_bias:
      self.q_bias_NH = weight(self, 'q_bias', 'NH', (N, H), 0.0)
      self.k_bias_KH = weight(self, 'k_bias', 'KH', (K, H), 0.0)
      self.v_bias_KH = weight(self, 'v_bias', 'KH', (K, H), 0.0)
    if c.qk_norm:
      self.q_norm, self.k_norm = (
        RMSNorm(c.rms_norm_eps),
        RMSNorm(c.rms_norm_eps),
      )
    self.times = partial(linear, layout=self.layout, fp8=c.fp8)
    self.merge = partial(merge_heads, layout=self.layout, fp8=c.fp8)
    self.scale = H**-0.5 * softmax_factor(c.rope)

  def entry(self, x: jax.Array, position: jax.Array) -> jax.Array:
    """Computes cache entries: [..., D] → [..., K, 2·H], key and value."""
    k = self.times(x, self.k_DKH)
    v = self.times(x, self.v_DKH)
    if self.config.qkv_bias:
      k, v = k + self.k_bias_KH, v + self.v_bias_KH
    if self.config.qk_norm:
      k = self.k_norm(k)
    k = rotate(k, position[..., None], self.config.rope)
    return jnp.concatenate([k, v], -1)

  def query(self, x: jax.Array, position: jax.Array) -> jax.Array:
    """Computes rotated queries: [..., D] → [..., N, H]."""
    q = self.times(x, self.q_DNH)
    if self.config.qkv_bias:
      q += self.q_bias_NH
    if self.config.qk_norm:
      q = self.q_norm(q)
    return rotate(q, position[..., None], self.config.rope)

  def __call__(self, x_BTD, position_BT, segment_BT, prefix_BT=None):
    """Attends causally within segments and prefixes; returns [B, T, D]."""
    entry_BTKX = self.entry(x_BTD, position_BT)
    k_BTKH, v_BTKH = jnp.split(self.layout.constrain(entry_BTKX, 'BTKX'), 2, -1)
    mix_BTNH = attend(
      self.layout.constrain(self.query(x_BTD, position_BT), 'BTNH'),
      k_BTKH,
      v_BTKH,
      segment_BT,
      self.scale,
      self.layout,
      self.config.attention_kernel,
      prefix_BT,
    )
    return self.merge(mix_BTNH, self.out_NHD)

  def extend(self, x_BTD, position_BT, view: cache.View):
    """Attends from T new tokens per sequence to the cache; [B, T, D]."""
    c = self.config
    q_BTNH = self.query(x_BTD, position_BT)
    mix_BTKMH = cache.attend(
      q_BTNH.reshape(*q_BTNH.shape[:2], c.num_key_value_heads, -1, c.head_dim),
      view,
      lambda x: jnp.split(x, 2, -1),
      c.cache_parts,
      self.scale,
      self.layout,
      'BTKmH',
    )
    return self.merge(mix_BTKMH.reshape(q_BTNH.shape), self.out_NHD)
