"""Cached decoding equals the full forward, for every kind of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.launch import flops
from r1jax.model import kernels
from r1jax.model.kernels import attend
from r1jax.rollout.engine import Engine
from r1jax.rollout.sizes import EngineConfig
from r1jax.sharding import Layout, make_mesh
from tests.conftest import (
  continued,
  dense_config,
  forward,
  make,
  one_device,
  small_config,
)


@pytest.mark.parametrize(
  'config',
  [
    small_config(),
    dense_config(),
    small_config(fp8=True, first_k_dense_replace=3),
    dense_config(fp8=True),
    dense_config(
      num_key_value_heads=1, tie_word_embeddings=True, qk_norm=False
    ),
  ],
  ids=['mla', 'gqa', 'mla in fp8', 'gqa in fp8', 'mqa'],
)
def test_cached_decoding_equals_the_full_forward(config):
  """Decodes token by token with blocks of three, at different lengths."""
  model, params = make(config)
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 32, n) for n in (1, 3, 4, 9)]
  after = rng.integers(0, 32, (len(prompts), 7))
  got = continued(model, params, prompts, after)
  rows = np.zeros((len(prompts), 16), int)  # Causality hides the padding.
  for row, prompt, rest in zip(rows, prompts, after):
    row[: len(prompt) + 7] = np.concatenate([prompt, rest])
  want = forward(model, params, rows)
  for b, prompt in enumerate(prompts):
    np.testing.assert_allclose(
      got[b], want[b, len(prompt) - 1 : len(prompt) + 7], atol=2e-5
    )


def test_the_cache_holds_what_the_config_says():
  """MLA caches C + R numbers per token and layer."""
  for config in (small_config(), dense_config()):
    model, _ = make(config)
    engine = Engine(
      model,
      EngineConfig(
        max_num_seqs=2, max_model_len=12, block_size=4, kv_cache_tokens=40
      ),
    )
    tokens = 40 + 4  # A page is nobody's.
    pool = jax.tree.leaves(engine.new_kv_cache())
    assert sum(x.nbytes for x in pool) == (
      tokens * config.num_hidden_layers * config.cache_width * 4
    )
  assert small_config().cache_width == 8 + 4


@pytest.mark.parametrize(
  'config,worst',
  [(small_config(first_k_dense_replace=3), 0.05), (dense_config(), 0.05)],
  ids=['mla', 'gqa'],
)
def test_an_8_bit_cache_is_near(config, worst):
  """An entry is off by at most 1 / 254 of the largest number of its part."""
  model, params = make(config)
  rng = np.random.default_rng(1)
  prompts, after = [rng.integers(0, 32, 6)] * 2, rng.integers(0, 32, (2, 8))
  want = continued(model, params, prompts, after)
  got = continued(model, params, prompts, after, kv_cache_int8=True)
  assert 0 < np.abs(got - want).max() < worst * np.abs(want).max()
  pages = Engine(
    model, EngineConfig(max_num_seqs=2, max_model_len=12, kv_cache_int8=True)
  ).new_kv_cache()
  assert {x.entry_LYKSX.dtype for x in pages.values()} == {jnp.dtype('int8')}


@pytest.mark.slow
def test_many_blocks_equal_one_block():
  """Logits do not depend on the block size or on the length of a call."""
  model, params = make(small_config())
  rng = np.random.default_rng(2)
  prompts, after = [rng.integers(0, 32, 11)] * 3, rng.integers(0, 32, (3, 6))
  one = continued(model, params, prompts, after, block_size=32)
  many = continued(model, params, prompts, after, block_size=1, decode_steps=3)
  np.testing.assert_allclose(many, one, atol=1e-5)


@pytest.mark.parametrize(
  'changes,message',
  [
    (
      {'num_key_value_heads': 3},
      'num_key_value_heads = 3 does not divide num_attention_heads = 4',
    ),
    ({'head_dim': 5}, 'head_dim = 5 must be even'),
    (
      {'attention': 'linear'},
      "attention = 'linear' must be one of 'mla', 'gqa'",
    ),
    (
      {'rope': dense_config().rope.__dict__ | {'pairs': 'thirds'}},
      "rope.pairs = 'thirds' must be one of",
    ),
    (
      {'rope': dense_config().rope.__dict__ | {'low_freq_factor': 5.0}},
      'low_freq_factor = 5.0 must be below high_freq_factor = 4.0',
    ),
  ],
  ids=lambda value: str(value)[:30],
)
def test_a_wrong_attention_is_named(changes, message):
  with pytest.raises(UserError, match=message):
    dense_config(**changes)


def _attend_and_gradients(kernel, heads, kv_heads, tokens, layout, prefix=None):
  """Segments are packed; the last token of the second row is one alone."""
  rng = np.random.default_rng(0)

  def draw(n, width):
    return jnp.asarray(rng.normal(size=(2, tokens, n, width)), jnp.float32)

  q, k, v = draw(heads, 24), draw(kv_heads, 24), draw(kv_heads, 16)
  segment = 1 + jnp.asarray(np.arange(tokens) >= [[70], [tokens - 1]], int)
  cotangent = draw(heads, 16)
  out, vjp = jax.vjp(
    jax.jit(lambda *qkv: attend(*qkv, segment, 0.2, layout, kernel, prefix)),
    q,
    k,
    v,
  )
  return out, *vjp(cotangent)


@pytest.mark.parametrize(
  'kernel,heads,kv_heads,tokens',
  [
    ('splash', 2, 2, 200),
    ('splash', 4, 2, 128),
    ('flash', 2, 2, 200),
    ('flash', 4, 2, 128),
    ('blocked', 2, 2, 200),
    ('blocked', 4, 2, 128),
    ('blocked', 4, 1, 90),
    ('blocked', 2, 2, 2),
  ],
)
def test_a_fused_kernel_equals_the_plain_one(kernel, heads, kv_heads, tokens):
  """Tests outputs and gradients for partial tiles and shared keys."""
  shape = heads, kv_heads, tokens, one_device()
  for plain, fused in zip(
    _attend_and_gradients('plain', *shape),
    _attend_and_gradients(kernel, *shape),
  ):
    np.testing.assert_allclose(fused, plain, atol=2e-5)


def test_the_fused_kernel_of_a_gpu_compiles_to_triton():
  """Compiles for MLA's real head widths, which interpretation does not."""
  shapes = [
    jax.ShapeDtypeStruct((1, 300, 2, width), jnp.bfloat16)
    for width in (192, 192, 128)
  ]

  def gradient(q, k, v, segment):
    def loss(*qkv):
      mix = kernels._flash(*qkv, segment, scale=0.1, interpret=False)
      return mix.astype(jnp.float32).sum()

    return jax.grad(loss, (0, 1, 2))(q, k, v)

  triton = '__gpu$xla.gpu.triton'
  lowered = jax.export.export(
    jax.jit(gradient),
    platforms=['cuda'],
    disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(triton)],
  )(*shapes, jax.ShapeDtypeStruct((1, 300), jnp.int32))
  assert lowered.mlir_module().count(f'custom_call @{triton}') == 3


@pytest.mark.parametrize(
  'platform,dtype,kernel',
  [
    ('tpu', 'float32', 'splash'),
    ('gpu', 'bfloat16', 'flash'),
    ('gpu', 'float32', 'blocked'),
    ('cpu', 'bfloat16', 'blocked'),
  ],
)
def test_a_device_gets_its_own_kernel(platform, dtype, kernel):
  assert kernels._best(platform, jnp.dtype(dtype)) == kernel


@pytest.mark.parametrize('kernel', ['flash', 'splash'])
def test_a_kernel_that_cannot_see_a_prefix_is_named(kernel):
  x = jnp.ones((1, 8, 1, 8))
  segment = jnp.ones((1, 8), jnp.int32)
  with pytest.raises(ValueError, match=f'prefix_BT: .* {kernel!r} knows'):
    attend(x, x, x, segment, 1.0, one_device(), kernel, -segment)


_ROWS_ON_FOUR = dict(data=2, sequence=4)


@pytest.mark.parametrize(
  'kernel, mesh, kv_heads, shared',
  [
    ('blocked', dict(data=2, tensor=4), 4, False),
    ('blocked', dict(data=2, tensor=4), 4, True),
    ('blocked', _ROWS_ON_FOUR, 4, True),
    ('blocked', _ROWS_ON_FOUR, 2, True),  # Each head is on two devices.
    ('blocked', dict(data=2, sequence=2, tensor=2), 2, False),
    ('splash', _ROWS_ON_FOUR, 2, False),
    ('plain', _ROWS_ON_FOUR, 1, True),
  ],
  ids=str,
)
def test_a_kernel_on_a_mesh_equals_one_device(kernel, mesh, kv_heads, shared):
  layout = Layout(make_mesh(mesh))
  prefix = jnp.ones((2, 96), jnp.int32) if shared else None
  for one, eight in zip(
    _attend_and_gradients('plain', 4, kv_heads, 96, one_device(), prefix),
    _attend_and_gradients(kernel, 4, kv_heads, 96, layout, prefix),
  ):
    np.testing.assert_allclose(eight, one, atol=2e-5)


def test_devices_that_share_rows_exchange_heads_and_gather_no_keys():
  """And each has the products of its share: nothing is computed twice."""
  layout = Layout(make_mesh(_ROWS_ON_FOUR))
  B, T, N, K, H = 2, 256, 8, 2, 16
  shapes = [
    jax.ShapeDtypeStruct((B, T, n, H), jnp.float32, sharding=s)
    for n, s in ((N, 'BTNH'), (K, 'BTKH'), (K, 'BTKH'))
    for s in [layout.sharding(s)]
  ]
  segment = jnp.ones((B, T), jnp.int32)

  def loss(layout, *qkv):
    return attend(*qkv, segment, 0.2, layout, 'blocked').sum()

  gradient = lambda layout: jax.jit(
    jax.grad(lambda *qkv: loss(layout, *qkv), (0, 1, 2))
  )
  program = gradient(layout).lower(*shapes).compile().as_text()
  assert program.count(' all-gather(') == 0
  assert program.count(' all-to-all(') >= 3 + 3  # q, k, v and their gradients.
  one = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
  assert flops.of(gradient(layout), *shapes) == (
    flops.of(gradient(one_device()), *one)
  )


@pytest.mark.parametrize(
  'mesh, message',
  [
    (
      dict(sequence=8),
      'num_attention_heads = 4 do not divide over tensor × sequence = 8',
    ),
    (dict(sequence=4, tensor=2), 'tensor × sequence = 8'),
  ],
  ids=str,
)
def test_heads_that_do_not_divide_over_devices_of_a_row_are_named(
  mesh, message
):
  with pytest.raises(UserError, match=message):
    _attend_and_gradients('blocked', 4, 4, 96, Layout(make_mesh(mesh)))
