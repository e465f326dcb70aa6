"""DPO, IPO and the group-robust form against NumPy, gradients and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import dpo
from r1jax.algos.dpo import GroupRobust
from r1jax.config.schema.preferences import DPOLossConfig
from r1jax.errors import UserError

_RNG = np.random.default_rng(0)
_LOGP = _RNG.normal(size=(6, 2)).astype(np.float32) * 5 - 20
_REF = _RNG.normal(size=(6, 2)).astype(np.float32) * 5 - 20
_ONE = np.ones(6, np.float32)
_GROUP = np.array([0, 0, 0, 0, 1, 1])


def _sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


def _h(logp=_LOGP):
  gain = np.float64(logp) - _REF
  return gain[:, 0] - gain[:, 1]


def _loss(config, logp=_LOGP, weight=_ONE, counts=_ONE):
  return dpo.loss(config, jnp.asarray(logp), _REF, weight, counts, counts.sum())


@pytest.mark.parametrize('smooth', [0.0, 0.2])
def test_dpo_equals_numpys_and_its_analytic_gradient(smooth):
  beta, h = 0.3, _h()
  each = -(1 - smooth) * np.log(_sigmoid(beta * h)) - smooth * np.log(
    _sigmoid(-beta * h)
  )
  config = DPOLossConfig(beta, label_smoothing=smooth)
  loss, metrics = _loss(config)
  np.testing.assert_allclose(loss, each.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], (h > 0).mean())
  np.testing.assert_allclose(
    metrics['rewards/margins'], beta * h.mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics['rewards/chosen'] - metrics['rewards/rejected'],
    metrics['rewards/margins'],
    rtol=1e-5,
  )
  grad = jax.grad(lambda x: _loss(config, x)[0])(_LOGP)
  slope = beta * (_sigmoid(beta * h) - (1 - smooth)) / 6
  np.testing.assert_allclose(grad, np.stack([slope, -slope], 1), atol=1e-6)


def test_ipo_pulls_every_ratio_to_its_target():
  """(h − 1/(2β))², at rest where h is 1/(2β)."""
  config = DPOLossConfig(0.25, 'ipo')
  np.testing.assert_allclose(
    _loss(config)[0], np.square(_h() - 2).mean(), rtol=1e-5
  )
  there = np.stack([_REF[:, 0] + 2, _REF[:, 1]], 1)
  loss, grad = jax.value_and_grad(lambda x: _loss(config, x)[0])(there)
  np.testing.assert_allclose(loss, 0, atol=1e-9)
  np.testing.assert_allclose(grad, 0, atol=1e-5)


@pytest.mark.parametrize('kind', ['sigmoid', 'ipo'])
def test_gradients_equal_finite_differences(kind):
  config, step = DPOLossConfig(0.2, kind), 1e-2
  with jax.enable_x64(True):
    value = lambda x: dpo.loss(config, x, np.float64(_REF), _ONE, _ONE, 6.0)[0]
    logp = np.float64(_LOGP)
    grad = jax.grad(value)(logp)
    for place in ((0, 0), (3, 1), (5, 0)):
      nudge = np.zeros_like(logp)
      nudge[place] = step
      slope = (value(logp + nudge) - value(logp - nudge)) / (2 * step)
      np.testing.assert_allclose(grad[place], slope, rtol=1e-4)


def test_limits_of_beta():
  """β → 0: log 2 for all, and a slope of β/2 whatever the pair; β → ∞: only
  pairs that are the wrong way round are felt."""
  beta = 1e-6
  loss, grad = jax.value_and_grad(lambda x: _loss(DPOLossConfig(beta), x)[0])(
    _LOGP
  )
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-4)
  np.testing.assert_allclose(
    grad / beta * 6, np.tile([-0.5, 0.5], (6, 1)), rtol=1e-3
  )
  grad = jax.grad(lambda x: _loss(DPOLossConfig(1e4), x)[0])(_LOGP)
  np.testing.assert_array_equal(grad[:, 0] != 0, _h() < 0)


def test_at_the_reference_nothing_is_preferred_yet():
  loss, metrics = _loss(DPOLossConfig(0.1), _REF)
  np.testing.assert_allclose(
    [loss, metrics['accuracy']], [np.log(2), 0.5], rtol=1e-6
  )


def test_one_group_is_plain_dpo():
  """Algorithm 1 with K = 1: N/N_g · α_g is 1 after any step. (`GroupRobust` itself
  refuses a single group: it would change nothing.)"""
  alone = object.__new__(GroupRobust)
  object.__setattr__(alone, 'step_size', 0.5)
  object.__setattr__(alone, 'counts', (6,))
  group = np.zeros(6, int)
  alpha = alone.update(
    alone.initial(), dpo.per_pair(DPOLossConfig(0.3), _h()), group, _ONE
  )
  weight = alone.pair_weights(alpha, group)
  np.testing.assert_allclose(
    _loss(DPOLossConfig(0.3), weight=weight)[0],
    _loss(DPOLossConfig(0.3))[0],
    rtol=1e-6,
  )


def test_a_batch_moves_weights_as_the_paper_s_steps_do():
  """A batch of one pair is a step of algorithm 1, and a larger batch is the
  mean of such steps: their product's B-th root, normalised."""
  robust, losses = GroupRobust(0.7, (30, 10)), _RNG.random(6).astype(np.float32)
  alpha = np.array([0.6, 0.4])
  exponents = np.zeros(2)
  for loss, group in zip(losses, _GROUP):
    step = alpha.copy()
    rarity = 40 / (30, 10)[group]
    step[group] *= np.exp(0.7 * rarity * loss)
    got = robust.update(
      jnp.asarray(alpha),
      losses[:1] * 0 + loss,
      np.array([group]),
      np.ones(1, np.float32),
    )
    np.testing.assert_allclose(got, step / step.sum(), rtol=1e-5)
    exponents[group] += 0.7 * rarity * loss / 6
  want = alpha * np.exp(exponents)
  got = robust.update(jnp.asarray(alpha), losses, _GROUP, _ONE)
  np.testing.assert_allclose(got, want / want.sum(), rtol=1e-5)


def test_the_mean_over_draws_is_the_weighted_loss_of_groups():
  """A batch that is the whole data: loss = Σ α_g L_g, with N/N_g's help."""
  robust, config = GroupRobust(0.1, (4, 2)), DPOLossConfig(0.3)
  alpha = jnp.array([0.3, 0.7])
  each = np.asarray(dpo.per_pair(config, _h()))
  want = 0.3 * each[:4].mean() + 0.7 * each[4:].mean()
  got, _ = _loss(config, weight=robust.pair_weights(alpha, _GROUP))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_weights_go_to_the_worst_group_and_back():
  """Constant losses: α follows exp(η t L_g); what fell to 0 can rise again."""
  robust = GroupRobust(0.5, (50, 50))
  alpha, group = jnp.asarray(robust.initial()), np.array([0, 1])
  for loss in ([2.0, 1.0], [1.0, 2.0]):
    for _ in range(500):
      alpha = robust.update(
        alpha, np.float32(loss), group, np.ones(2, np.float32)
      )
    np.testing.assert_allclose(alpha, np.float32(loss) - 1, atol=1e-6)
  still = GroupRobust(0.0, (50, 50))
  np.testing.assert_allclose(
    still.update(still.initial(), np.float32([9, 1]), group, np.ones(2)),
    [0.5, 0.5],
    rtol=1e-6,
  )


def test_what_fills_a_batch_says_nothing():
  counts = np.array([1, 1, 1, 1, 0, 1], np.float32)
  poisoned = _LOGP.copy()
  poisoned[4] = np.nan
  loss, _ = _loss(DPOLossConfig(0.3), poisoned, counts=counts)
  some = np.delete(_h(), 4)
  np.testing.assert_allclose(
    loss, -np.log(_sigmoid(0.3 * some)).mean(), rtol=1e-5
  )
  robust = GroupRobust(0.5, (4, 2))
  losses = np.where(counts > 0, np.float32(1), np.nan)
  assert np.isfinite(
    robust.update(robust.initial(), losses, _GROUP, counts)
  ).all()


@pytest.mark.parametrize(
  'make,message',
  [
    (lambda: DPOLossConfig(0.0), 'beta = 0.0 must be above 0'),
    (lambda: DPOLossConfig(0.1, 'hinge'), "loss_type = 'hinge' must be one of"),
    (
      lambda: DPOLossConfig(0.1, label_smoothing=0.5),
      'label_smoothing = 0.5 must be at least 0 and below 0.5',
    ),
    (lambda: DPOLossConfig(0.1, 'ipo', 0.1), "needs loss_type = 'sigmoid'"),
    (lambda: GroupRobust(0.1, (9,)), 'needs several groups, and there is 1'),
    (
      lambda: GroupRobust(-0.1, (9, 9)),
      'group_dro_step_size must not be below 0',
    ),
  ],
)
def test_numbers_that_mean_nothing_are_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()
