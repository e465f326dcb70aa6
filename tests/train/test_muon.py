"""Muon against NumPy, on the matrices of a model, and on a mesh."""

import dataclasses
from functools import partial

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config.schema.training import OptimizerConfig
from r1jax.sharding import Layout, make_mesh
from r1jax.stages import memory
from r1jax.train import optimizer
from r1jax.train import state as train_state
from tests.conftest import dense_config, make, one_device, small_config

_CONFIG = OptimizerConfig(
  name='muon',
  learning_rate=1e-2,
  weight_decay=0.1,
  max_grad_norm=float('inf'),
  muon_momentum=0.9,
)


def _orthogonal(g):
  """Five iterations of Newton and Schulz on one matrix."""
  a, b, c = 3.4445, -4.775, 2.0315
  x = g.T if g.shape[0] > g.shape[1] else g
  x = x / (np.linalg.norm(x) + 1e-8)
  for _ in range(5):
    s = x @ x.T
    x = a * x + (b * s + c * s @ s) @ x
  return x.T if g.shape[0] > g.shape[1] else x


def _muon(w, grads):
  """Muon with Nesterov's momentum and decoupled weight decay on one matrix."""
  beta, m = 0.9, np.zeros_like(w)
  for t, g in enumerate(grads, 1):
    m = beta * m + (1 - beta) * g
    ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
    step = 0.2 * np.sqrt(max(w.shape)) * _orthogonal(ahead)
    w = w - 1e-2 * (step + 0.1 * w)
  return w


@pytest.mark.parametrize(
  'name, shape, matrices',
  [
    ('layers/attention/q', (2, 6, 2, 4), lambda x: x.reshape(2, 6, 8)),
    ('layers/attention/out', (2, 2, 4, 6), lambda x: x.reshape(2, 8, 6)),
    ('layers/attention/kv_down', (2, 6, 5), lambda x: x),
    ('layers/ffn/gate', (2, 3, 6, 4), lambda x: x.reshape(6, 6, 4)),
    ('layers/ffn/up', (2, 4, 9), lambda x: x),
  ],
)
def test_each_matrix_moves_as_numpys(name, shape, matrices):
  random = np.random.default_rng(0)
  w, *grads = random.normal(size=(4, *shape)).astype(np.float32)
  tx = optimizer.make(_CONFIG, 10)
  tree = lambda x: traverse_util.unflatten_dict({name: jnp.asarray(x)}, sep='/')
  params = tree(w)
  state = tx.init(params)
  for g in grads:
    updates, state = tx.update(tree(g), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  (got,) = jax.tree.leaves(params)
  each = zip(matrices(w), *map(matrices, grads))
  want = np.stack([_muon(first, rest) for first, *rest in each])
  np.testing.assert_allclose(matrices(got), want, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  'config', [small_config(scalar_head=True), dense_config()]
)
def test_embedding_heads_norms_and_biases_have_adamw(config):
  _, params = make(config)
  grads = jax.tree.map(lambda x: 0.1 * jnp.cos(7 * x), params)
  moved = {}
  for name in ('adamw', 'muon'):
    tx = optimizer.make(dataclasses.replace(_CONFIG, name=name), 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    moved[name] = traverse_util.flatten_dict(updates, sep='/')
  same = {
    path
    for path, update in moved['adamw'].items()
    if np.array_equal(update, moved['muon'][path])
  }
  assert same == {
    path
    for path in moved['adamw']
    if '/' not in path or path.endswith(('scale', 'bias'))
  }
  rms = lambda x: np.sqrt(np.mean(np.square(x)))
  for path, update in moved['muon'].items():
    if path not in same:  # As far as AdamW at its usual gradients.
      assert (
        0.1
        < rms(update + 1e-3 * traverse_util.flatten_dict(params, sep='/')[path])
        / 1e-2
        < 0.35
      ), path


@pytest.mark.slow
def test_a_sharded_update_is_that_of_one_device():
  found = []
  for layout in (
    one_device(),
    Layout(make_mesh(dict(fsdp=2, tensor=2, expert=2), jax.devices())),
  ):
    model, params = make(small_config(), layout)
    grads = jax.tree.map(lambda x: 0.1 * jnp.cos(7 * x), params)
    tx = optimizer.make(_CONFIG, 10)
    shardings = train_state.shardings(model, tx)
    state = jax.jit(
      lambda p, tx=tx: train_state.create(p, tx), out_shardings=shardings
    )(params)
    updates, _ = jax.jit(tx.update)(grads, state.opt_state, params)
    found.append(jax.device_get(updates))
  for one, sharded in zip(*map(jax.tree.leaves, found)):
    np.testing.assert_allclose(sharded, one, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_moments_may_be_bfloat16():
  _, params = make(small_config())
  tx = optimizer.make(dataclasses.replace(_CONFIG, moment_dtype='bfloat16'), 10)
  state = tx.init(params)
  _, after = tx.update(params, state, params)
  for tree in (state, after):
    big = [x for x in jax.tree.leaves(tree) if jnp.ndim(x) > 1]
    assert big and {x.dtype.name for x in big} == {'bfloat16'}


@pytest.mark.parametrize('name, least, most', [('adamw', 2, 2), ('muon', 1, 2)])
def test_info_counts_the_moments_that_are_kept(name, least, most):
  model, params = make(small_config())
  config = dataclasses.replace(_CONFIG, name=name)
  state = optimizer.make(config, 10).init(params)
  kept = sum(x.size for x in jax.tree.leaves(state) if jnp.ndim(x) > 1)
  kept += sum(  # What has one axis, by AdamW.
    x.size
    for x in jax.tree.leaves(state)
    if x.shape == params['norm']['scale'].shape
  )
  times = partial(optimizer.num_moments, config)
  counted = memory.parameters_per_device(model.config, one_device(), times)
  assert counted == kept
  total = sum(x.size for x in jax.tree.leaves(params))
  assert least * total <= counted <= most * total
