"""Advantages and values of tokens against slow loops and analytic cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import gae
from r1jax.config.schema.rl import GAEConfig
from r1jax.errors import UserError

_B, _PROMPT, _OWN = 6, 3, 7


def _mask(own=_OWN):
  """Completions of 1 to 7 tokens; one row has none that counts."""
  length_B = np.array([1, 3, 7, 5, 0, 2])
  column = np.arange(_PROMPT + own)
  return (column >= _PROMPT) & (column < _PROMPT + length_B[:, None])


def _case(seed=0):
  """reward_BT, value_BT, end_B and mask_BT, with noise where nothing lives."""
  rng = np.random.default_rng(seed)
  mask = _mask()
  reward, value = rng.normal(size=(2, *mask.shape)).astype(np.float32)
  return reward, value, rng.normal(size=_B).astype(np.float32), mask


def _rows(x_B, mask):
  return np.broadcast_to(np.asarray(x_B)[:, None], mask.shape)


def _gae(gamma, lam, reward, value, end_B, mask):
  """One sample a row, each with the value of its end."""
  end = jnp.broadcast_to(end_B[:, None], mask.shape)
  return gae.gae(gamma, lam, reward, value, end, mask, jnp.ones_like(mask, int))


def _estimate(config, reward, value, after_B, truncated_B, mask):
  return gae.estimate(
    config,
    reward,
    value,
    _rows(after_B, mask),
    _rows(truncated_B, mask),
    mask,
    np.ones(mask.shape, int),
  )


def _token_rewards(reward_B, mask, penalty=None):
  return gae.token_rewards(
    _rows(reward_B, mask), mask, np.ones(mask.shape, int), penalty
  )


def _slowly(gamma, lam, reward, value, end, mask):
  """A_t = Σ_k (γλ)^k δ_{t+k}, by the definition: sums of sums."""
  adv = np.zeros(mask.shape)
  for b in range(len(mask)):
    live = np.flatnonzero(mask[b])
    v = [float(value[b, t]) for t in live] + [float(end[b])]
    for i, t in enumerate(live):
      for k in range(len(live) - i):
        delta = reward[b, live[i + k]] + gamma * v[i + k + 1] - v[i + k]
        adv[b, t] += (gamma * lam) ** k * delta
  return adv


@pytest.mark.parametrize('gamma', [1.0, 0.9])
@pytest.mark.parametrize('lam', [0.0, 0.5, 0.95, 1.0])
def test_gae_equals_a_slow_double_loop(gamma, lam):
  case = _case()
  got = jax.jit(_gae, static_argnums=(0, 1))(gamma, lam, *case)
  np.testing.assert_allclose(got, _slowly(gamma, lam, *case), atol=1e-5)


def test_samples_that_share_a_row_do_not_meet():
  """Even where one completion begins right behind another one."""
  reward, value, end, mask = _case()
  want = _slowly(0.9, 0.8, reward, value, end, mask)
  together = lambda x: x[mask][None]
  sample = _rows(np.arange(_B), mask)
  got = gae.gae(
    0.9,
    0.8,
    together(reward),
    together(value),
    together(_rows(end, mask)),
    together(mask),
    together(sample) + 1,
  )
  np.testing.assert_allclose(got, together(want), atol=1e-5)
  earned = gae.token_rewards(
    together(_rows(end, mask)), together(mask), together(sample) + 1
  )
  np.testing.assert_array_equal(
    earned, together(np.asarray(_token_rewards(end, mask)))
  )


def test_lambda_one_is_what_was_earned_less_the_value():
  reward, value, end, mask = _case()
  got = _gae(0.9, 1.0, reward, value, end, mask)
  for b, t in zip(*np.nonzero(mask)):
    later = np.flatnonzero(mask[b, t:]) + t
    earned = sum(0.9 ** (s - t) * reward[b, s] for s in later)
    earned += 0.9 ** len(later) * end[b]
    np.testing.assert_allclose(got[b, t], earned - value[b, t], atol=1e-5)


def test_lambda_zero_is_one_step_of_temporal_difference():
  reward, value, end, mask = _case()
  got = _gae(0.9, 0.0, reward, value, end, mask)
  for b, t in zip(*np.nonzero(mask)):
    after = (
      value[b, t + 1] if t + 1 < mask.shape[1] and mask[b, t + 1] else end[b]
    )
    np.testing.assert_allclose(
      got[b, t], reward[b, t] + 0.9 * after - value[b, t], atol=1e-5
    )


def test_a_perfect_value_leaves_no_advantage():
  """γ = 1, one reward at the end, V = that reward everywhere."""
  mask = _mask()
  reward_B = np.arange(_B, dtype=np.float32)
  reward = _token_rewards(reward_B, mask)
  for lam in (0.0, 0.95, 1.0):
    got = _gae(
      1.0,
      lam,
      reward,
      reward_B[:, None] * np.ones(mask.shape),
      np.zeros(_B),
      mask,
    )
    assert not np.asarray(got).any()


def test_a_reward_stands_at_the_last_token_and_each_pays_its_penalty():
  mask = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  got = _token_rewards(np.array([1.0, 2, 3]), mask, np.full((3, 5), 0.25))
  np.testing.assert_array_equal(
    got, [[0, -0.25, -0.25, 0.75, 0], [0, 1.75, 0, 0, 0], [0] * 5]
  )


def test_only_a_completion_that_was_cut_off_goes_on_at_its_value():
  reward, value, after, mask = _case()
  cut = np.array([True, False, True, False, True, False])
  for truncated_value in ('zero', 'bootstrap'):
    config = GAEConfig(
      lam=0.5, truncated_value=truncated_value, whiten_advantages=False
    )
    got = _estimate(config, reward, value, after, cut, mask)
    end = np.where(cut & (truncated_value == 'bootstrap'), after, 0)
    want = _slowly(1.0, 0.5, reward, value, end, mask)
    np.testing.assert_allclose(got.adv_BT, want, atol=1e-5)
    np.testing.assert_allclose(
      got.return_BT, np.where(mask, want + value, 0), atol=1e-5
    )


@pytest.mark.parametrize('poison', [7.0, np.nan])
def test_padding_changes_no_bit(poison):
  """Whatever stands in it, and however much of it there is."""
  reward, value, after, mask = _case()
  config, cut = (
    GAEConfig(gamma=0.99, lam=0.95, truncated_value='bootstrap'),
    np.ones(_B, bool),
  )
  want = _estimate(config, reward, value, after, cut, mask)
  dirty = [np.where(mask, x, poison) for x in (reward, value)]
  got = _estimate(config, *dirty, after, cut, mask)
  wide = [np.pad(x, ((0, 0), (2, 5)), constant_values=poison) for x in dirty]
  wider = _estimate(config, *wide, after, cut, np.pad(mask, ((0, 0), (2, 5))))
  for name in ('adv_BT', 'return_BT'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  np.testing.assert_array_equal(wider.return_BT[:, 2:-5], want.return_BT)
  np.testing.assert_allclose(wider.adv_BT[:, 2:-5], want.adv_BT, atol=1e-6)
  assert not np.asarray(wider.adv_BT)[:, [0, 1, -1, -2]].any()
  for key, value in want.metrics.items():
    np.testing.assert_allclose(wider.metrics[key], value, rtol=1e-5)


def test_whitened_advantages_have_mean_zero_and_deviation_one():
  reward, value, after, mask = _case()
  adv = np.asarray(
    _estimate(
      GAEConfig(), reward, value, after, np.zeros(_B, bool), mask
    ).adv_BT
  )
  np.testing.assert_allclose(adv[mask].mean(), 0, atol=1e-6)
  np.testing.assert_allclose(adv[mask].std(), 1, atol=1e-3)
  assert not adv[~mask].any()
  # All alike, but for rounding, or nothing at all: no token is better.
  alike = np.float32(0.1) * np.ones(mask.shape, np.float32)
  np.testing.assert_allclose(gae.whiten(alike, mask), 0, atol=1e-3)
  assert not np.asarray(gae.whiten(reward, np.zeros_like(mask))).any()


def test_metrics_of_the_value_function():
  reward, value, after, mask = _case()
  estimate = _estimate(
    GAEConfig(whiten_advantages=False),
    reward,
    value,
    after,
    np.zeros(_B, bool),
    mask,
  )
  returns = np.asarray(estimate.return_BT)[mask]
  close = lambda name, want: np.testing.assert_allclose(
    estimate.metrics[name], want, rtol=1e-4
  )
  close('critic/values/mean', value[mask].mean())
  close('critic/returns/mean', returns.mean())
  close('critic/advantages/std', np.asarray(estimate.adv_BT)[mask].std())
  close(
    'critic/vf_explained_var', 1 - (returns - value[mask]).var() / returns.var()
  )
  assert gae.explained_variance(reward, reward, mask) == 1
  assert abs(gae.explained_variance(0 * reward + 3, reward, mask)) < 1e-5
  assert np.isnan(gae.explained_variance(reward, 0 * reward, mask))


@pytest.mark.parametrize(
  'value,old,target,loss,slope',
  [
    (1.0, 1.0, 3.0, 2.0, -2.0),  # Where it was: the plain squared error.
    (1.5, 1.0, 3.0, 1.62, 0.0),  # It has gone ε towards R: no further.
    (0.5, 1.0, 3.0, 3.125, -2.5),  # It has gone the wrong way: all of it.
    (1.1, 1.0, 0.0, 0.605, 1.1),
  ],
)
def test_a_value_moves_by_the_clip_at_most(value, old, target, loss, slope):
  one = lambda x: jnp.full((1, 1), x)
  grad = jax.value_and_grad(
    lambda v: gae.value_loss(
      GAEConfig(cliprange_value=0.2), v, one(old), one(target), one(True), 1
    )[0]
  )
  got, value_grad = grad(one(value))
  np.testing.assert_allclose(got, loss, rtol=1e-5)
  np.testing.assert_allclose(value_grad[0, 0], slope, atol=1e-5)


def test_without_a_clip_it_is_half_the_mean_squared_error():
  reward, value, _, mask = _case()
  dirty = [np.where(mask, x, np.nan) for x in (value, value + 9, reward)]
  loss, metrics = gae.value_loss(
    GAEConfig(cliprange_value=0.0), *dirty, mask, mask.sum()
  )
  np.testing.assert_allclose(
    loss, 0.5 * ((value - reward)[mask] ** 2).mean(), rtol=1e-5
  )
  assert metrics['critic/vf_clipfrac'] == 0


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'gamma': 1.1}, 'gamma = 1.1 must be at least 0 and at most 1'),
    ({'lam': -0.1}, 'lam = -0.1 must be at least 0'),
    (
      {'truncated_value': 'stop'},
      "truncated_value = 'stop' must be one of 'zero', 'bootstrap'",
    ),
    ({'cliprange_value': -1.0}, 'cliprange_value = -1.0 must be at least 0'),
  ],
)
def test_wrong_parameters_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    GAEConfig(**changes)
