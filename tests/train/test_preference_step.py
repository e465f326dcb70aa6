"""Steps on preferences: however they are split, on one device or eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.dpo import GroupRobust
from r1jax.config.schema.preferences import DPOLossConfig, PairwiseLossConfig
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data.preference_batches import LabelledBatch, PairBatch
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.sharding import Layout, make_mesh
from r1jax.train import dpo_step, optimizer, reward_model_step
from r1jax.train import state as train_state
from tests.conftest import forward, make, small_config

# An update that neither clips nor decays: moments are (1 − β₁) · gradient.
_OPTIMIZER = OptimizerConfig(
  learning_rate=1e-3,
  warmup_steps=0,
  lr_scheduler_type='constant',
  min_lr_ratio=0.1,
  adam_beta1=0.9,
  adam_beta2=0.95,
  weight_decay=0.0,
  max_grad_norm=1e9,
  moment_dtype='float32',
)
_BALANCING = LoadBalancingConfig(
  routed_bias_update_rate=1e-3, router_aux_loss_coef=0.01
)
_CONFIG = small_config(scalar_head=True, num_hidden_layers=2, kv_lora_rank=16)
_P, _T = 8, 10
_LOSS, _GROUP_ROBUST = DPOLossConfig(0.5), GroupRobust(0.8, (30, 10))


def _model(layout=None):
  model, params = make(_CONFIG, layout)
  params['scalar'] = 0.1 * jax.random.normal(jax.random.key(3), (16, 1))
  return model, params


def _pairs() -> PairBatch:
  """Rows of different lengths; the last pair only fills the batch."""
  rng = np.random.default_rng(0)
  length_B = rng.integers(4, _T + 1, 2 * _P)
  length_B[-2:] = 0
  column = np.arange(_T)
  valid = column < length_B[:, None]
  weight = np.ones(_P, np.float32)
  weight[-1] = 0
  return PairBatch(
    tokens_BT=rng.integers(3, 32, (2 * _P, _T)).astype(np.int32),
    valid_BT=valid,
    mask_BT=valid & (column >= 2),
    weight_P=weight,
    group_P=np.array([0, 1, 0, 0, 1, 0, 0, 0], np.int32),
  )


def _labels() -> LabelledBatch:
  pairs = _pairs()
  return LabelledBatch(
    tokens_BT=pairs.tokens_BT,
    valid_BT=pairs.valid_BT,
    safe_B=(np.arange(2 * _P) % 3 > 0).astype(np.float32),
    weight_B=np.repeat(pairs.weight_P, 2),
    group_B=np.zeros(2 * _P, np.int32),
  )


def _trained(model, params, kind, gradient_accumulation_steps=1):
  """The state after one step, and its metrics; of DPO with group weights."""
  tx = optimizer.make(_OPTIMIZER, 10)
  params = jax.tree.map(jnp.copy, params)
  if kind != 'dpo':
    step = reward_model_step.reward_model(
      model,
      tx,
      PairwiseLossConfig(0.1, 0.01),
      _BALANCING,
      gradient_accumulation_steps,
    )
    return step(
      train_state.create(params, tx),
      _pairs() if kind == 'helpful' else _labels(),
    )
  step = dpo_step.dpo(
    model, tx, _LOSS, _GROUP_ROBUST, _BALANCING, gradient_accumulation_steps
  )
  return step(
    dpo_step.dpo_state(params, tx, _GROUP_ROBUST), _pairs(), _reference(model)
  )


def _reference(model):
  return parameters.init_params(model, jax.random.key(5))


def _train(state):
  return getattr(state, 'train', state)


def _assert_same(got, want, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol),
    jax.device_get(got),
    jax.device_get(want),
  )


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['helpful', 'safe', 'dpo'])
def test_microbatches_do_not_change_the_update(kind):
  model, params = _model()
  whole, metrics = _trained(model, params, kind)
  split, parts = _trained(model, params, kind, gradient_accumulation_steps=4)
  _assert_same(_train(split).opt_state, _train(whole).opt_state, 2e-6)
  for name in ('loss', 'accuracy', 'grad_norm'):
    np.testing.assert_allclose(parts[name], metrics[name], atol=1e-5)
  if kind == 'dpo':
    np.testing.assert_allclose(split.alpha_g, whole.alpha_g, atol=1e-6)


def _numpy_logp(model, params, batch: PairBatch):
  """Of whole responses, from the full forward pass's logits."""
  logits = forward(
    model, params, batch.tokens_BT, segment_BT=batch.valid_BT.astype(np.int32)
  )
  logp = np.asarray(jax.nn.log_softmax(logits))
  total = np.zeros(2 * _P)
  for b, t in zip(*np.nonzero(batch.mask_BT)):
    total[b] += logp[b, t - 1, batch.tokens_BT[b, t]]
  return total.reshape(-1, 2)


def test_dpo_equals_numpys():
  """Log-probabilities, the groups' weights, and the loss by the new ones."""
  model, params = _model()
  batch, reference = _pairs(), _reference(model)
  logp, ref = (_numpy_logp(model, p, batch) for p in (params, reference))
  got = dpo_step.response_logps(model, 2)(params, batch)
  np.testing.assert_allclose(got, logp, atol=1e-4)
  gain = logp - ref
  each = np.log1p(np.exp(-0.5 * (gain[:, 0] - gain[:, 1])))[:-1]
  group, rarity = batch.group_P[:-1], 40 / np.array([30, 10])
  power = np.array(
    [rarity[g] * each[group == g].sum() / len(each) for g in (0, 1)]
  )
  alpha = np.exp(0.8 * power) / np.exp(0.8 * power).sum()
  state, metrics = _trained(model, params, 'dpo')
  np.testing.assert_allclose(state.alpha_g, alpha, atol=1e-5)
  want = ((rarity * alpha)[group] * each).mean()
  np.testing.assert_allclose(metrics['loss'], want, rtol=1e-4)


def test_what_fills_a_batch_teaches_nothing():
  model, params = _model()
  batch = _pairs()
  tx = optimizer.make(_OPTIMIZER, 10)
  states = []
  for fill in (batch.tokens_BT[-2:], 31 - batch.tokens_BT[-2:]):
    tokens = np.concatenate([batch.tokens_BT[:-2], np.maximum(fill, 0)])
    step = reward_model_step.reward_model(
      model, tx, PairwiseLossConfig(), _BALANCING, 1
    )
    states.append(
      step(
        train_state.create(jax.tree.map(jnp.copy, params), tx),
        batch.replace(tokens_BT=tokens),
      )[0]
    )
  _assert_same(states[0].params, states[1].params, 0)


def test_plain_dpo_has_no_weights_and_a_poisoned_batch_changes_none():
  model, params = _model()
  tx = optimizer.make(_OPTIMIZER, 10)
  assert dpo_step.dpo_state(params, tx, None).alpha_g is None
  reference = jax.tree.map(lambda x: x * np.nan, _reference(model))
  step = dpo_step.dpo(model, tx, _LOSS, _GROUP_ROBUST, _BALANCING, 1)
  state, metrics = step(
    dpo_step.dpo_state(jax.tree.map(jnp.copy, params), tx, _GROUP_ROBUST),
    _pairs(),
    reference,
  )
  assert metrics['skipped_updates'] == 1
  _assert_same(state.train.params, params, 0)
  np.testing.assert_allclose(state.alpha_g, [0.5, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['helpful', 'dpo'])
def test_eight_devices_equal_one(kind):
  model, params = _model()
  want, want_metrics = _trained(model, params, kind)
  layout = Layout(make_mesh(dict(data=2, tensor=2, expert=2)))
  wide = Transformer(_CONFIG, layout)
  spread = jax.device_put(
    jax.device_get(params), parameters.parameter_shardings(wide, layout)
  )
  got, metrics = _trained(wide, spread, kind)
  np.testing.assert_allclose(
    metrics['grad_norm'], want_metrics['grad_norm'], rtol=1e-4
  )
  np.testing.assert_allclose(metrics['loss'], want_metrics['loss'], atol=1e-5)
  _assert_same(_train(got).opt_state[1].mu, _train(want).opt_state[1].mu, 5e-6)


@pytest.mark.slow
def test_a_model_learns_its_batch():
  """A few dozen updates on one batch: every pair comes the right way round,
  and DPO's worst group with them."""
  model, params = _model()
  tx = optimizer.make(dataclasses.replace(_OPTIMIZER, learning_rate=1e-2), 50)
  batch = _pairs()
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  step = reward_model_step.reward_model(
    model, tx, PairwiseLossConfig(), _BALANCING, 1
  )
  for _ in range(40):
    state, metrics = step(state, batch)
  assert metrics['accuracy'] == 1 and metrics['loss'] < 0.2
  state = dpo_step.dpo_state(jax.tree.map(jnp.copy, params), tx, _GROUP_ROBUST)
  step = dpo_step.dpo(model, tx, _LOSS, _GROUP_ROBUST, _BALANCING, 1)
  for _ in range(40):
    state, metrics = step(state, batch, params)
  assert metrics['accuracy'] == 1
