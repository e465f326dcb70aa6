"""Adam against NumPy, with moments as they are stored."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from r1jax.config.schema.training import OptimizerConfig
from r1jax.train import optimizer

_RATE, _BETA1, _BETA2, _DECAY, _CLIP = 1e-2, 0.9, 0.95, 0.1, 1.0


def _adam(w, scale, grads, dtype):
  """AdamW over a matrix and a scale, moments rounded between updates."""
  both = np.concatenate([w.ravel(), scale]).astype(np.float32)
  decayed = np.arange(both.size) < w.size
  m = v = np.zeros(both.size, dtype)
  for t, g in enumerate(grads, 1):
    g = g * min(1, _CLIP / np.sqrt((g * g).sum()))
    m32 = _BETA1 * m.astype(np.float32) + np.float32(1 - _BETA1) * g
    v32 = _BETA2 * v.astype(np.float32) + np.float32(1 - _BETA2) * g * g
    step = m32 / (1 - _BETA1**t) / (np.sqrt(v32 / (1 - _BETA2**t)) + 1e-8)
    both = both - _RATE * (step + _DECAY * decayed * both)
    m, v = m32.astype(dtype), v32.astype(dtype)
  return both, m, v


def _train(w, scale, grads, moment_dtype):
  tx = optimizer.make(
    OptimizerConfig(
      learning_rate=_RATE,
      warmup_steps=0,
      lr_scheduler_type='constant',
      min_lr_ratio=0.1,
      adam_beta1=_BETA1,
      adam_beta2=_BETA2,
      weight_decay=_DECAY,
      max_grad_norm=_CLIP,
      moment_dtype=moment_dtype,
    ),
    10,
  )
  params = {'w': jnp.asarray(w), 'scale': jnp.asarray(scale)}
  state = tx.init(params)
  for g in grads:
    grad = {
      'w': jnp.asarray(g[: w.size].reshape(w.shape)),
      'scale': jnp.asarray(g[w.size :]),
    }
    updates, state = tx.update(grad, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return params, state[1]


def _flat(tree):
  return np.concatenate([np.ravel(tree['w']), np.ravel(tree['scale'])])


@pytest.mark.parametrize('name', ['float32', 'bfloat16'])
def test_updates_equal_numpys_with_moments_rounded_as_stored(name):
  rng = np.random.default_rng(0)
  w = rng.normal(size=(6, 5)).astype(np.float32)
  scale = rng.normal(size=5).astype(np.float32)
  # Large at first, which is clipped, and small later, which is not.
  grads = [
    size * rng.normal(size=35).astype(np.float32)
    for size in (9, 1, 0.1, 0.01, 0.1)
  ]
  dtype = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[name]
  params, adam = _train(w, scale, grads, name)
  want, m, v = _adam(w, scale, grads, dtype)
  np.testing.assert_allclose(_flat(params), want, atol=2e-7)
  for got, moment in ((_flat(adam.mu), m), (_flat(adam.nu), v)):
    assert got.dtype == dtype
    np.testing.assert_allclose(
      got.astype(np.float32), moment.astype(np.float32), rtol=1e-5
    )
  if name == 'bfloat16':  # Or the comparison above would see nothing.
    exact, _, _ = _adam(w, scale, grads, np.float32)
    assert np.abs(exact - want).max() > 1e-5
