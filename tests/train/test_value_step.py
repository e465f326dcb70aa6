"""A value function's updates: however split, the same; and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import gae, policy_loss
from r1jax.config.schema.rl import GAEConfig
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data.sample_packing import RowShape
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch, Rollout
from r1jax.sharding import Layout, make_mesh
from r1jax.train import optimizer, policy_step, value_step
from r1jax.train import state as train_state
from tests.conftest import dense_config, make, small_config
from tests.train.batches import one_a_row, packed, unpacked

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
_PROMPT, _OWN, _ROWS, _GROUP = 5, 6, 16, 4


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
  tokens = rng.integers(3, 32, (_ROWS, T)).astype(np.int32)
  tokens[:, :_PROMPT] = np.repeat(tokens[::_GROUP, :_PROMPT], _GROUP, 0)
  start = np.repeat(rng.integers(0, _PROMPT, _ROWS // _GROUP), _GROUP)[:, None]
  return Rollout(
    tokens_BT=tokens,
    valid_BT=mask | ((column < _PROMPT) & (column >= start)),
    mask_BT=mask,
    logp_BT=nothing,
    model_logp_BT=nothing,
    staleness_BT=nothing.astype(np.int32),
    finish_B=np.ones(_ROWS, np.int32),
    length_B=length_B.astype(np.int32),
    group_B=np.arange(_ROWS, dtype=np.int32) // _GROUP,
  )


def _shape(
  row_tokens=_PROMPT + _OWN,
  microbatch_rows=_ROWS,
  num_updates=1,
  repeated_tokens=0,
) -> RowShape:
  return RowShape(
    row_tokens=row_tokens,
    microbatch_rows=microbatch_rows,
    num_updates=num_updates,
    num_samples=_ROWS,
    max_sample_tokens=_PROMPT + _OWN,
    repeated_tokens=repeated_tokens,
  )


def _judged(model, params, batch: RLBatch, reward_B, shape) -> RLBatch:
  """Returns fresh samples with values and advantages, and the estimate."""
  value_BT, after_BT = value_step.values(model, shape)(params, batch)
  estimate = gae.estimate(
    _GAE,
    gae.token_rewards(
      reward_B[batch.sample_BT], batch.mask_BT, batch.segment_BT
    ),
    value_BT,
    after_BT,
    np.zeros(batch.mask_BT.shape, bool),
    batch.mask_BT,
    batch.segment_BT,
  )
  return batch.replace(
    adv_BT=estimate.adv_BT, value_BT=value_BT, return_BT=estimate.return_BT
  ), estimate


def _batch(model, params, shape=None) -> RLBatch:
  """Fresh samples with rewards of noise, one a row unless a shape is given."""
  rollout, alone = _rollout(), one_a_row(_rollout())
  reward_B = np.random.default_rng(1).normal(size=_ROWS).astype(np.float32)
  (logp_BT,) = policy_step.token_logps(model, 1.0, _shape())(params, alone)
  batch = alone if shape is None else packed(rollout, shape)
  if shape is not None:
    logp_BT = packed(rollout, shape, logp_BT=logp_BT).logp_BT
  batch = batch.replace(
    logp_BT=logp_BT, old_logp_BT=logp_BT, ref_logp_BT=logp_BT
  )
  return _judged(model, params, batch, reward_B, shape or _shape())[0]


def _critic_update(model, params, batch, shape=None):
  tx = optimizer.make(_OPTIMIZER, 10, untrained=('head',))
  step = value_step.critic(model, tx, _GAE, shape or _shape(), _BALANCING)
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  return step(state, batch)


def _shared_update(model, params, batch, coef, shape=None):
  tx = optimizer.make(_OPTIMIZER, 10)
  step = policy_step.policy(
    model,
    tx,
    policy_loss.PolicyLoss(kl_coef=0.0),
    1.0,
    shape or _shape(),
    LoadBalancingConfig(0.0, 0.0),
    extra_loss=value_step.shared_value_loss(model, _GAE, coef),
  )
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  return step(state, batch)


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
  batch = one_a_row(_rollout())
  value = value_step.values(model, _shape())
  value_BT, after_BT = map(np.asarray, value(params, batch))
  assert not value_BT[~batch.mask_BT].any()
  changed_at = _PROMPT + 1
  tokens_BT = batch.tokens_BT.copy()
  tokens_BT[:, changed_at] = (tokens_BT[:, changed_at] + 1) % 32
  other_BT, other_after_BT = map(
    np.asarray, value(params, batch.replace(tokens_BT=tokens_BT))
  )
  close = np.isclose(other_BT, value_BT, atol=1e-5)
  assert close[:, : changed_at + 1].all()
  later = batch.mask_BT[:, changed_at + 1 :]
  assert not close[:, changed_at + 1 :][later].any()
  # The state after a token has that token in it.
  same_BT = np.isclose(other_after_BT, after_BT, atol=1e-5)
  assert same_BT[:, :changed_at][batch.mask_BT[:, :changed_at]].all()
  assert not same_BT[:, changed_at:][batch.mask_BT[:, changed_at:]].any()


# Samples share prompts.
_PACKED = _shape(row_tokens=22, microbatch_rows=1, repeated_tokens=1)


@pytest.mark.slow
def test_packing_and_devices_do_not_change_a_critic():
  """One device and one row a sample, packed rows, eight devices."""
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
  split = _batch(model, params, _PACKED)
  assert (split.prefix_BT > 0).any()
  for got, got_metrics in (
    _critic_update(model, params, split, _PACKED),
    _critic_update(wide, spread, jax.tree.map(np.asarray, batch)),
  ):
    _assert_same(_moments(got), _moments(want), 1e-6)
    _assert_same(got.params['scalar'], want.params['scalar'], 1e-5)
    for name in ('critic/vf_loss', 'critic/grad_norm', 'critic/vf_clipfrac'):
      np.testing.assert_allclose(got_metrics[name], metrics[name], rtol=1e-4)
  alone = one_a_row(_rollout())
  values = value_step.values(wide, _shape())(spread, alone)
  want_values = value_step.values(model, _shape())(params, alone)
  _assert_same(values[0], want_values[0], 1e-5)
  value_BT, _ = value_step.values(model, _PACKED)(params, split)
  _assert_same(unpacked(split, _rollout(), value_BT), want_values[0], 1e-5)


@pytest.mark.slow
def test_a_shared_trunk_is_one_loss_however_it_is_packed(dense):
  """Its ratio is 1 on fresh samples, and the value's loss is what is added."""
  model, params, batch = dense
  want, metrics = _shared_update(model, params, batch, coef=0.5)
  np.testing.assert_allclose(metrics['ratio/mean'], 1, atol=1e-6)
  assert metrics['pg_clipfrac'] == metrics['critic/vf_clipfrac'] == 0
  got, got_metrics = _shared_update(
    model, params, _batch(model, params, _PACKED), 0.5, _PACKED
  )
  _assert_same(_moments(got), _moments(want), 1e-6)
  error = (batch.value_BT - batch.return_BT)[batch.mask_BT]
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


@pytest.mark.slow
def test_a_critic_learns_a_known_value():
  """The reward is in the prompt: whether its last token is an odd one."""
  model, params = _made(dense_config())
  rollout, shape = _rollout(), _shape(row_tokens=27, num_updates=2)
  reward_B = (rollout.tokens_BT[:, _PROMPT - 1] % 2).astype(np.float32)
  tx = optimizer.make(_OPTIMIZER, 60, untrained=('head',))
  step = value_step.critic(model, tx, _GAE, shape, _BALANCING)
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  explained = []
  fresh = packed(rollout, shape)
  fresh = fresh.replace(old_logp_BT=fresh.logp_BT, ref_logp_BT=fresh.logp_BT)
  for _ in range(30):
    batch, estimate = _judged(model, state.params, fresh, reward_B, shape)
    explained.append(float(estimate.metrics['critic/vf_explained_var']))
    state, _ = step(state, batch)
  assert explained[0] < 0.5 and explained[-1] > 0.9
  error = (np.asarray(batch.value_BT) - reward_B[batch.sample_BT])[
    batch.mask_BT
  ]
  assert np.abs(error).mean() < 0.2
  np.testing.assert_array_equal(state.params['head'], params['head'])
