"""Decoding over a shared prefix equals the full forward, for every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model import kernels
from r1jax.model.kernels import attend
from r1jax.sharding import Layout, make_mesh
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
  logits, cache, _ = jax.jit(
      lambda v: model.apply(v, prompt, valid, G, own, method='prefill')
  )(variables)
  step = jax.jit(lambda v, t, c, s: model.apply(v, t, c, s, method='decode'))
  got = [np.repeat(np.asarray(logits)[:, None], G, 1)]
  for slot in range(own):
    logits, cache, _ = step(variables, after[:, :, slot], cache, jnp.int32(slot))
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
    _, cache, _ = model.apply(
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


def _attend_and_gradients(kernel, heads, kv_heads, tokens, layout):
  """Packed segments; the last token of the second row is padding."""
  rng = np.random.default_rng(0)

  def draw(n, width):
    return jnp.asarray(rng.normal(size=(2, tokens, n, width)), jnp.float32)

  q, k, v = draw(heads, 24), draw(kv_heads, 24), draw(kv_heads, 16)
  segment = jnp.asarray(np.arange(tokens) >= [[70], [tokens - 1]], jnp.int32)
  cotangent = draw(heads, 16)
  out, vjp = jax.vjp(jax.jit(
      lambda *qkv: attend(*qkv, segment, 0.2, layout, kernel)), q, k, v)
  return out, *vjp(cotangent)


@pytest.mark.parametrize('kernel,heads,kv_heads,tokens', [
    ('splash', 2, 2, 200), ('splash', 4, 2, 128), ('flash', 2, 2, 200),
    ('flash', 4, 2, 128), ('blocked', 2, 2, 200), ('blocked', 4, 2, 128), ('blocked', 4, 1, 90), ('blocked', 2, 2, 2)])
def test_a_fused_kernel_equals_the_plain_one(kernel, heads, kv_heads, tokens):
  """Lengths that are no whole tile, shared keys; value and gradients."""
  shape = heads, kv_heads, tokens, one_device()
  for plain, fused in zip(_attend_and_gradients('plain', *shape),
                          _attend_and_gradients(kernel, *shape)):
    np.testing.assert_allclose(fused, plain, atol=2e-5)


def test_the_fused_kernel_of_a_gpu_compiles_to_triton():
  """For MLA's true widths: what interpretation here cannot tell."""
  shapes = [jax.ShapeDtypeStruct((1, 2, 300, width), jnp.bfloat16)
            for width in (192, 192, 128)]

  def gradient(q, k, v, segment):
    def loss(*qkv):
      return kernels._flash(*qkv, segment, 0.1, False).astype(
          jnp.float32).sum()
    return jax.grad(loss, (0, 1, 2))(q, k, v)

  triton = '__gpu$xla.gpu.triton'
  lowered = jax.export.export(
      jax.jit(gradient), platforms=['cuda'], disabled_checks=[
          jax.export.DisabledSafetyCheck.custom_call(triton)])(
              *shapes, jax.ShapeDtypeStruct((1, 300), jnp.int32))
  assert lowered.mlir_module().count(f'custom_call @{triton}') == 3


@pytest.mark.parametrize('platform,dtype,kernel', [
    ('tpu', 'float32', 'splash'), ('gpu', 'bfloat16', 'flash'),
    ('gpu', 'float32', 'blocked'), ('cpu', 'bfloat16', 'blocked')])
def test_a_device_gets_its_own_kernel(platform, dtype, kernel):
  assert kernels._best(platform, jnp.dtype(dtype)) == kernel


def test_a_fused_kernel_loops_over_rows_and_blocks(monkeypatch):
  """Seven blocks of at most 16 columns, one row at a time."""
  shape = 4, 2, 100, one_device()
  want = _attend_and_gradients('plain', *shape)
  monkeypatch.setattr(kernels, '_BLOCK', 16)
  monkeypatch.setattr(kernels, '_CACHED_SCORES', 1)
  for plain, fused in zip(want, _attend_and_gradients('blocked', *shape)):
    np.testing.assert_allclose(fused, plain, atol=2e-5)


def test_a_fused_kernel_on_a_mesh_equals_one_device():
  layout = Layout(make_mesh(dict(data=2, tensor=4)))
  for one, eight in zip(_attend_and_gradients('blocked', 4, 4, 90,
                                              one_device()),
                        _attend_and_gradients('blocked', 4, 4, 90, layout)):
    np.testing.assert_allclose(eight, one, atol=2e-5)


def test_long_sequences_unroll_few_blocks():
  assert len(kernels._spans(100_000)) == 16
  assert kernels._spans(100) == [(0, 64), (64, 100)]
