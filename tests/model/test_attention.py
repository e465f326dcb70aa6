"""Decoding over a shared prefix equals the full forward, for every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model.attention import attend
from tests.conftest import (
    dense_config, forward, make, one_device, small_config)


@pytest.mark.parametrize('config', [
    small_config(), dense_config(),
    small_config(fp8=True, first_k_dense=3), dense_config(fp8=True),
    dense_config(num_kv_heads=4, qk_norm=False),
    dense_config(num_kv_heads=1, tie_embeddings=True)],
    ids=['mla', 'gqa', 'mla in fp8', 'gqa in fp8', 'mha', 'mqa'])
def test_a_group_that_shares_a_prefix_decodes_as_the_full_forward(config):
  """Two prompts of different lengths, three samples each."""
  model, params = make(config)
  rng = np.random.default_rng(0)
  P, G, S, own = 2, 3, 5, 4
  valid = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
  prompt = rng.integers(0, 32, (P, S)).astype(np.int32)
  after = rng.integers(0, 32, (P, G, own)).astype(np.int32)
  variables = {'params': params}
  logits, cache = jax.jit(
      lambda v: model.apply(v, prompt, valid, G, own, method='prefill')
  )(variables)
  step = jax.jit(lambda v, t, c, s: model.apply(v, t, c, s, method='decode'))
  got = [np.repeat(np.asarray(logits)[:, None], G, 1)]
  for slot in range(own):
    logits, cache = step(variables, after[:, :, slot], cache, jnp.int32(slot))
    got.append(np.asarray(logits))
  got = np.stack(got, 2)
  for p in range(P):
    for g in range(G):
      tokens = np.concatenate([prompt[p][valid[p]], after[p, g]])
      want = forward(model, params, tokens[None])[0, valid[p].sum() - 1:]
      np.testing.assert_allclose(got[p, g], want, atol=2e-5)


def test_the_cache_holds_what_the_config_says():
  for config in (small_config(), dense_config()):
    model, params = make(config)
    tokens = np.zeros((2, 3), np.int32)
    _, cache = model.apply(
        {'params': params}, tokens, tokens == 0, 1, 4, method='prefill')
    held = sum(x.size for x in cache.own)
    assert held == 2 * 4 * config.num_layers * config.cache_width
  assert small_config().cache_width == 8 + 4  # C + R, and nothing more.


@pytest.mark.parametrize('changes,message', [
    ({'num_kv_heads': 3}, 'num_kv_heads = 3 does not divide num_heads = 4'),
    ({'head_dim': 5}, 'head_dim must be even'),
    ({'attention': 'linear'}, "attention must be one of .*'linear'"),
    ({'rope': dense_config().rope.__dict__ | {'pairs': 'thirds'}},
     "pairs must be one of .*'thirds'"),
    ({'rope': dense_config().rope.__dict__ | {'low_freq_factor': 5.0}},
     'llama3 needs 0 < low_freq_factor < high_freq_factor'),
], ids=lambda value: str(value)[:30])
def test_a_wrong_attention_is_named(changes, message):
  with pytest.raises(UserError, match=message):
    dense_config(**changes)


@pytest.mark.parametrize('heads,kv_heads,tokens', [(2, 2, 200), (4, 2, 128)])
def test_the_fused_kernel_equals_the_plain_one(heads, kv_heads, tokens):
  """Packed segments, a length that is no whole tile, value and gradients."""
  rng = np.random.default_rng(0)

  def draw(n, width):
    return jnp.asarray(rng.normal(size=(2, tokens, n, width)), jnp.float32)

  q, k, v = draw(heads, 24), draw(kv_heads, 24), draw(kv_heads, 16)
  segment = jnp.asarray(np.arange(tokens) >= [[70], [tokens]], jnp.int32)
  cotangent = draw(heads, 16)
  found = []
  for kernel in ('plain', 'splash'):
    out, vjp = jax.vjp(jax.jit(
        lambda *qkv, kernel=kernel: attend(
            *qkv, segment, 0.2, one_device(), kernel)), q, k, v)
    found.append((out, *vjp(cotangent)))
  for plain, fused in zip(*found):
    np.testing.assert_allclose(fused, plain, atol=2e-5)
