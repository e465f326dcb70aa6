"""Advantage estimators against TRL's numbers, NumPy and the analytic cases."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import registry
from r1jax.algos import advantage
from r1jax.config.schema.rl import RLConfig

_ESTIMATORS = ('grpo', 'rloo')


def _estimate(name, reward, group, num_groups, scorable=None, **keys):
  if scorable is None:
    scorable = np.ones(len(reward), bool)
  estimator = registry.adv_estimator.get(name)
  return np.asarray(
    estimator(
      jnp.asarray(reward, jnp.float32),
      jnp.asarray(group),
      num_groups,
      jnp.asarray(scorable),
      RLConfig(adv_estimator=name, **keys),
    )
  )


def test_group_advantages_equal_trl(shared):
  data = np.load(shared / 'oracle' / 'grpo_loss.npz', allow_pickle=False)
  rewards, size = data['rewards'], int(data['group_size'])
  group = np.arange(len(rewards)) // size
  for name, scale in (('group', True), ('none', False)):
    got = _estimate(
      'grpo', rewards, group, len(rewards) // size, scale_rewards=scale
    )
    np.testing.assert_allclose(got, data[f'advantages_{name}'], atol=1e-5)


def test_rloo_subtracts_the_mean_of_the_others():
  """A loop over the definition, with rows that have no reward left out."""
  rng = np.random.default_rng(0)
  reward = rng.normal(size=20)
  group, scorable = rng.permutation(np.arange(20) // 5), rng.random(20) > 0.2
  want = np.zeros(20)
  for i in np.flatnonzero(scorable):
    others = scorable & (group == group[i]) & (np.arange(20) != i)
    if others.any():
      want[i] = reward[i] - reward[others].mean()
  got = _estimate('rloo', reward, group, 4, scorable)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_rloo_example():
  got = _estimate('rloo', [1.0, 0.0, 0.0], [0, 0, 0], 1)
  np.testing.assert_allclose(got, [1, -0.5, -0.5])


@pytest.mark.parametrize('name', _ESTIMATORS)
def test_advantages_follow_the_group_id_not_the_position(name):
  reward = np.random.default_rng(0).normal(size=12)
  group = np.arange(12) // 4
  want = _estimate(name, reward, group, 3)
  order = np.random.default_rng(1).permutation(12)
  got = _estimate(name, reward[order], group[order], 3)
  np.testing.assert_allclose(got, want[order], rtol=1e-5)


@pytest.mark.parametrize('name', _ESTIMATORS)
@pytest.mark.parametrize('value', [0.0, 0.1, 1.1, 1e6])
def test_equal_rewards_give_exactly_zero(name, value):
  reward = jnp.array([value] * 7 + [1.0, 0.0, 1.0])
  group = jnp.array([0] * 7 + [1] * 3)
  adv = _estimate(name, reward, group, 2)
  varied = advantage.varied_groups(reward, group, 2, jnp.ones(10, bool))
  assert (adv[:7] == 0).all() and varied.tolist() == [False, True]


@pytest.mark.parametrize('name', _ESTIMATORS)
def test_rows_without_a_reward_count_in_no_group(name):
  """Their advantage is 0; the others' are those of a batch without them."""
  reward = np.array([1.0, 0, 0, 0.5, 9, 2, 9, 9])
  group = np.array([0, 0, 0, 0, 1, 1, 2, 2])
  ok = np.array([1, 1, 0, 1, 0, 1, 0, 0], bool)
  for scale in (True, False):
    got = _estimate(name, reward, group, 3, ok, scale_rewards=scale)
    want = _estimate(name, reward[ok], group[ok], 3, scale_rewards=scale)
    np.testing.assert_allclose(got[ok], want, rtol=1e-6)
    assert (got[~ok] == 0).all() and got[5] == 0
  varied = advantage.varied_groups(
    jnp.asarray(reward), jnp.asarray(group), 3, jnp.asarray(ok)
  )
  assert varied.tolist() == [True, False, False]
