"""Steps on preferences: losses and scores of packed rows equal NumPy's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.dpo import GroupRobust
from r1jax.config.schema.preferences import DPOLossConfig, PairwiseLossConfig
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data import sequence_packing
from r1jax.data.preference_batches import LabelledBatch, PairBatch
from r1jax.model import parameters, scoring
from r1jax.train import dpo_step, optimizer, reward_model_step
from r1jax.train import state as train_state
from tests.conftest import dense_config, forward, make
from tests.train.batches import examples_of, one_sequence_a_row, row_shape

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
_CONFIG = dense_config(
  scalar_head=True, num_hidden_layers=1, first_k_dense_replace=1
)
_P = 8
# The last pair only fills the batch.
_LENGTHS = [(10, 4), (5, 7), (4, 4), (9, 9), (4, 6), (10, 10), (5, 8)]
_SHAPE = row_shape(_P, 20, 2, 23)  # Several microbatches.
_LOSS, _GROUP_ROBUST = DPOLossConfig(0.5), GroupRobust(0.8, (30, 10))
_PAIRWISE = PairwiseLossConfig(0.1, 0.01)


def _model():
  model, params = make(_CONFIG)
  params['scalar'] = 0.1 * jax.random.normal(jax.random.key(3), (16, 1))
  return model, params


def _examples(prompt: int) -> list:
  """Pairs of different lengths, of which what follows the prompt is read; 0 is
  for reward models, which read the last token."""
  return examples_of(_LENGTHS, lambda rng, n: (range(prompt or n - 1, n), None))


def _pairs(prompt: int = 0) -> PairBatch:
  return PairBatch(
    rows=sequence_packing.pack(_examples(prompt), _SHAPE),
    weight_P=(np.arange(_P) < len(_LENGTHS)).astype(np.float32),
    group_P=np.array([0, 1, 0, 0, 1, 0, 0, 0], np.int32),
  )


def _reward_model(model, params, batch, shape=_SHAPE):
  """The state after one step, and its metrics."""
  tx = optimizer.make(_OPTIMIZER, 10)
  step = reward_model_step.reward_model(model, tx, _PAIRWISE, _BALANCING, shape)
  return step(train_state.create(jax.tree.map(jnp.copy, params), tx), batch)


def _dpo(model, params, reference):
  """The same of DPO with group weights."""
  tx = optimizer.make(_OPTIMIZER, 10)
  step = dpo_step.dpo(model, tx, _LOSS, _GROUP_ROBUST, _BALANCING, _SHAPE)
  state = dpo_step.dpo_state(jax.tree.map(jnp.copy, params), tx, _GROUP_ROBUST)
  return step(state, _pairs(2), reference)


def _reference(model):
  return parameters.init_params(model, jax.random.key(5))


def _assert_same(got, want, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol),
    jax.device_get(got),
    jax.device_get(want),
  )


def _numpy_logp(model, params):
  """Log-probabilities of responses, each sequence alone in a row."""
  rows = one_sequence_a_row(_examples(2))
  logits = forward(model, params, rows.tokens_BT, segment_BT=rows.segment_BT)
  logp = np.asarray(jax.nn.log_softmax(logits))
  total = np.zeros(len(logp))
  for b, t in zip(*np.nonzero(rows.mask_BT)):
    total[b] += logp[b, t - 1, rows.tokens_BT[b, t]]
  return total.reshape(-1, 2)


def test_dpo_equals_numpys():
  """Log-probabilities, the groups' weights, and the loss by the new ones."""
  model, params = _model()
  batch, reference = _pairs(2), _reference(model)
  assert int(batch.rows.num_microbatches_u[0]) > 1
  logp, ref = (_numpy_logp(model, p) for p in (params, reference))
  got = dpo_step.response_logps(model, _SHAPE, 2)(params, reference, batch)
  np.testing.assert_allclose(got[0][:-1], logp, atol=1e-4)
  np.testing.assert_allclose(got[1][:-1], ref, atol=1e-4)
  gain = logp - ref
  each = np.log1p(np.exp(-0.5 * (gain[:, 0] - gain[:, 1])))
  group, rarity = batch.group_P[:-1], 40 / np.array([30, 10])
  power = np.array(
    [rarity[g] * each[group == g].sum() / len(each) for g in (0, 1)]
  )
  alpha = np.exp(0.8 * power) / np.exp(0.8 * power).sum()
  state, metrics = _dpo(model, params, reference)
  np.testing.assert_allclose(state.alpha_g, alpha, atol=1e-5)
  want = ((rarity * alpha)[group] * each).mean()
  np.testing.assert_allclose(metrics['loss'], want, rtol=1e-4)


@pytest.mark.slow
def test_reward_models_equal_numpys():
  """Scores at last tokens, and the losses of pairs and of single responses."""
  model, params = _model()
  rows = one_sequence_a_row(_examples(0))
  want = np.asarray(
    scoring.sequence_scores(model, params, rows.tokens_BT, rows.segment_BT > 0),
    np.float64,
  )
  pairs = _pairs()
  scores = reward_model_step.scores(model, _SHAPE)(params, pairs)
  np.testing.assert_allclose(scores, [*want, 0, 0], atol=1e-5)
  _, metrics = _reward_model(model, params, pairs)
  chosen, rejected = want[0::2], want[1::2]
  loss = np.log1p(np.exp(0.1 - chosen + rejected))
  loss += 0.01 * (chosen + rejected) ** 2
  np.testing.assert_allclose(metrics['loss'], loss.mean(), rtol=1e-5)
  single = [[sequence] for example in _examples(0) for sequence in example]
  shape = row_shape(2 * _P, 10, 2, 23)
  safe_B = (np.arange(2 * _P) % 3 > 0).astype(np.float32)
  labelled = LabelledBatch(
    rows=sequence_packing.pack(single, shape),
    safe_B=safe_B,
    weight_B=np.repeat(pairs.weight_P, 2),
    group_B=np.zeros(2 * _P, np.int32),
  )
  _, metrics = _reward_model(model, params, labelled, shape)
  loss = np.log1p(np.exp(-(2 * safe_B[:-2] - 1) * want))
  np.testing.assert_allclose(metrics['loss'], loss.mean(), rtol=1e-5)


@pytest.mark.slow
def test_what_fills_rows_and_batches_teaches_nothing():
  model, params = _model()
  batch = _pairs()
  empty = batch.rows.segment_BT == 0
  other = batch.rows.replace(
    tokens_BT=np.where(empty, 31, batch.rows.tokens_BT),
    sample_BT=np.where(empty, 2 * _P - 1, batch.rows.sample_BT),
  )
  states = [
    _reward_model(model, params, batch.replace(rows=rows))[0]
    for rows in (batch.rows, other)
  ]
  _assert_same(states[0].params, states[1].params, 0)


def test_plain_dpo_has_no_weights_and_a_poisoned_batch_changes_none():
  model, params = _model()
  tx = optimizer.make(_OPTIMIZER, 10)
  assert dpo_step.dpo_state(params, tx, None).alpha_g is None
  reference = jax.tree.map(lambda x: x * np.nan, _reference(model))
  step = dpo_step.dpo(model, tx, _LOSS, _GROUP_ROBUST, _BALANCING, _SHAPE)
  state, metrics = step(
    dpo_step.dpo_state(jax.tree.map(jnp.copy, params), tx, _GROUP_ROBUST),
    _pairs(2),
    reference,
  )
  assert metrics['skipped_updates'] == 1
  _assert_same(state.train.params, params, 0)
  np.testing.assert_allclose(state.alpha_g, [0.5, 0.5])


@pytest.mark.slow
def test_a_model_learns_its_batch():
  """A few dozen updates on one batch: every pair comes the right way round,
  and DPO's worst group with them."""
  model, params = _model()
  tx = optimizer.make(dataclasses.replace(_OPTIMIZER, learning_rate=1e-2), 50)
  batch = _pairs()
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  step = reward_model_step.reward_model(
    model, tx, PairwiseLossConfig(), _BALANCING, _SHAPE
  )
  for _ in range(40):
    state, metrics = step(state, batch)
  assert metrics['accuracy'] > 0.999 and metrics['loss'] < 0.2
  state = dpo_step.dpo_state(jax.tree.map(jnp.copy, params), tx, _GROUP_ROBUST)
  step = dpo_step.dpo(model, tx, _LOSS, _GROUP_ROBUST, _BALANCING, _SHAPE)
  for _ in range(40):
    state, metrics = step(state, _pairs(2), params)
  assert metrics['accuracy'] > 0.999
