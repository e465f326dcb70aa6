"""The model against a NumPy oracle, causality, and packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import dense_config, forward, make, small_config
from tests.reference import transformer as oracle

_TOKENS = np.random.default_rng(0).integers(0, 32, (2, 9))


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'q_lora_rank': 0},
    {'first_k_dense_replace': 0},
    {'first_k_dense_replace': 3},
    {'n_group': 1, 'topk_group': 1},
    {'n_shared_experts': 0, 'num_experts_per_tok': 3},
    {'moe_dispatch': 'ragged'},
    {'remat': 'block'},
    {'scan_unroll': 2},
    {'attention_kernel': 'plain'},
  ],
  ids=str,
)
def test_logits_equal_the_numpy_oracle(changes):
  config = small_config(**changes)
  model, params = make(config)
  got = forward(model, params, _TOKENS)
  params64 = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  T = _TOKENS.shape[1]
  for row, tokens in enumerate(_TOKENS):
    want = oracle.logits(params64, tokens, np.arange(T), np.ones(T), config)
    np.testing.assert_allclose(got[row], want, atol=2e-4, rtol=2e-4)


def test_a_token_never_sees_the_future():
  model, params = make(small_config())
  changed = _TOKENS.copy()
  changed[:, 5:] = (changed[:, 5:] + 1) % 32
  a, b = forward(model, params, _TOKENS), forward(model, params, changed)
  np.testing.assert_allclose(a[:, :5], b[:, :5], atol=1e-5)
  assert np.abs(a[:, 5:] - b[:, 5:]).max() > 0.1


def test_packed_documents_do_not_meet():
  model, params = make(small_config())
  first, second = _TOKENS[0, :4], _TOKENS[1, :5]
  packed = np.concatenate([first, second])[None]
  position = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
  segment = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
  got = forward(model, params, packed, position, segment)
  np.testing.assert_allclose(
    got[0, :4], forward(model, params, first[None])[0], atol=1e-5
  )
  np.testing.assert_allclose(
    got[0, 4:], forward(model, params, second[None])[0], atol=1e-5
  )


def test_layers_are_scanned():
  """The size of the program does not grow with depth."""

  def size(layers):
    model, params = make(small_config(num_hidden_layers=layers))
    jaxpr = jax.make_jaxpr(
      lambda p: model.apply({'params': p}, _TOKENS, _TOKENS * 0, _TOKENS * 0)
    )(params)
    return len(str(jaxpr).split('\n'))

  assert size(8) == size(3)


@pytest.mark.slow
@pytest.mark.parametrize('attention', ['mla', 'gqa'])
@pytest.mark.parametrize('remat', ['attention', 'block', 'offload'])
def test_what_is_recomputed_changes_no_gradient(remat, attention):
  make_config = small_config if attention == 'mla' else dense_config

  def gradient(remat):
    model, params = make(make_config(remat=remat))
    position = np.tile(np.arange(_TOKENS.shape[1]), (len(_TOKENS), 1))
    inputs = _TOKENS, position, np.ones_like(position)

    def value(params):
      hidden = model.apply({'params': params}, *inputs).hidden_BTD
      return jnp.mean(jnp.tanh(hidden) ** 2)

    return jax.jit(jax.grad(value))(params)

  want, got = gradient('none'), gradient(remat)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    got,
    want,
  )
