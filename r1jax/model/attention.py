"""Grouped-query attention, and attention of one new token over a cache.

An attention module has three methods, and MLA in mla.py has the same:
  entry(x, position) → [..., X], what a token leaves in the cache of a layer;
  __call__(x_BTD, position_BT, segment_BT) → [B, T, D] and the entries;
  decode(x_PGD, …) → [P, G, D], one token for each of P·G sequences.
"""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import quant
from r1jax.model.config import ModelConfig
from r1jax.model.kernels import NEG_INF, attend
from r1jax.model.layers import RMSNorm, linear, merge_heads, weight
from r1jax.model.rope import rotate
from r1jax.sharding import Layout


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
