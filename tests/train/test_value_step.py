"""A value function's updates: however split, the same; and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import gae, policy_loss
from r1jax.config.schema.rl import GAEConfig
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch, Rollout
from r1jax.sharding import Layout, make_mesh
from r1jax.train import optimizer, policy_step, value_step
from r1jax.train import state as train_state
from tests.conftest import dense_config, make, small_config

_OPTIMIZER = OptimizerConfig(
  learning_rate=1e-2,
  warmup_steps=0,
  lr_scheduler_type='constant',
  min_lr_ratio=0.1,
  adam_beta1=0.9,
  adam_beta2=0.95,
  weight_decay=0.0,
  max_grad_norm=1.0,
  moment_dtype='float32',
)
_BALANCING = LoadBalancingConfig(
  routed_bias_update_rate=1e-3, router_aux_loss_coef=0.01
)
_GAE = GAEConfig()
_PROMPT, _OWN, _ROWS = 3, 6, 16


def _made(config, seed=0):
  """A model whose scalar head says something from the start."""
  model, params = make(dataclasses.replace(config, scalar_head=True))
  params['scalar'] = 0.3 * jax.random.normal(
    jax.random.key(seed), params['scalar'].shape
  )
  return model, params


def _rollout(seed=0) -> Rollout:
  rng = np.random.default_rng(seed)
  T = _PROMPT + _OWN
  length_B = rng.integers(1, _OWN + 1, _ROWS)
  column = np.arange(T)
  mask = (column >= _PROMPT) & (column < _PROMPT + length_B[:, None])
  nothing = np.zeros((_ROWS, T), np.float32)
  return Rollout(
    tokens_BT=rng.integers(3, 32, (_ROWS, T)).astype(np.int32),
    valid_BT=mask
    | ((column < _PROMPT) & (column >= rng.integers(0, _PROMPT, (_ROWS, 1)))),
    mask_BT=mask,
    logp_BT=nothing,
    model_logp_BT=nothing,
    staleness_BT=nothing.astype(np.int32),
    finish_B=np.ones(_ROWS, np.int32),
    length_B=length_B.astype(np.int32),
    group_B=np.arange(_ROWS, dtype=np.int32),
  )


def _batch(model, params, reward_B=None) -> RLBatch:
  """Fresh samples, judged; rewards are noise if none are given."""
  rollout = _rollout()
  if reward_B is None:
    reward_B = np.random.default_rng(1).normal(size=_ROWS).astype(np.float32)
  logp_BT = policy_step.token_logps(model, 1.0, _PROMPT)(params, rollout)
  value_BT, after_B = value_step.values(model)(params, rollout)
  estimate = gae.estimate(
    _GAE,
    gae.token_rewards(reward_B, rollout.mask_BT),
    value_BT,
    after_B,
    np.zeros(_ROWS, bool),
    rollout.mask_BT,
  )
  return RLBatch(
    rollout=rollout.replace(logp_BT=logp_BT),
    adv_BT=estimate.adv_BT,
    old_logp_BT=logp_BT,
    ref_logp_BT=logp_BT,
    value_BT=value_BT,
    return_BT=estimate.return_BT,
  )


def _critic_update(model, params, batch, gradient_accumulation_steps=1):
  tx = optimizer.make(_OPTIMIZER, 10, untrained=('head',))
  step = value_step.critic(
    model, tx, _GAE, 1, gradient_accumulation_steps, _BALANCING
  )
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  return step(state, batch, jax.random.key(0))


def _shared_update(model, params, batch, coef, gradient_accumulation_steps=1):
  tx = optimizer.make(_OPTIMIZER, 10)
  step = policy_step.policy(
    model,
    tx,
    policy_loss.PolicyLoss(kl_coef=0.0),
    1.0,
    _PROMPT,
    1,
    gradient_accumulation_steps,
    LoadBalancingConfig(0.0, 0.0),
    extra_loss=value_step.shared_value_loss(model, _GAE, coef),
  )
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  return step(state, batch, jax.random.key(0))


def _moments(state):
  """First moments and roots of the second: both in a gradient's unit."""
  adam = state.opt_state[1]
  return adam.mu, jax.tree.map(np.sqrt, jax.device_get(adam.nu))


def _assert_same(got, want, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol),
    jax.device_get(got),
    jax.device_get(want),
  )


@pytest.fixture(scope='module')
def dense():
  model, params = _made(dense_config())
  return model, params, _batch(model, params)


def test_a_value_is_of_what_stands_before_its_token(dense):
  """It changes with the tokens before it, and with no other."""
  model, params, _ = dense
  rollout = _rollout()
  value = value_step.values(model)
  value_BT, after_B = map(np.asarray, value(params, rollout))
  assert not value_BT[~rollout.mask_BT].any()
  changed_at = _PROMPT + 1
  tokens_BT = rollout.tokens_BT.copy()
  tokens_BT[:, changed_at] = (tokens_BT[:, changed_at] + 1) % 32
  other_BT, other_B = map(
    np.asarray, value(params, rollout.replace(tokens_BT=tokens_BT))
  )
  close = np.isclose(other_BT, value_BT, atol=1e-5)
  assert close[:, : changed_at + 1].all()
  later = rollout.mask_BT[:, changed_at + 1 :]
  assert not close[:, changed_at + 1 :][later].any()
  # The state that a row was left in has its last token in it.
  ends_B = rollout.length_B > 1
  assert (np.isclose(other_B, after_B, atol=1e-5) == ~ends_B).all()


@pytest.mark.slow
def test_microbatches_and_devices_do_not_change_a_critic():
  """One device and one batch, four microbatches, eight devices."""
  config = small_config(kv_lora_rank=16, num_hidden_layers=2)
  model, params = _made(config)
  batch = _batch(model, params)
  want, metrics = _critic_update(model, params, batch)
  assert metrics['critic/vf_loss'] > 0.01
  layout = Layout(make_mesh(dict(data=2, fsdp=2, expert=2)))
  wide = Transformer(model.config, layout)
  spread = jax.device_put(
    jax.device_get(params), parameters.parameter_shardings(wide, layout)
  )
  for got, got_metrics in (
    _critic_update(model, params, batch, gradient_accumulation_steps=4),
    _critic_update(wide, spread, jax.tree.map(np.asarray, batch)),
  ):
    _assert_same(_moments(got), _moments(want), 1e-6)
    _assert_same(got.params['scalar'], want.params['scalar'], 1e-5)
    for name in ('critic/vf_loss', 'critic/grad_norm', 'critic/vf_clipfrac'):
      np.testing.assert_allclose(got_metrics[name], metrics[name], rtol=1e-4)
  values = value_step.values(wide)(spread, _rollout())
  _assert_same(values, value_step.values(model)(params, _rollout()), 1e-5)


def test_a_shared_trunk_is_one_loss_however_it_is_split(dense):
  """Its ratio is 1 on fresh samples, and the value's loss is what is added."""
  model, params, batch = dense
  want, metrics = _shared_update(model, params, batch, coef=0.5)
  np.testing.assert_allclose(metrics['ratio/mean'], 1, atol=1e-6)
  assert metrics['pg_clipfrac'] == metrics['critic/vf_clipfrac'] == 0
  got, got_metrics = _shared_update(
    model, params, batch, coef=0.5, gradient_accumulation_steps=4
  )
  _assert_same(_moments(got), _moments(want), 1e-6)
  error = (batch.value_BT - batch.return_BT)[batch.rollout.mask_BT]
  np.testing.assert_allclose(
    [metrics['critic/vf_loss'], got_metrics['critic/vf_loss']],
    0.5 * (error**2).mean(),
    rtol=1e-4,
  )
  alone, _ = _shared_update(model, params, batch, coef=0.0)
  assert not np.asarray(_moments(alone)[0]['scalar']).any()
  assert np.asarray(_moments(want)[0]['scalar']).any()


def test_zero_advantage_leaves_the_policy(dense):
  """A value that is not counted changes nothing; one that is counted moves
  the trunk, but not the head that only words come from."""
  model, params, batch = dense
  batch = batch.replace(adv_BT=np.zeros_like(batch.adv_BT))
  left, _ = _shared_update(model, params, batch, coef=0.0)
  _assert_same(left.params, params, 0)
  moved, _ = _shared_update(model, params, batch, coef=0.5)
  np.testing.assert_array_equal(moved.params['head'], params['head'])
  assert (moved.params['embedding'] != params['embedding']).any()


def test_a_critic_learns_a_known_value():
  """The reward is in the prompt: whether its last token is an odd one."""
  model, params = _made(dense_config())
  rollout = _rollout()
  reward_B = (rollout.tokens_BT[:, _PROMPT - 1] % 2).astype(np.float32)
  tx = optimizer.make(_OPTIMIZER, 60, untrained=('head',))
  step = value_step.critic(model, tx, _GAE, 2, 1, _BALANCING)
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  values, explained = value_step.values(model), []
  for i in range(30):
    value_BT, after_B = values(state.params, rollout)
    estimate = gae.estimate(
      _GAE,
      gae.token_rewards(reward_B, rollout.mask_BT),
      value_BT,
      after_B,
      np.zeros(_ROWS, bool),
      rollout.mask_BT,
    )
    explained.append(float(estimate.metrics['critic/vf_explained_var']))
    state, _ = step(
      state,
      RLBatch(
        rollout=rollout,
        adv_BT=estimate.adv_BT,
        old_logp_BT=rollout.logp_BT,
        ref_logp_BT=rollout.logp_BT,
        value_BT=value_BT,
        return_BT=estimate.return_BT,
      ),
      jax.random.key(i),
    )
  assert explained[0] < 0.5 and explained[-1] > 0.9
  target_BT = reward_B[:, None] * np.ones(rollout.mask_BT.shape)
  error = (np.asarray(value_BT) - target_BT)[rollout.mask_BT]
  assert np.abs(error).mean() < 0.2
  np.testing.assert_array_equal(state.params['head'], params['head'])
