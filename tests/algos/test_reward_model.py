"""Losses of reward models against NumPy, analytic gradients and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import reward_model
from r1jax.config.schema.preferences import PairwiseLossConfig
from r1jax.errors import UserError

_RNG = np.random.default_rng(0)
_CHOSEN, _REJECTED = _RNG.normal(size=(2, 6)).astype(np.float32)
_WEIGHT = np.array([1, 1, 1, 1, 0, 0], np.float32)


def _sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


def _pairwise(config: PairwiseLossConfig, chosen=_CHOSEN, rejected=_REJECTED):
  return reward_model.pairwise(
    config, jnp.asarray(chosen), jnp.asarray(rejected), _WEIGHT, 4.0
  )


@pytest.mark.parametrize('margin,center', [(0, 0), (0.7, 0), (0.3, 0.05)])
def test_pairs_equal_numpys_and_their_analytic_gradient(margin, center):
  config = PairwiseLossConfig(margin, center)
  gap, level = _CHOSEN - _REJECTED, _CHOSEN + _REJECTED
  each = -np.log(_sigmoid(gap - margin)) + center * level**2
  loss, metrics = _pairwise(config)
  np.testing.assert_allclose(loss, each[:4].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], (gap[:4] > 0).mean())
  np.testing.assert_allclose(
    metrics['rewards/margins'], gap[:4].mean(), rtol=1e-5
  )
  grad = jax.grad(lambda r: _pairwise(config, r)[0])(_CHOSEN)
  want = (-_sigmoid(margin - gap) + 2 * center * level) * _WEIGHT / 4
  np.testing.assert_allclose(grad, want, atol=1e-6)


def test_without_centring_a_common_level_says_nothing():
  loss, _ = _pairwise(PairwiseLossConfig(), _CHOSEN + 5, _REJECTED + 5)
  np.testing.assert_allclose(
    loss, _pairwise(PairwiseLossConfig())[0], rtol=1e-5
  )
  centred, _ = _pairwise(
    PairwiseLossConfig(center_rewards_coefficient=0.1),
    _CHOSEN + 5,
    _REJECTED + 5,
  )
  assert centred > loss + 5


def test_a_fresh_head_is_at_chance():
  """Every score is 0: neither won nor lost, and log 2 of loss."""
  zeros = np.zeros(6, np.float32)
  loss, metrics = _pairwise(PairwiseLossConfig(), zeros, zeros)
  np.testing.assert_allclose(
    [loss, metrics['accuracy']], [np.log(2), 0.5], rtol=1e-6
  )


@pytest.mark.parametrize('safe', [0.0, 1.0])
def test_single_responses_equal_numpys_cross_entropy(safe):
  labels = np.array([safe, 1, 0, 1, 0, 1], np.float32)
  p = _sigmoid(_CHOSEN)
  each = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
  value = lambda r: reward_model.pointwise(r, labels, _WEIGHT, 4.0)
  loss, metrics = value(jnp.asarray(_CHOSEN))
  np.testing.assert_allclose(loss, each[:4].mean(), rtol=1e-5)
  right = (_CHOSEN > 0) == (labels > 0)
  np.testing.assert_allclose(metrics['accuracy'], right[:4].mean())
  grad = jax.grad(lambda r: value(r)[0])(_CHOSEN)
  np.testing.assert_allclose(grad, (p - labels) * _WEIGHT / 4, atol=1e-6)


@pytest.mark.parametrize('fill', [np.nan, 1e30, -1e30])
def test_what_fills_a_batch_says_nothing(fill):
  chosen = np.where(_WEIGHT > 0, _CHOSEN, np.float32(fill))
  loss, grad = jax.value_and_grad(
    lambda r: _pairwise(PairwiseLossConfig(), r)[0]
  )(chosen)
  np.testing.assert_allclose(loss, _pairwise(PairwiseLossConfig())[0])
  assert np.isfinite(grad[:4]).all()


def test_scores_of_any_size_are_finite():
  loss, grad = jax.value_and_grad(
    lambda r: _pairwise(PairwiseLossConfig(), r, -1e4 * _REJECTED)[0]
  )(1e4 * _CHOSEN)
  assert np.isfinite(loss) and np.isfinite(grad).all()


def test_numbers_below_zero_are_refused():
  for field in ('margin', 'center_rewards_coefficient'):
    with pytest.raises(UserError, match=f'{field} = -0.1 must be at least 0'):
      PairwiseLossConfig(**{field: -0.1})
