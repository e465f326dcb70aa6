"""The update that all steps share traces its loss once, and may change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config.schema.training import LoadBalancingConfig, OptimizerConfig
from r1jax.train import make_step, optimizer
from r1jax.train.make_step import LossOutput
from r1jax.train.state import TrainState

_OPTIMIZER = OptimizerConfig(
  learning_rate=0.5,
  warmup_steps=0,
  lr_scheduler_type='constant',
  weight_decay=0.0,
)


def _update(factors, **kwargs):
  """Makes an update of one weight on a loss whose gradient sums the factors.

  Returns:
    The weight after it, its metrics, and how often Python ran the loss.
  """
  runs = []

  def loss_fn(params, micro, totals):
    runs.append(1)
    loss = params['w'] * micro['factor'].sum() / totals
    return LossOutput(loss, {'loss': loss}, {}, 1.0)

  tx = optimizer.make(_OPTIMIZER, 5)
  params = {'w': jnp.float32(3.0)}
  state = TrainState(
    updates=jnp.int32(0), params=params, opt_state=tx.init(params)
  )
  update = make_step.make_update(
    tx, loss_fn, LoadBalancingConfig(routed_bias_update_rate=0.0)
  )
  micros = {'factor': jnp.asarray(factors, jnp.float32)}
  state, metrics, _ = jax.jit(
    lambda state, micros: update(state, micros, 2.0, **kwargs)
  )(state, micros)
  return state, jax.device_get(metrics), len(runs)


@pytest.mark.parametrize('count', [None, 2])
def test_a_loss_is_traced_once_for_all_microbatches(count):
  state, metrics, runs = _update(
    [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], count=count
  )
  assert runs == 1
  summed = 28.0 if count is None else 10.0
  np.testing.assert_allclose(metrics['grad_norm'], summed / 2, rtol=1e-6)
  np.testing.assert_allclose(metrics['loss'], 3 * summed / 2, rtol=1e-6)
  assert state.updates == 1


@pytest.mark.parametrize(
  'factors, learns, skipped',
  [
    ([[1.0], [np.nan]], True, 1),
    ([[1.0], [np.inf]], True, 1),
    ([[1.0], [2.0]], False, 0),
  ],
)
def test_a_state_that_must_not_change_does_not(factors, learns, skipped):
  """An update that counts moves the weight by the learning rate."""
  state, metrics, _ = _update(factors, learns=jnp.asarray(learns))
  assert metrics['skipped_updates'] == skipped
  assert state.params['w'] == 3.0 and state.updates == 0
  assert not any(jnp.any(x) for x in jax.tree.leaves(state.opt_state))
  state, metrics, _ = _update([[1.0], [2.0]], learns=jnp.asarray(True))
  assert metrics['skipped_updates'] == 0 and state.updates == 1
  np.testing.assert_allclose(state.params['w'], 2.5, rtol=1e-5)
