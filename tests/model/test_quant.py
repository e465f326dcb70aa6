"""FP8 products against NumPy, group by group."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from r1jax.model import experts, quant
from tests.conftest import dense_config, forward, make, small_config

_RNG = np.random.default_rng(0)


def _round(group):
  """One group of numbers under one scale, in NumPy."""
  scale = np.float32(np.abs(group).max() / 448) or np.float32(1)
  return (group / scale).astype(ml_dtypes.float8_e4m3fn).astype(
      np.float32) * scale


def _tiles(x, axis):
  """Rounds every 128 numbers of a matrix along an axis."""
  x = np.moveaxis(np.float32(x), axis, -1)
  out = np.zeros_like(x)
  for row in range(x.shape[0]):
    for start in range(0, x.shape[1], 128):
      out[row, start:start + 128] = _round(x[row, start:start + 128])
  return np.moveaxis(out, -1, axis)


def _blocks(w):
  out = np.zeros_like(w)
  for i in range(0, w.shape[0], 128):
    for j in range(0, w.shape[1], 128):
      out[i:i + 128, j:j + 128] = _round(w[i:i + 128, j:j + 128])
  return out


def _draw(*shape):
  """Rows and columns of very different sizes: scales matter."""
  size = 10.0 ** _RNG.uniform(-3, 3, shape[-1])
  return (_RNG.normal(size=shape) * size).astype(np.float32)


def test_all_three_products_are_v3s():
  """Sizes that are no whole tile; the weight's gradient is along tokens."""
  x, w, dy = _draw(150, 200), _draw(200, 130), _draw(150, 130)
  y, vjp = jax.vjp(jax.jit(
      lambda x, w: quant.product(jnp.matmul, x, w)), x, w)
  dx, dw = vjp(dy)
  want = _tiles(x, 1) @ _blocks(w)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4 * want.std())
  want = _tiles(dy, 1) @ _blocks(w).T
  np.testing.assert_allclose(dx, want, rtol=1e-4, atol=1e-4 * want.std())
  want = _tiles(_tiles(x, 1), 0).T @ _tiles(dy, 0)
  np.testing.assert_allclose(dw, want, rtol=1e-4, atol=1e-4 * want.std())


def test_zeros_stay_zeros():
  x, w = jnp.zeros((3, 200)), jnp.zeros((200, 5))
  y, vjp = jax.vjp(lambda x, w: quant.product(jnp.matmul, x, w), x, w)
  assert not np.asarray(y).any()
  assert not any(np.asarray(g).any() for g in vjp(jnp.zeros_like(y)))


@pytest.mark.parametrize('dispatch', ['blocks', 'ragged'])
def test_grouped_products_round_each_experts_weight(dispatch):
  rows, E, D, I = 40, 3, 140, 8
  x, expert = _draw(rows, D), _RNG.integers(0, E, (rows, 1)).astype(np.int32)
  gate, up = (np.stack([_draw(D, I) / 1e3 for _ in range(E)])
              for _ in range(2))
  down = np.stack([_draw(I, D) for _ in range(E)])
  got = jax.jit(lambda x, *weights: experts.swiglu(
      x, expert, jnp.ones(expert.shape), weights, dispatch, True))(
          x, gate, up, down)

  def one(x, e):
    g, u = (_tiles(x[None], 1) @ _blocks(w[e]) for w in (gate, up))
    hidden = (g * (1 + np.tanh(g.astype(np.float64) / 2)) / 2 * u).astype(
        np.float32)
    return (_tiles(hidden, 1) @ _blocks(down[e]))[0]

  want = np.stack([one(x[r], e) for r, e in enumerate(expert[:, 0])])
  # Roundings of the hidden layer may fall apart by the last bit of a float32.
  close = np.isclose(got, want, rtol=1e-4, atol=1e-4 * want.std())
  assert close.mean() > 0.99


@pytest.mark.parametrize('config', [
    partial(small_config, first_k_dense=3), dense_config], ids=['mla', 'gqa'])
def test_a_model_in_fp8_is_near_and_not_the_same(config):
  """Without routing: another choice of experts is no small difference."""
  tokens = _RNG.integers(0, 32, (2, 9))
  model, params = make(config())
  exact = forward(model, params, tokens)
  model, _ = make(config(fp8=True))
  rounded = forward(model, params, tokens)
  error = np.abs(rounded - exact).mean() / np.abs(exact).mean()
  assert 1e-4 < error < 0.2
