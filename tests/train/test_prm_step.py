"""A step of a process reward model: against the full forward pass, and
however it is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.records import StepLabelBatch
from r1jax.train import optimizer, prm_step
from r1jax.train import state as train_state
from tests.conftest import make, small_config

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
_B, _T = 4, 10


@pytest.fixture(scope='module')
def small():
  model, params = make(small_config(scalar_head=True, num_hidden_layers=2))
  params['scalar'] = 0.1 * jax.random.normal(jax.random.key(3), (16, 1))
  return model, params


def _batch() -> StepLabelBatch:
  """Rows of different lengths and steps; the last only fills the batch."""
  rng = np.random.default_rng(0)
  valid = np.arange(_T) < np.array([10, 7, 5, 0])[:, None]
  ends = valid & (rng.random((_B, _T)) < 0.4)
  return StepLabelBatch(
    tokens_BT=rng.integers(3, 32, (_B, _T)).astype(np.int32),
    valid_BT=valid,
    weight_BT=ends.astype(np.float32),
    label_BT=np.where(ends, rng.random((_B, _T)), 0).astype(np.float32),
  )


def _trained(small, gradient_accumulation_steps: int):
  model, params = small
  tx = optimizer.make(_OPTIMIZER, 10)
  step = prm_step.process_reward_model(
    model, tx, LoadBalancingConfig(1e-3, 0.0), gradient_accumulation_steps
  )
  return step(train_state.create(jax.tree.map(jnp.copy, params), tx), _batch())


def test_its_loss_is_that_of_the_chances_at_the_ends(small):
  model, params = small
  batch = _batch()
  chance = np.asarray(
    prm_step.probabilities(model)(params, batch.tokens_BT, batch.valid_BT),
    np.float64,
  )
  ends = batch.weight_BT > 0
  p, y = chance[ends], batch.label_BT[ends]
  _, metrics = _trained(small, 1)
  assert metrics['loss'] == pytest.approx(
    -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-4
  )
  # A chance knows what came before its token, and nothing of what follows.
  other = batch.tokens_BT.copy()
  other[0, 6:] = 31
  changed = np.asarray(
    prm_step.probabilities(model)(params, other, batch.valid_BT)
  )
  np.testing.assert_allclose(changed[0, :6], chance[0, :6], atol=1e-6)
  assert np.abs(changed[0, 6:] - chance[0, 6:]).max() > 1e-4


def test_it_learns_the_same_in_parts(small):
  (whole, want), (parts, got) = (_trained(small, n) for n in (1, 2))
  for name in ('loss', 'grad_norm', 'label', 'score'):
    assert got[name] == pytest.approx(float(want[name]), rel=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5),
    whole.params,
    parts.params,
  )
