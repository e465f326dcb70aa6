"""A step of a process reward model equals NumPy's on the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data import sequence_packing
from r1jax.model import scoring
from r1jax.train import optimizer, prm_step
from r1jax.train import state as train_state
from tests.conftest import dense_config, make
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
_LENGTHS = [(10,), (7,), (5,)]
_SHAPE = row_shape(4, 10, 1, 12)  # The batch could have one thought more.


@pytest.fixture(scope='module')
def small():
  model, params = make(
    dense_config(scalar_head=True, num_hidden_layers=1, first_k_dense_replace=1)
  )
  params['scalar'] = 0.1 * jax.random.normal(jax.random.key(3), (16, 1))
  return model, params


def _examples() -> list:
  """Thoughts of different lengths and steps."""

  def read(rng, length):
    ends = np.flatnonzero(rng.random(length) < 0.4)
    return ends, rng.random(len(ends)).astype(np.float32)

  return examples_of(_LENGTHS, read)


def _chance(small, examples) -> np.ndarray:
  """Probabilities at all tokens, each thought in the row of its number."""
  model, params = small
  rows = sequence_packing.pack(examples, _SHAPE)
  found = prm_step.probabilities(model, _SHAPE)(params, rows)
  chance = np.zeros((len(examples), _SHAPE.row_tokens))
  used = rows.segment_BT > 0
  chance[rows.sample_BT[used], rows.position_BT[used]] = found[used]
  return chance


def test_its_loss_is_that_of_the_chances_at_the_ends(small):
  """In several microbatches, of which the last ones are empty."""
  model, params = small
  examples = _examples()
  chance = _chance(small, examples)
  rows = one_sequence_a_row(examples)
  want = jax.nn.sigmoid(
    scoring.token_scores(model, params, rows.tokens_BT, rows.segment_BT > 0)
  )
  np.testing.assert_allclose(
    chance[:, :10], np.where(rows.segment_BT > 0, want, 0), atol=1e-6
  )
  p, y = chance[:, :10][rows.mask_BT], rows.label_BT[rows.mask_BT]
  tx = optimizer.make(_OPTIMIZER, 10)
  step = prm_step.process_reward_model(
    model, tx, LoadBalancingConfig(1e-3, 0.0), _SHAPE
  )
  state = train_state.create(jax.tree.map(jnp.copy, params), tx)
  _, metrics = step(state, sequence_packing.pack(examples, _SHAPE))
  assert metrics['loss'] == pytest.approx(
    -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-4
  )
  assert metrics['label'] == pytest.approx(y.mean(), rel=1e-5)
  # A chance knows what came before its token, and nothing of what follows.
  changed = examples[0][0].ids.copy()
  changed[6:] = 31
  other = [[examples[0][0]._replace(ids=changed)], *examples[1:]]
  after = _chance(small, other)
  np.testing.assert_allclose(after[0, :6], chance[0, :6], atol=1e-6)
  np.testing.assert_allclose(after[1:], chance[1:], atol=1e-6)
  assert np.abs(after[0, 6:10] - chance[0, 6:10]).max() > 1e-4
