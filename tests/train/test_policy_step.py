"""One update: however it is split, on one device or eight, the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.policy_loss import PolicyLoss
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data.sample_packing import RowShape
from r1jax.errors import UserError
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.records import RLBatch, Rollout, TokenBatch
from r1jax.sharding import Layout, make_mesh
from r1jax.train import mtp_loss, optimizer, policy_step, supervised_step
from r1jax.train import state as train_state
from tests.conftest import make, one_device, small_config
from tests.train.batches import one_a_row, packed, unpacked

_OPTIMIZER = OptimizerConfig(
  learning_rate=1e-3,
  warmup_steps=0,
  lr_scheduler_type='constant',
  min_lr_ratio=0.1,
  adam_beta1=0.9,
  adam_beta2=0.95,
  weight_decay=0.1,
  max_grad_norm=1.0,
  moment_dtype='float32',
)
_PROMPT, _OWN, _ROWS, _GROUP = 10, 8, 16, 4
_BALANCING = LoadBalancingConfig(
  routed_bias_update_rate=1e-3, router_aux_loss_coef=0.01
)
_MTP_LOSS = mtp_loss.MTPLoss(weight=0.3, final_weight=0.1, switch_updates=5)


def _rollout(seed=0) -> Rollout:
  """Groups of one prompt, with completions of very different lengths."""
  rng = np.random.default_rng(seed)
  T = _PROMPT + _OWN
  length_B = rng.integers(1, _OWN + 1, _ROWS)
  start_B = np.repeat(rng.integers(0, _PROMPT, _ROWS // _GROUP), _GROUP)
  tokens = rng.integers(3, 32, (_ROWS, T)).astype(np.int32)
  tokens[:, :_PROMPT] = np.repeat(tokens[::_GROUP, :_PROMPT], _GROUP, 0)
  column = np.arange(T)
  mask = (column >= _PROMPT) & (column < _PROMPT + length_B[:, None])
  return Rollout(
    tokens_BT=tokens,
    valid_BT=mask | ((column < _PROMPT) & (column >= start_B[:, None])),
    mask_BT=mask,
    logp_BT=np.zeros((_ROWS, T), np.float32),
    model_logp_BT=np.zeros((_ROWS, T), np.float32),
    staleness_BT=np.zeros((_ROWS, T), np.int32),
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
  """Rows of one sample in one microbatch, unless it is asked for others."""
  return RowShape(
    row_tokens=row_tokens,
    microbatch_rows=microbatch_rows,
    num_updates=num_updates,
    num_samples=_ROWS,
    max_sample_tokens=_PROMPT + _OWN,
    repeated_tokens=repeated_tokens,
  )


def _signals(model, params, rollout: Rollout) -> dict:
  """Fresh log-probabilities of a rollout's samples, and random signals."""
  old = policy_step.token_logps(model, 1.0, _shape())
  (logp_BT,) = old(params, one_a_row(rollout))
  rng = np.random.default_rng(1)
  noise = 0.3 * rng.normal(size=logp_BT.shape).astype(np.float32)
  adv_B1 = rng.normal(size=(_ROWS, 1)).astype(np.float32)
  return dict(
    logp_BT=logp_BT,
    adv_BT=adv_B1 * np.ones_like(logp_BT),
    old_logp_BT=logp_BT,
    ref_logp_BT=logp_BT + noise,
  )


def _rl_batch(model, params, shape=None) -> RLBatch:
  rollout = _rollout()
  return packed(rollout, shape or _shape(), **_signals(model, params, rollout))


def _policy(model, tx, shape, kl_coef=0.1, mtp_loss_weight=0.0, **loss):
  return policy_step.policy(
    model,
    tx,
    PolicyLoss(kl_coef=kl_coef, **loss),
    1.0,
    shape,
    _BALANCING,
    mtp_loss_weight,
  )


def _update(model, params, batch, shape=None, **loss):
  tx = optimizer.make(_OPTIMIZER, 10)
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  return _policy(model, tx, shape or _shape(), **loss)(state, batch)


def _assert_same(got, want, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol),
    jax.device_get(got),
    jax.device_get(want),
  )


def _moments(state):
  """First moments and roots of the second: both in a gradient's unit."""
  adam = state.opt_state[1]
  return adam.mu, jax.tree.map(np.sqrt, jax.device_get(adam.nu))


_SHAPES = [
  _shape(),  # Best fit makes a few rows, of which some stay empty.
  _shape(row_tokens=19, microbatch_rows=4),
  _shape(row_tokens=250, microbatch_rows=1),
  # Samples share prompts, but for the tokens that an MTP module needs.
  _shape(row_tokens=40, microbatch_rows=1, repeated_tokens=2),
]


@pytest.mark.slow
@pytest.mark.parametrize(
  'loss',
  [
    dict(loss_agg_mode='token-mean', kl_estimator='k1'),
    dict(
      loss_agg_mode='seq-mean-token-mean', importance_sampling_level='sequence'
    ),
    dict(loss_agg_mode='seq-mean-token-sum-norm', max_tokens=_OWN),
    dict(policy_loss='cispo', kl_estimator='k2', kl_importance_weighted=True),
  ],
  ids=str,
)
def test_packed_rows_are_the_update_of_one_row_a_sample(loss):
  """Whatever the rows, microbatches, aggregation, ratio and KL: one gradient."""
  model, params = make(
    small_config(num_hidden_layers=2, num_nextn_predict_layers=1)
  )
  rollout, loss = _rollout(), loss | dict(mtp_loss_weight=0.3)
  signals = _signals(model, params, rollout)
  rng = np.random.default_rng(5)
  signals['old_logp_BT'] += 0.2 * rng.normal(size=rollout.mask_BT.shape)
  alone = one_a_row(rollout).replace(**signals)
  whole, metrics = _update(model, params, alone, **loss)
  want_logp = np.asarray(signals['logp_BT'])
  for shape in _SHAPES:
    batch = packed(rollout, shape, **signals)
    if shape.repeated_tokens:
      assert (batch.prefix_BT > 0).any()
    state, split = _update(model, params, batch, shape, **loss)
    _assert_same(_moments(state), _moments(whole), 1e-6)
    _assert_same(
      state.params['moe_layers']['ffn']['bias'],
      whole.params['moe_layers']['ffn']['bias'],
      0,
    )
    assert split.keys() == metrics.keys()
    for name, value in metrics.items():
      # Differences of log-probabilities near 0 carry the rounding of the
      # log-probabilities themselves, about 4 of absolute value in float32.
      logps = name.startswith('rollout_logp_diff')
      np.testing.assert_allclose(
        split[name],
        value,
        rtol=2e-6,
        atol=5e-6 if logps else 1e-6,
        err_msg=name,
      )
    old = policy_step.token_logps(model, 1.0, shape, 2)
    for got in old(params, params, batch):
      got = unpacked(batch, rollout, got)
      np.testing.assert_allclose(got, want_logp, atol=1e-5)


@pytest.mark.slow
def test_supervised_microbatches_do_not_change_the_update():
  """Though rows at the end only fill the batch, as in a corpus's last one."""
  model, params = make(small_config())
  rng = np.random.default_rng(0)
  shape = (8, 10)
  batch = TokenBatch(
    tokens_BT=rng.integers(0, 32, shape),
    target_BT=rng.integers(0, 32, shape),
    weight_BT=(rng.random(shape) < 0.5).astype(np.int32),
    segment_BT=np.ones(shape, np.int32),
    position_BT=np.tile(np.arange(10), (8, 1)),
  )
  batch = jax.tree.map(
    lambda x: np.where(np.arange(8)[:, None] < 5, x, 0), batch
  )
  tx = optimizer.make(_OPTIMIZER, 10)
  outs = []
  for parts in (1, 4):
    state = train_state.create(jax.tree.map(jnp.copy, params), tx)
    step = supervised_step.supervised(model, tx, _BALANCING, _MTP_LOSS, parts)
    outs.append(step(state, batch))
  _assert_same(outs[0][0].opt_state, outs[1][0].opt_state, 1e-6)
  np.testing.assert_allclose(outs[0][1]['loss'], outs[1][1]['loss'], rtol=1e-5)


def test_first_update_on_fresh_samples_has_ratio_one():
  model, params = make(small_config())
  _, metrics = _update(model, params, _rl_batch(model, params))
  np.testing.assert_allclose(metrics['ratio/mean'], 1, atol=1e-6)
  assert metrics['pg_clipfrac'] == 0
  assert metrics['rollout_logp_diff/max'] < 1e-5
  assert metrics['kl'] > 0


@pytest.mark.slow
def test_the_gap_to_the_sampler_is_of_this_policy_s_tokens():
  """Every third token is older, and its log-probability far off."""
  model, params = make(small_config())
  batch = _rl_batch(model, params)
  old = batch.position_BT % 3 == 0
  metrics = []
  for offset in (0.0, 0.5):
    changed = batch.replace(
      staleness_BT=old.astype(np.int32),
      logp_BT=batch.logp_BT + np.where(old, 5.0, offset * batch.mask_BT),
    )
    metrics.append(_update(model, params, changed)[1])
  assert metrics[0]['rollout_logp_diff/max'] < 1e-5
  for name in ('rollout_logp_diff/max', 'rollout_logp_diff/mean'):
    np.testing.assert_allclose(metrics[1][name], 0.5, atol=1e-5)


@pytest.mark.slow
def test_later_minibatches_are_off_policy():
  model, params = make(small_config())
  shape = _shape(num_updates=4, microbatch_rows=2)
  state, metrics = _update(
    model, params, _rl_batch(model, params, shape), shape
  )
  assert state.updates == 4
  assert abs(float(metrics['ratio/mean']) - 1) > 1e-6
  assert metrics['rollout_logp_diff/max'] < 1e-5


@pytest.mark.slow
def test_the_learning_rate_is_that_of_the_last_update():
  """Linear warm-up over 8 updates; the last of four is the update number 3."""
  model, params = make(small_config())
  tx = optimizer.make(dataclasses.replace(_OPTIMIZER, warmup_steps=8), 10)
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  shape = _shape(num_updates=4)
  step = _policy(model, tx, shape)
  _, metrics = step(state, _rl_batch(model, params, shape))
  np.testing.assert_allclose(metrics['lr'], 1e-3 * 3 / 8, rtol=1e-6)


def test_zero_advantage_and_no_kl_leave_the_policy():
  """All groups agree: only weight decay and balancing may move anything."""
  model, params = make(small_config())
  batch = _rl_batch(model, params)
  batch = batch.replace(adv_BT=np.zeros_like(batch.adv_BT))
  tx = optimizer.make(dataclasses.replace(_OPTIMIZER, weight_decay=0.0), 10)
  state, metrics = _policy(model, tx, _shape(), kl_coef=0.0)(
    train_state.create(jax.tree.map(jnp.copy, params), tx), batch
  )
  assert metrics['grad_norm'] < 1e-1  # The balance loss, on routers alone.
  np.testing.assert_array_equal(state.params['head'], params['head'])


@pytest.mark.slow
def test_looking_ahead_teaches_its_modules_and_nothing_else():
  """Without advantages, KL and balance loss it is all that has a gradient."""
  model, params = make(
    small_config(num_nextn_predict_layers=1, num_hidden_layers=2)
  )
  zeros = np.zeros((_ROWS, _PROMPT + _OWN), np.float32)
  batch = packed(
    _rollout(), _shape(), adv_BT=zeros, old_logp_BT=zeros, ref_logp_BT=zeros
  )
  tx = optimizer.make(_OPTIMIZER, 10)
  step = policy_step.policy(
    model,
    tx,
    PolicyLoss(kl_coef=0.0),
    1.0,
    _shape(),
    LoadBalancingConfig(routed_bias_update_rate=1e-3, router_aux_loss_coef=0.0),
    mtp_loss_weight=0.3,
  )
  state, metrics = step(train_state.create(params, tx), batch)
  assert metrics['mtp_loss'] > 1
  learnt = jax.tree.map(lambda x: np.abs(x).max(), state.opt_state[1].mu)
  modules = learnt.pop('mtp')
  assert not any(jax.tree.leaves(learnt))
  assert modules['block']['ffn'].pop('bias') == 0  # It only chooses.
  assert min(jax.tree.leaves(modules)) > 1e-6


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_a_poisoned_batch_changes_nothing_and_is_counted(poison):
  model, params = make(small_config())
  batch = _rl_batch(model, params)
  adv_BT = np.where(batch.sample_BT == 3, poison, batch.adv_BT)
  state, metrics = _update(model, params, batch.replace(adv_BT=adv_BT))
  _assert_same(state.params, params, 0)
  assert state.updates == 0 and metrics['skipped_updates'] == 1


@pytest.mark.slow
def test_every_update_balances_the_experts():
  model, params = make(small_config())
  state, _ = _update(model, params, _rl_batch(model, params))
  moved = (
    state.params['moe_layers']['ffn']['bias']
    - params['moe_layers']['ffn']['bias']
  )
  np.testing.assert_allclose(np.abs(moved).max(), 1e-3, rtol=1e-3)
  # And nothing else moved it: no gradient, no weight decay.
  steps = np.abs(np.asarray(moved)) / 1e-3
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


_MESHES = [
  dict(data=2, fsdp=2, tensor=2),
  dict(data=2, tensor=2, expert=2),
  dict(fsdp=2, expert=4),
]


@pytest.mark.slow
@pytest.mark.parametrize('shape', _MESHES, ids=str)
def test_eight_devices_equal_one(shape):
  """Forward and one optimiser step, float32, to 1e-5.

  Adam's first step is ±1 however large a gradient is, and clipping hides its
  scale from the moments: so the norm before clipping is compared, then the
  moments, and parameters last.
  """
  num_nextn_predict_layers = int(
    'expert' in shape
  )  # Its module too, where it costs least.
  config = small_config(
    kv_lora_rank=16, num_nextn_predict_layers=num_nextn_predict_layers
  )
  model, params = make(config)
  rows = _shape(row_tokens=24, microbatch_rows=8, repeated_tokens=2)
  batch = _rl_batch(model, params, rows)
  want_logp = policy_step.token_logps(model, 1.0, rows)(params, batch)
  want, want_metrics = _update(
    model, params, batch, rows, mtp_loss_weight=0.3 * num_nextn_predict_layers
  )

  layout = Layout(make_mesh(shape))
  wide = Transformer(config, layout)
  spread = jax.device_put(
    jax.device_get(params), parameters.parameter_shardings(wide, layout)
  )
  batch = jax.tree.map(np.asarray, batch)
  got_logp = policy_step.token_logps(wide, 1.0, rows)(spread, batch)
  _assert_same(got_logp, want_logp, 1e-5)
  got, metrics = _update(
    wide, spread, batch, rows, mtp_loss_weight=0.3 * num_nextn_predict_layers
  )
  assert metrics['moe/dropped'] == 0
  np.testing.assert_allclose(
    metrics['grad_norm'], want_metrics['grad_norm'], rtol=1e-4
  )
  _assert_same(_moments(got), _moments(want), 1e-6)
  _assert_same(got.params, want.params, 1e-5)
  np.testing.assert_allclose(metrics['loss'], want_metrics['loss'], atol=1e-5)
  # It stays laid out as declared: the next step meets the same program.
  declared = parameters.parameter_shardings(wide, layout)
  assert jax.tree.all(
    jax.tree.map(
      lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim),
      got.params,
      declared,
    )
  )


@pytest.mark.slow
def test_the_rows_follow_the_longest_sample_of_a_step():
  """Two widths are two programs, whatever comes; both are the same update."""
  model, params = make(small_config())
  tx = optimizer.make(_OPTIMIZER, 10)
  wide = _shape(row_tokens=40, microbatch_rows=2)
  shape = dataclasses.replace(wide, narrower=((_PROMPT, 5),))
  step = _policy(model, tx, shape)
  rollout, widths = _rollout(), []
  column = np.arange(_PROMPT + _OWN)
  for longest in (1, 3, 4, _OWN):
    some = rollout.replace(
      valid_BT=rollout.valid_BT & (column < _PROMPT + longest),
      mask_BT=rollout.mask_BT & (column < _PROMPT + longest),
    )
    zeros = np.zeros((_ROWS, _PROMPT + _OWN), np.float32)
    signals = dict(adv_BT=zeros + 1, old_logp_BT=zeros, ref_logp_BT=zeros)
    states = []
    for each in (shape, wide):
      batch = packed(some, each, **signals)
      state = train_state.create(jax.tree.map(jnp.copy, params), tx)
      state = jax.device_put(state, train_state.shardings(model, tx))
      states.append(step(state, batch)[0])
      if each is shape:
        widths.append(batch.tokens_BT.shape[1])
    _assert_same(_moments(states[0]), _moments(states[1]), 1e-6)
  assert set(widths) == {_PROMPT, 40}
  assert step._cache_size() == 2


def test_growing_completions_share_a_program():
  """And a step without any token that counts leaves the policy, and says so."""
  model, params = make(small_config())
  tx = optimizer.make(_OPTIMIZER, 10)
  shape = _shape(row_tokens=24, microbatch_rows=2, num_updates=2)
  step, score = (
    _policy(model, tx, shape),
    policy_step.token_logps(model, 1.0, shape),
  )
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  state = jax.device_put(state, train_state.shardings(model, tx))
  rollout, counts = _rollout(), []
  for longest in (1, 2, 4, _OWN):
    column = np.arange(_PROMPT + _OWN)
    some = rollout.replace(
      valid_BT=rollout.valid_BT & (column < _PROMPT + longest),
      mask_BT=rollout.mask_BT & (column < _PROMPT + longest),
    )
    noise = np.ones((_ROWS, _PROMPT + _OWN), np.float32)
    signals = dict(adv_BT=noise, old_logp_BT=-noise, ref_logp_BT=-noise)
    batch = packed(some, shape, **signals)
    counts.append(int(batch.num_microbatches_u.sum()))
    score(params, batch)
    state, metrics = step(state, batch)
    assert metrics['empty_updates'] == 0
  assert counts[0] < counts[-1]
  assert step._cache_size() == score._cache_size() == 1
  before = jax.device_get(state)
  state, metrics = step(
    state, batch.replace(mask_BT=np.zeros_like(batch.mask_BT))
  )
  assert metrics['empty_updates'] == 2 and metrics['skipped_updates'] == 0
  _assert_same(state, before, 0)
  assert step._cache_size() == 1


def test_a_mesh_that_does_not_divide_is_named():
  with pytest.raises(UserError, match='does not make the 8 devices'):
    make_mesh(dict(data=3))
  with pytest.raises(UserError, match="unknown axis 'model'"):
    make_mesh(dict(model=2))
  layout = Layout(make_mesh(dict(tensor=8)))
  model = Transformer(small_config(), layout)
  with pytest.raises(UserError, match='N = 2, which does not divide'):
    parameters.parameter_shardings(model, layout)


def test_two_letters_on_one_mesh_axis_fail_loudly():
  with pytest.raises(ValueError, match="mesh axis 'tensor'"):
    one_device().weight_spec('NF')
