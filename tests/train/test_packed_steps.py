"""Steps on packed sequences: whatever the rows, microbatches and devices, one
update, and one program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.dpo import GroupRobust
from r1jax.config.schema.preferences import DPOLossConfig, PairwiseLossConfig
from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.data import sequence_packing
from r1jax.data.preference_batches import LabelledBatch, PairBatch
from r1jax.data.sample_packing import RowShape
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from r1jax.sharding import Layout, make_mesh
from r1jax.train import dpo_step, optimizer, prm_step, reward_model_step
from r1jax.train import state as train_state
from tests.conftest import dense_config, make, small_config
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
_MOE = small_config(scalar_head=True, num_hidden_layers=2, kv_lora_rank=16)
_DENSE = dense_config(
  scalar_head=True, num_hidden_layers=1, first_k_dense_replace=1
)
_PAIRS = [(10, 4), (5, 7), (3, 3), (9, 9), (4, 6), (10, 10), (3, 8)]
_SINGLES = [(10,), (4,), (7,), (3,), (9,), (5,), (10,)]
_SIZE = 8  # Of a batch: the last example only fills it.


class _Kind(NamedTuple):
  """A kind of step.

  Attributes:
    lengths: Lengths of the sequences of each example.
    loss: Parameters of DPO's loss; None for other kinds.
    robust: The groups of group-robust DPO.
  """

  lengths: list
  loss: DPOLossConfig | None = None
  robust: GroupRobust | None = None


_KINDS = {
  'sigmoid': _Kind(_PAIRS, DPOLossConfig(0.5, label_smoothing=0.1)),
  'ipo': _Kind(_PAIRS, DPOLossConfig(0.5, loss_type='ipo')),
  'robust': _Kind(_PAIRS, DPOLossConfig(0.5), GroupRobust(0.8, (30, 10))),
  'helpful': _Kind(_PAIRS),
  'safe': _Kind(_SINGLES),
  'prm': _Kind(_SINGLES),
}


def _model(config, layout=None):
  model, params = make(config, layout)
  params['scalar'] = 0.1 * jax.random.normal(jax.random.key(3), (16, 1))
  return model, params


def _read(name: str):
  """Returns what is read of a random sequence of a kind."""

  def of(rng, length: int):
    if name == 'prm':
      ends = np.sort(rng.choice(length, rng.integers(1, length), False))
      return ends, rng.random(len(ends)).astype(np.float32)
    start = 2 if _KINDS[name].loss else length - 1
    return range(start, length), None

  return of


def _examples(name: str) -> list:
  return examples_of(_KINDS[name].lengths, _read(name))


def _batch(name: str, rows):
  """A batch of the kind with these rows."""
  weight = (np.arange(_SIZE) < len(_PAIRS)).astype(np.float32)
  group = (np.arange(_SIZE) % 3 == 1).astype(np.int32)
  if name == 'prm':
    return rows
  if name == 'safe':
    safe = (np.arange(_SIZE) % 3 > 0).astype(np.float32)
    return LabelledBatch(rows=rows, safe_B=safe, weight_B=weight, group_B=group)
  return PairBatch(rows=rows, weight_P=weight, group_P=group)


def _alone(name: str):
  """The oracle: a batch of one sequence a row, and its shape."""
  rows = one_sequence_a_row(_examples(name))
  num_rows, tokens = rows.tokens_BT.shape
  return _batch(name, rows), _shape(tokens, num_rows)


def _shape(row_tokens: int, microbatch_rows: int) -> RowShape:
  return row_shape(_SIZE, 20, microbatch_rows, row_tokens)


def _packed(name: str, shape: RowShape):
  return _batch(name, sequence_packing.pack(_examples(name), shape))


def _step(name: str, model, shape: RowShape):
  """Returns a function from parameters to a fresh state, and the step."""
  tx, kind = optimizer.make(_OPTIMIZER, 10), _KINDS[name]
  fresh = lambda params: train_state.create(jax.tree.map(jnp.copy, params), tx)
  if kind.loss:
    step = dpo_step.dpo(model, tx, kind.loss, kind.robust, _BALANCING, shape)
    reference = parameters.init_params(model, jax.random.key(5))
    return (
      lambda params: dpo_step.dpo_state(
        jax.tree.map(jnp.copy, params), tx, kind.robust
      ),
      lambda state, batch: step(state, batch, reference),
      step,
    )
  if name == 'prm':
    step = prm_step.process_reward_model(model, tx, _BALANCING, shape)
  else:
    step = reward_model_step.reward_model(
      model, tx, PairwiseLossConfig(0.1, 0.01), _BALANCING, shape
    )
  return fresh, step, step


def _trained(name: str, model, params, batch, shape: RowShape):
  """The state after one step, and its metrics."""
  fresh, step, _ = _step(name, model, shape)
  return step(fresh(params), batch)


def _moments(state):
  """First moments and roots of the second: both in a gradient's unit."""
  adam = getattr(state, 'train', state).opt_state[1]
  return adam.mu, jax.tree.map(np.sqrt, jax.device_get(adam.nu))


def _assert_same(got, want):
  """Compares arrays to 1e-6 of the norm of all of them, at least of 1."""
  got, want = jax.device_get((got, want))
  scale = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(want)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-6 * max(1, scale)
    ),
    got,
    want,
  )


def _assert_same_update(got, want):
  """Compares states and metrics of a step."""
  (state, metrics), (whole, want_metrics) = got, want
  _assert_same(_moments(state), _moments(whole))
  if getattr(whole, 'alpha_g', None) is not None:
    np.testing.assert_allclose(state.alpha_g, whole.alpha_g, atol=1e-6)
  params = [getattr(s, 'train', s).params for s in (state, whole)]
  if 'moe_layers' in params[0]:
    bias = [p['moe_layers']['ffn']['bias'] for p in params]
    np.testing.assert_array_equal(*bias)
  assert metrics.keys() == want_metrics.keys()
  for name, value in want_metrics.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=2e-6, atol=1e-6, err_msg=name
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', _KINDS)
def test_packed_rows_are_the_update_of_one_row_a_sequence(name):
  """Whatever the rows and microbatches: one gradient, and the same metrics."""
  model, params = _model(_MOE)
  want = _trained(name, model, params, *_alone(name))
  for shape in (_shape(21, 3), _shape(50, 2), _shape(200, 1)):
    batch = _packed(name, shape)
    _assert_same_update(_trained(name, model, params, batch, shape), want)


def test_longer_sequences_share_a_program():
  """Batches of more and more microbatches, in training and in scoring."""
  model, params = _model(_DENSE)
  shape = _shape(24, 1)
  fresh, step, program = _step('helpful', model, shape)
  score = reward_model_step.scores(model, shape)
  layout = train_state.shardings(model, optimizer.make(_OPTIMIZER, 10))
  state, counts = jax.device_put(fresh(params), layout), []
  for longest in (3, 5, 8, 10):
    lengths = [tuple(min(n, longest) for n in example) for example in _PAIRS]
    rows = sequence_packing.pack(examples_of(lengths, _read('helpful')), shape)
    batch = _batch('helpful', rows)
    counts.append(int(rows.num_microbatches_u.sum()))
    score(params, batch)
    state, _ = step(state, batch)
  assert counts[0] < counts[1] < counts[-1]
  assert program._cache_size() == score._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize('name', ['robust', 'helpful', 'safe', 'prm'])
def test_eight_devices_equal_one(name):
  model, params = _model(_MOE)
  shape = _shape(22, 4)
  batch = _packed(name, shape)
  want, want_metrics = _trained(name, model, params, batch, shape)
  layout = Layout(make_mesh(dict(data=2, tensor=2, expert=2)))
  wide = Transformer(_MOE, layout)
  spread = jax.device_put(
    jax.device_get(params), parameters.parameter_shardings(wide, layout)
  )
  got, metrics = _trained(name, wide, spread, batch, shape)
  assert metrics['moe/dropped'] == 0
  for key in ('grad_norm', 'loss', 'skipped_updates'):
    np.testing.assert_allclose(
      metrics[key], want_metrics[key], rtol=1e-4, atol=1e-6, err_msg=key
    )
  _assert_same(_moments(got), _moments(want))
