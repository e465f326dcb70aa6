"""The GRPO loss against TRL's values, NumPy and analytic cases."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import registry
from r1jax.algos import common, policy_loss
from r1jax.algos.policy_loss import PolicyLoss, Totals
from r1jax.errors import UserError

_AGG_MODE = {
  'grpo': 'seq-mean-token-mean',
  'dapo': 'token-mean',
  'bnpo': 'token-mean',
  'dr_grpo': 'seq-mean-token-sum-norm',
  'cispo': 'token-mean',
}


def _loss(config, logp, old, ref, adv, mask, totals, weight=None):
  """The loss of one sample a row; [B, 1] advantages are of whole rows."""
  return policy_loss.loss(
    config,
    logp,
    old,
    ref,
    jnp.broadcast_to(adv, mask.shape),
    mask,
    totals,
    common.Samples.one_a_row(mask),
    weight,
  )


def _weights(config, trainer, sampler, mask):
  return policy_loss.rollout_is_weights(
    config, trainer, sampler, mask, common.Samples.one_a_row(mask)
  )


def _config(case, max_tokens: int) -> PolicyLoss:
  """Returns the loss that TRL calls by these names."""
  cispo = case['loss_type'] == 'cispo'
  return PolicyLoss(
    policy_loss='cispo' if cispo else 'clip',
    importance_sampling_level=case['level'],
    clip_ratio_low=case['eps'],
    # TRL's cap of CISPO is the largest ratio itself, not what is above 1.
    clip_ratio_high=case['eps_high'] - 1 if cispo else case['eps_high'],
    delta=case['delta'] or 0.0,
    loss_agg_mode=_AGG_MODE[case['loss_type']],
    max_tokens=max_tokens,
    kl_coef=case['beta'],
    kl_importance_weighted=case['kl_fix'],
  )


def test_every_member_of_the_family_equals_trl(shared):
  """Values and gradients of all cases that we have an option for."""
  data = np.load(shared / 'oracle' / 'grpo_loss.npz', allow_pickle=False)
  mask, policy = data['mask'].astype(bool), jnp.asarray(data['policy_logps'])
  seen = set()
  for i, case in enumerate(json.loads(str(data['cases']))):
    # Not ours: LUSPO, and only the tokens of the highest entropy.
    if case['loss_type'] == 'luspo' or case['quantile'] not in (None, 1, 1.0):
      continue
    seen.add((case['loss_type'], case['level']))
    config = _config(case, int(data['max_completion_length']))
    old = data['old_logps'] if case['use_old'] else policy
    tokens = (
      data['num_items_in_batch'] if case['loss_type'] == 'dapo' else mask.sum()
    )
    # TRL divides by the steps that it accumulates, all but DAPO.
    parts = 1 if case['loss_type'] == 'dapo' else case['accum']

    def value(logp):
      return (
        _loss(
          config,
          logp,
          old,
          data['ref_logps'],
          data[f'advantages_{case["scale"]}'][:, None],
          mask,
          Totals(float(tokens), len(mask)),
        )[0]
        / parts
      )

    loss, grad = jax.value_and_grad(value)(policy)
    np.testing.assert_allclose(
      loss, data['loss'][i], rtol=3e-5, atol=1e-6, err_msg=str(case)
    )
    np.testing.assert_allclose(
      grad, data['grad'][i], rtol=2e-4, atol=1e-7, err_msg=str(case)
    )
  assert len(seen) == 9


def test_first_update_has_ratio_one_and_the_policy_gradient():
  """At ρ = 1 the gradient is −A / tokens: REINFORCE with a baseline."""
  rng = np.random.default_rng(0)
  logp = jnp.asarray(-rng.uniform(0.1, 3, (4, 6)), jnp.float32)
  adv = jnp.array([1.0, -1.0, 0.5, 0.0])
  mask = jnp.asarray(rng.random((4, 6)) < 0.7)
  value = lambda x: _loss(
    PolicyLoss(kl_coef=0.01),
    x,
    logp,
    logp,
    adv[:, None],
    mask,
    Totals(mask.sum(), 4),
  )
  grad, metrics = jax.grad(value, has_aux=True)(logp)
  want = np.where(mask, -np.asarray(adv)[:, None] / float(mask.sum()), 0)
  np.testing.assert_allclose(grad, want, atol=1e-7)
  assert metrics['ratio/mean'] == 1 and metrics['pg_clipfrac'] == 0
  assert metrics['kl'] == 0


@pytest.mark.parametrize(
  'ratio,adv,clipped',
  [
    (1.5, 1.0, True),
    (1.5, -1.0, False),
    (0.5, 1.0, False),
    (0.5, -1.0, True),
    (1.25, 1.0, False),
  ],
)
def test_clipping_is_one_sided_and_asymmetric(ratio, adv, clipped):
  logp = jnp.full((1, 1), np.log(ratio), jnp.float32)
  value = lambda x: _loss(
    PolicyLoss(clip_ratio_high=0.28, kl_coef=0.0),
    x,
    jnp.zeros((1, 1)),
    x,
    jnp.array([[adv]]),
    jnp.ones((1, 1), bool),
    Totals(1, 1),
  )
  grad, metrics = jax.grad(value, has_aux=True)(logp)
  assert bool(metrics['pg_clipfrac']) == clipped
  np.testing.assert_allclose(
    grad[0, 0], 0 if clipped else -ratio * adv, rtol=1e-5
  )


def test_a_nan_outside_the_mask_is_harmless():
  logp = jnp.array([[-1.0, jnp.nan]])
  for changes in (
    {},
    {'importance_sampling_level': 'sequence'},
    {'loss_agg_mode': 'seq-mean-token-mean'},
    {'policy_loss': 'cispo'},
  ):
    value = lambda x: _loss(
      PolicyLoss(kl_coef=0.1, **changes),
      x,
      jnp.array([[-1.0, jnp.nan]]),
      jnp.array([[-2.0, jnp.nan]]),
      jnp.array([[1.0, jnp.nan]]),
      jnp.array([[True, False]]),
      Totals(1, 1),
    )[0]
    loss, grad = jax.value_and_grad(value)(logp)
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_a_policy_loss_of_a_plugin_is_found_by_its_name():
  """REINFORCE: the gradient of a token is its advantage, whatever its ratio."""

  @registry.policy_loss('reinforce')
  def reinforce(ratio_BT, adv_BT, logp_BT, config):
    return adv_BT * logp_BT, jnp.zeros(adv_BT.shape, bool)

  def value(logp_BT, name):
    config = PolicyLoss(policy_loss=name, kl_coef=0.0)
    adv_BT, mask_BT = jnp.array([[3.0, -2.0]]), jnp.ones((1, 2), bool)
    zeros = jnp.zeros((1, 2))
    return _loss(config, logp_BT, zeros, zeros, adv_BT, mask_BT, Totals(2, 1))[
      0
    ]

  try:
    grad = jax.grad(value)(jnp.array([[1.0, -1.0]]), 'reinforce')
  finally:
    registry.policy_loss.forget(str(Path(__file__).resolve()))
  np.testing.assert_allclose(grad, [[-1.5, 1.0]])
  with pytest.raises(UserError, match="rl.policy_loss: .*unknown 'reinf"):
    value(jnp.zeros((1, 2)), 'reinforce')


def test_advantages_may_differ_from_token_to_token(shared):
  """Where they do, a token's gradient is its own advantage's."""
  data = np.load(shared / 'oracle' / 'grpo_loss.npz', allow_pickle=False)
  mask, rows = data['mask'].astype(bool), data['advantages_group'][:, None]

  def grad(adv):
    return jax.grad(
      lambda logp: policy_loss.loss(
        PolicyLoss(kl_coef=0.0),
        logp,
        data['old_logps'],
        data['ref_logps'],
        adv,
        mask,
        Totals(49.0, 8),
        common.Samples.one_a_row(mask),
      )[0]
    )(jnp.asarray(data['policy_logps']))

  whole = rows * np.ones(mask.shape, np.float32)
  even = np.arange(mask.shape[1]) % 2 == 0
  np.testing.assert_array_equal(
    grad(whole * even), np.where(even, grad(whole), 0)
  )
  with pytest.raises(AssertionError, match='shape'):
    grad(rows)  # It would broadcast.


def test_what_the_sampler_did_otherwise_is_weighed_or_left_out():
  """Two rows; the trainer finds the first's tokens 4 and 1/4 times as likely
  as the sampler, the second's 1.5 times."""
  trainer = jnp.log(jnp.array([[4.0, 0.25, 9.0], [1.5, 1.5, 9.0]]))
  mask = jnp.array([[True, True, False]] * 2)

  def weight(**changes):
    return _weights(PolicyLoss(**changes), trainer, 0 * trainer, mask)[:, :2]

  close = lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5)
  close(weight(rollout_is='truncate'), [[2, 0.25], [1.5, 1.5]])
  close(weight(rollout_is='mask'), [[0, 0], [1, 1]])
  close(
    weight(rollout_is='truncate', rollout_is_level='sequence'), [[1, 1], [2, 2]]
  )
  close(
    weight(rollout_is='mask', rollout_is_level='sequence'), [[1, 1], [0, 0]]
  )
  close(weight(), 1)
  assert not np.asarray(
    jax.grad(
      lambda x: _weights(
        PolicyLoss(rollout_is='truncate'), x, 0 * x, mask
      ).sum()
    )(trainer)
  ).any()


def test_a_weight_scales_its_token(shared):
  data = np.load(shared / 'oracle' / 'grpo_loss.npz', allow_pickle=False)
  mask = data['mask'].astype(bool)

  def grad(weight):
    return jax.grad(
      lambda logp: _loss(
        PolicyLoss(kl_coef=0.04),
        logp,
        data['old_logps'],
        data['ref_logps'],
        data['advantages_group'][:, None],
        mask,
        Totals(49.0, 8),
        weight,
      )[0]
    )(jnp.asarray(data['policy_logps']))

  weight = jnp.asarray(np.random.default_rng(0).random(mask.shape))
  np.testing.assert_allclose(
    grad(weight), grad(None) * weight, rtol=1e-4, atol=1e-7
  )


@pytest.mark.parametrize(
  'changes,message',
  [
    (
      {'importance_sampling_level': 'word'},
      "level = 'word' must be one of 'token', 'sequence'",
    ),
    (
      {'loss_agg_mode': 'seq-mean-token-sum-norm'},
      'max_tokens = 0 must be at least 1',
    ),
    ({'clip_ratio_low': -0.1}, 'clip_ratio_low = -0.1 must be at least 0'),
    ({'delta': 1.1}, 'delta = 1.1 must be above 1'),
    (
      {'rollout_is': 'mask', 'rollout_is_threshold': 0.5},
      'rollout_is_threshold = 0.5 must be at least 1',
    ),
  ],
)
def test_a_loss_with_wrong_parameters_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    PolicyLoss(**changes)


@pytest.mark.parametrize('kind', ['k1', 'k2', 'k3'])
def test_kl_estimators(kind):
  """Expectation over a small vocabulary against the analytic KL."""
  p = np.array([0.5, 0.3, 0.2])
  q = np.array([0.45, 0.32, 0.23])
  exact = (p * np.log(p / q)).sum()
  estimate = (
    p * np.asarray(common.kl_estimate(kind, np.log(p), np.log(q)))
  ).sum()
  np.testing.assert_allclose(
    estimate, exact, rtol=0.05 if kind == 'k2' else 1e-4
  )


def test_kl_gradients_against_the_analytic_one():
  """In the loss, on samples of the policy: k3's expected gradient is that of
  KL(reference ‖ policy), k2's that of KL(policy ‖ reference), k1's is zero."""
  q = jnp.array([0.2, 0.3, 0.5])
  x = jnp.array([0.4, -0.2, 0.1])

  def expected(kind):
    p = jax.lax.stop_gradient(jax.nn.softmax(x))
    return jax.grad(
      lambda x: (
        p * common.kl_estimate(kind, jax.nn.log_softmax(x), jnp.log(q))
      ).sum()
    )(x)

  def forward(x):
    logp = jax.nn.log_softmax(x)
    return (jnp.exp(logp) * (logp - jnp.log(q))).sum()

  def reverse(x):
    return (q * (jnp.log(q) - jax.nn.log_softmax(x))).sum()

  np.testing.assert_allclose(expected('k1'), 0, atol=1e-6)
  np.testing.assert_allclose(expected('k2'), jax.grad(forward)(x), atol=1e-6)
  np.testing.assert_allclose(expected('k3'), jax.grad(reverse)(x), atol=1e-6)


def test_k3_gradient_is_bounded_far_from_the_reference():
  grad = jax.grad(lambda x: common.kl_estimate('k3', x, jnp.float32(-1.0)))(
    -500.0
  )
  assert np.isfinite(grad)
  with pytest.raises(ValueError, match='k4'):
    common.kl_estimate('k4', 0.0, 0.0)


@pytest.mark.parametrize('chunk', [7, 12, 1000])
def test_chunked_logp_equals_the_whole(chunk):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(3, 8, 5)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(5, 11)), jnp.float32)
  target = jnp.asarray(rng.integers(0, 11, (3, 8)))

  def chunked(h, w):
    return common.token_logp(h, w, target, 0.7, chunk)

  def whole(h, w):
    logp = jax.nn.log_softmax(h @ w / 0.7)
    return (
      jnp.take_along_axis(logp, target[..., None], -1)[..., 0],
      -(jnp.exp(logp) * logp).sum(-1),
    )

  for got, want in zip(chunked(hidden, head), whole(hidden, head)):
    np.testing.assert_allclose(got, want, atol=1e-5)
  weight = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
  grads = [
    jax.grad(lambda h, w: (f(h, w)[0] * weight).sum(), (0, 1))(hidden, head)
    for f in (chunked, whole)
  ]
  for got, want in zip(*grads):
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_logits_are_never_whole_in_memory():
  """Compiled and not run: 8 × 1024 tokens over Qwen's vocabulary.

  With everything in one chunk the measure sees the whole of them.
  """
  B, T, D, V = 8, 1024, 64, 151936
  whole_bytes = B * T * V * 4  # 5 GB
  shapes = (
    jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16),
    jax.ShapeDtypeStruct((D, V), jnp.bfloat16),
    jax.ShapeDtypeStruct((B, T), jnp.int32),
  )

  def temp_bytes(function):
    compiled = jax.jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def value(chunk_tokens=None):
    def total(hidden, head, target):
      logp, entropy = common.token_logp(
        hidden, head, target, chunk_tokens=chunk_tokens
      )
      return logp.sum(), entropy.sum()

    return total

  def gradient(chunk_tokens=None):
    return jax.grad(value(chunk_tokens), (0, 1), has_aux=True)

  assert temp_bytes(value()) < whole_bytes / 4
  assert temp_bytes(gradient()) < whole_bytes / 4
  assert temp_bytes(gradient(B * T)) > whole_bytes
