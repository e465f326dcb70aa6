"""The model's gradients against finite differences, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import dense_config, make, small_config

_TOKENS = np.random.default_rng(0).integers(0, 32, (2, 7))
_POSITION = np.array([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6]])
_SEGMENT = np.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]])


@pytest.mark.slow
@pytest.mark.parametrize(
  'config',
  [
    partial(small_config, num_nextn_predict_layers=1),
    partial(dense_config, tie_word_embeddings=True),
  ],
  ids=['v3', 'dense'],
)
def test_gradient_equals_finite_differences(config):
  """Compares directional derivatives, in a random direction per parameter."""
  with jax.enable_x64(True):
    _check(config(dtype='float64'))


def _check(config):
  model, params = make(config)
  rng = np.random.default_rng(1)

  def loss(params):
    inputs = _TOKENS, _POSITION, _SEGMENT
    out = model.apply({'params': params}, *inputs)
    total = model.apply({'params': params}, out.hidden_BTD, method='logits')
    total = jnp.sum(jnp.sin(total))
    total += sum(jnp.sum(r.aux_loss) for r in out.routing.values())
    if config.num_nextn_predict_layers:
      ahead, _ = model.apply(
        {'params': params}, out.hidden_BTD, *inputs, method='predict_ahead'
      )
      total += jnp.sum(jnp.sin(ahead))
    return total

  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  assert value.dtype == jnp.float64
  run = jax.jit(loss)
  leaves, tree = jax.tree.flatten(params)
  names = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  slopes = jax.tree.leaves(grads)
  checked = 0
  for i, (name, leaf, slope) in enumerate(zip(names, leaves, slopes)):
    if 'bias' in name and 'ffn' in name:
      assert not np.asarray(slope).any()  # The routing bias only selects.
      continue
    direction = rng.normal(size=leaf.shape)
    step = 1e-6

    def moved(sign):
      changed = list(leaves)
      changed[i] = leaf + sign * step * direction
      return run(jax.tree.unflatten(tree, changed))

    numeric = (moved(1) - moved(-1)) / (2 * step)
    np.testing.assert_allclose(
      np.sum(slope * direction), numeric, rtol=1e-5, atol=1e-6, err_msg=name
    )
    checked += 1
  assert checked > 10
