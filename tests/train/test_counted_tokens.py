"""Steps compute the output head for the tokens that are in the loss alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import distill, token_chunks
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data.preference_batches import PairBatch
from r1jax.data.sample_packing import RowShape
from r1jax.records import PackedRows, RLBatch, TokenBatch
from r1jax.train import (
  dpo_step,
  mtp_loss,
  optimizer,
  policy_step,
  supervised_step,
)
from r1jax.train import state as train_state
from tests.conftest import dense_config, make

_B, _T = 4, 6
_MASK = np.random.default_rng(0).random((_B, _T)) < 0.4
_MASK[:, 0] = False  # The first token is predicted by none.
_TOKENS = np.random.default_rng(1).integers(3, 32, (_B, _T)).astype(np.int32)
_ONES = np.ones((_B, _T), np.int32)


@pytest.fixture
def counts(monkeypatch):
  """The number of tokens of each pass over the head, as it runs."""
  counts, num_chunks = [], token_chunks.num_chunks

  def recorded(count_k, chunk):
    jax.debug.callback(lambda n: counts.append(int(n)), count_k.sum())
    return num_chunks(count_k, chunk)

  monkeypatch.setattr(token_chunks, 'num_chunks', recorded)
  yield counts


@pytest.fixture(scope='module')
def model():
  return make(dense_config(num_hidden_layers=1, first_k_dense_replace=1))


def _shape(num_samples: int) -> RowShape:
  return RowShape(
    row_tokens=_T,
    microbatch_rows=_B,
    num_updates=1,
    num_samples=num_samples,
    max_sample_tokens=_T,
  )


def test_scores_of_samples(model, counts):
  model, params = model
  batch = RLBatch(
    tokens_BT=_TOKENS,
    position_BT=_ONES.cumsum(1) - 1,
    segment_BT=_ONES,
    sample_BT=_ONES * np.arange(_B, dtype=np.int32)[:, None],
    mask_BT=_MASK,
    logp_BT=np.zeros((_B, _T), np.float32),
    staleness_BT=0 * _ONES,
    num_microbatches_u=np.array([1]),
  )
  policy_step.token_logps(model, 1.0, _shape(_B))(params, batch)
  jax.effects_barrier()
  assert counts == [_MASK.sum()]


def test_preferences(model, counts):
  model, params = model
  batch = PairBatch(
    rows=PackedRows(
      tokens_BT=_TOKENS,
      position_BT=_ONES.cumsum(1) - 1,
      segment_BT=_ONES,
      sample_BT=_ONES * np.arange(_B, dtype=np.int32)[:, None],
      mask_BT=_MASK,
      num_microbatches_u=np.array([1]),
    ),
    weight_P=np.ones(_B // 2, np.float32),
    group_P=np.zeros(_B // 2, np.int32),
  )
  dpo_step.response_logps(model, _shape(_B // 2))(params, batch)
  jax.effects_barrier()
  assert counts == [_MASK.sum()]


@pytest.mark.parametrize(
  'kind',
  [
    'text',
    'stored',
    pytest.param('teacher', marks=pytest.mark.slow),
    pytest.param('mtp', marks=pytest.mark.slow),
  ],
)
def test_text_and_teachers(model, counts, kind):
  """A forward and a backward pass; with an MTP module two more."""
  model, params = model
  if kind == 'mtp':
    model, params = make(
      dataclasses.replace(model.config, num_nextn_predict_layers=1)
    )
  top = dict(
    top_ids_BTO=_TOKENS[..., None],
    top_logp_BTO=np.full((_B, _T, 1), -1.0, np.float32),
  )
  batch = TokenBatch(
    tokens_BT=_TOKENS,
    target_BT=np.roll(_TOKENS, -1, 1),
    weight_BT=_MASK.astype(np.float32),
    segment_BT=_ONES,
    position_BT=_ONES.cumsum(1) - 1,
    **(top if kind == 'stored' else {}),
  )
  soft = distill.SoftTargets(0.5)
  tx = optimizer.make(
    OptimizerConfig(
      learning_rate=1e-3,
      warmup_steps=0,
      lr_scheduler_type='constant',
      min_lr_ratio=0.1,
      adam_beta1=0.9,
      adam_beta2=0.95,
      weight_decay=0.0,
      max_grad_norm=1e9,
      moment_dtype='float32',
    ),
    10,
  )
  step = supervised_step.supervised(
    model,
    tx,
    LoadBalancingConfig(0.0, 0.0),
    mtp_loss.MTPLoss(0.3, 0.1, 5),
    1,
    {
      'stored': supervised_step.Distillation(soft),
      'teacher': supervised_step.Distillation(soft, model),
    }.get(kind),
  )
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  step(state, batch, *([params] if kind == 'teacher' else []))
  jax.effects_barrier()
  ahead = [_MASK[:, 1:].sum()] * 2 if kind == 'mtp' else []
  assert sorted(counts) == sorted([_MASK.sum()] * 2 + ahead)
