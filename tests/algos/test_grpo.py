"""The GRPO loss against TRL's values, NumPy and analytic cases."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import advantage, common, grpo


def _cases(shared):
  data = np.load(shared / 'oracle' / 'grpo_loss.npz', allow_pickle=False)
  cases = json.loads(str(data['cases']))
  plain = [
      i for i, case in enumerate(cases)
      if case['loss_type'] == 'dapo' and case['level'] == 'token'
      and case['use_old'] and not case.get('delta')
      and not case.get('kl_fix') and case['quantile'] in (None, 1, 1.0)]
  return data, cases, plain


def test_value_and_gradient_equal_trl(shared):
  """TRL's 'dapo' aggregation is the global token norm, times a constant."""
  data, cases, plain = _cases(shared)
  assert len(plain) >= 3
  mask = data['mask'].astype(bool)
  for i in plain:
    case = cases[i]
    adv = data[f"advantages_{case['scale']}"]
    value = lambda logp: grpo.loss(
        logp, data['old_logps'], data['ref_logps'], adv, mask,
        float(data['num_items_in_batch']), case['eps'], case['eps_high'],
        case['beta'])[0]
    loss, grad = jax.value_and_grad(value)(jnp.asarray(data['policy_logps']))
    np.testing.assert_allclose(loss, data['loss'][i], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(grad, data['grad'][i], rtol=1e-4, atol=1e-7)


def test_group_advantages_equal_trl(shared):
  data = np.load(shared / 'oracle' / 'grpo_loss.npz', allow_pickle=False)
  rewards, size = data['rewards'], int(data['group_size'])
  group = np.arange(len(rewards)) // size
  for name, scale in (('group', True), ('none', False)):
    got, _ = advantage.group(jnp.asarray(rewards), group, len(rewards) // size,
                             scale_by_std=scale)
    np.testing.assert_allclose(got, data[f'advantages_{name}'], atol=1e-5)


def test_advantages_follow_the_group_id_not_the_position():
  reward = np.random.default_rng(0).normal(size=12).astype(np.float32)
  group = np.arange(12) // 4
  want, _ = advantage.group(jnp.asarray(reward), group, 3)
  order = np.random.default_rng(1).permutation(12)
  got, _ = advantage.group(jnp.asarray(reward[order]), group[order], 3)
  np.testing.assert_allclose(got, np.asarray(want)[order], rtol=1e-5)


@pytest.mark.parametrize('value', [0.0, 0.1, 1.1, 1e6])
def test_equal_rewards_give_exactly_zero(value):
  reward = jnp.array([value] * 7 + [1.0, 0.0, 1.0])
  group = jnp.array([0] * 7 + [1] * 3)
  adv, varied = advantage.group(reward, group, 2)
  assert (adv[:7] == 0).all() and varied.tolist() == [False, True]


def test_first_update_has_ratio_one_and_the_policy_gradient():
  """At ρ = 1 the gradient is −A / tokens: REINFORCE with a baseline."""
  rng = np.random.default_rng(0)
  logp = jnp.asarray(-rng.uniform(0.1, 3, (4, 6)), jnp.float32)
  adv = jnp.array([1.0, -1.0, 0.5, 0.0])
  mask = jnp.asarray(rng.random((4, 6)) < 0.7)
  value = lambda x: grpo.loss(x, logp, logp, adv, mask, mask.sum(), 0.2, 0.2,
                              0.01)
  grad, metrics = jax.grad(value, has_aux=True)(logp)
  want = np.where(mask, -np.asarray(adv)[:, None] / float(mask.sum()), 0)
  np.testing.assert_allclose(grad, want, atol=1e-7)
  assert metrics['ratio/mean'] == 1 and metrics['clip_fraction'] == 0
  assert metrics['kl'] == 0


@pytest.mark.parametrize('ratio,adv,clipped', [
    (1.5, 1.0, True), (1.5, -1.0, False), (0.5, 1.0, False),
    (0.5, -1.0, True), (1.25, 1.0, False)])
def test_clipping_is_one_sided_and_asymmetric(ratio, adv, clipped):
  logp = jnp.full((1, 1), np.log(ratio), jnp.float32)
  value = lambda x: grpo.loss(
      x, jnp.zeros((1, 1)), x, jnp.array([adv]), jnp.ones((1, 1), bool), 1,
      0.2, 0.28, 0.0)
  grad, metrics = jax.grad(value, has_aux=True)(logp)
  assert bool(metrics['clip_fraction']) == clipped
  np.testing.assert_allclose(grad[0, 0], 0 if clipped else -ratio * adv,
                             rtol=1e-5)


def test_a_nan_outside_the_mask_is_harmless():
  logp = jnp.array([[-1.0, jnp.nan]])
  value = lambda x: grpo.loss(
      x, jnp.array([[-1.0, jnp.nan]]), jnp.array([[-2.0, jnp.nan]]),
      jnp.array([1.0]), jnp.array([[True, False]]), 1, 0.2, 0.2, 0.1)[0]
  loss, grad = jax.value_and_grad(value)(logp)
  assert np.isfinite(loss) and np.isfinite(grad[0, 0])
  assert np.isfinite(grad[0, 1])


@pytest.mark.parametrize('kind', ['k1', 'k2', 'k3'])
def test_kl_estimators(kind):
  """Expectation over a small vocabulary against the analytic KL."""
  p = np.array([0.5, 0.3, 0.2])
  q = np.array([0.45, 0.32, 0.23])
  exact = (p * np.log(p / q)).sum()
  estimate = (p * np.asarray(common.kl(kind, np.log(p), np.log(q)))).sum()
  np.testing.assert_allclose(estimate, exact, rtol=0.05 if kind == 'k2'
                             else 1e-4)


def test_kl_gradients_against_the_analytic_one():
  """In the loss, on samples of the policy: k3's expected gradient is that of
  KL(reference ‖ policy), k2's that of KL(policy ‖ reference), k1's is zero."""
  q = jnp.array([0.2, 0.3, 0.5])
  x = jnp.array([0.4, -0.2, 0.1])

  def expected(kind):
    p = jax.lax.stop_gradient(jax.nn.softmax(x))
    return jax.grad(lambda x: (p * common.kl(
        kind, jax.nn.log_softmax(x), jnp.log(q))).sum())(x)

  def forward(x):
    logp = jax.nn.log_softmax(x)
    return (jnp.exp(logp) * (logp - jnp.log(q))).sum()

  def reverse(x):
    return (q * (jnp.log(q) - jax.nn.log_softmax(x))).sum()

  np.testing.assert_allclose(expected('k1'), 0, atol=1e-6)
  np.testing.assert_allclose(expected('k2'), jax.grad(forward)(x), atol=1e-6)
  np.testing.assert_allclose(expected('k3'), jax.grad(reverse)(x), atol=1e-6)


def test_k3_gradient_is_bounded_far_from_the_reference():
  grad = jax.grad(lambda x: common.kl('k3', x, jnp.float32(-1.0)))(-500.0)
  assert np.isfinite(grad)
  with pytest.raises(ValueError, match='k4'):
    common.kl('k4', 0.0, 0.0)


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
    return (jnp.take_along_axis(logp, target[..., None], -1)[..., 0],
            -(jnp.exp(logp) * logp).sum(-1))

  for got, want in zip(chunked(hidden, head), whole(hidden, head)):
    np.testing.assert_allclose(got, want, atol=1e-5)
  weight = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
  grads = [jax.grad(lambda h, w: (f(h, w)[0] * weight).sum(), (0, 1))(
      hidden, head) for f in (chunked, whole)]
  for got, want in zip(*grads):
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_logits_are_never_whole_in_memory():
  """Compiled and not run: 8 × 1024 tokens over Qwen's vocabulary.

  With everything in one chunk the measure sees the whole of them.
  """
  B, T, D, V = 8, 1024, 64, 151936
  whole_bytes = B * T * V * 4  # 5 GB
  shapes = (jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16),
            jax.ShapeDtypeStruct((D, V), jnp.bfloat16),
            jax.ShapeDtypeStruct((B, T), jnp.int32))

  def temp_bytes(function):
    compiled = jax.jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def value(chunk_tokens=None):
    def total(hidden, head, target):
      logp, entropy = common.token_logp(
          hidden, head, target, chunk_tokens=chunk_tokens)
      return logp.sum(), entropy.sum()
    return total

  def gradient(chunk_tokens=None):
    return jax.grad(value(chunk_tokens), (0, 1), has_aux=True)

  assert temp_bytes(value()) < whole_bytes / 4
  assert temp_bytes(gradient()) < whole_bytes / 4
  assert temp_bytes(gradient(B * T)) > whole_bytes
