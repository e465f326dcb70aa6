"""Multi-token prediction against NumPy, and its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import mtp
from r1jax.model.scoring import last_valid
from tests.conftest import make, small_config
from tests.reference import transformer as oracle

_TOKENS = np.random.default_rng(0).integers(0, 32, (1, 9))
_POSITION = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
_SEGMENT = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2]])


@pytest.mark.parametrize(
  'modules, depth',
  [
    pytest.param(1, 1, marks=pytest.mark.slow),
    (2, 2),
    pytest.param(1, 3, id='one module, applied three times'),
  ],
)
def test_every_depth_equals_the_numpy_oracle(modules, depth):
  config = small_config(num_nextn_predict_layers=modules, mtp_depth=depth)
  model, params = make(config)
  ahead = params['mtp']['block']['ffn']
  ahead['bias'] = 0.3 * jax.random.normal(
    jax.random.key(8), ahead['bias'].shape
  )

  @jax.jit
  def run(params):
    out = model.apply({'params': params}, _TOKENS, _POSITION, _SEGMENT)
    return model.apply(
      {'params': params},
      out.hidden_BTD,
      _TOKENS,
      _POSITION,
      _SEGMENT,
      method='predict_ahead',
    )

  hidden_ZBTD, routing = run(params)
  params64 = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  want = oracle.predict_ahead(
    params64, _TOKENS[0], _POSITION[0], _SEGMENT[0], config
  )
  for k in range(depth):
    # The last k + 1 positions of the row have no token ahead.
    np.testing.assert_allclose(
      hidden_ZBTD[k, 0, : -k - 1], want[k][: -k - 1], atol=2e-4
    )
  assert routing['mtp'].load_E.shape == (modules, config.n_routed_experts)
  np.testing.assert_allclose(routing['mtp'].aux_loss, 1, atol=0.5)
  assert routing['mtp'].load_E.sum() == depth * 9 * config.num_experts_per_tok


def test_targets_end_with_their_document():
  target = np.array([[8, 9, 0, 5, 0, 0]])
  weight = np.array([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
  segment = np.array([[1, 1, 1, 2, 2, 0]])
  got, counts = mtp.targets(target, weight, segment, 1)
  np.testing.assert_array_equal(counts, [[1, 0, 0, 0, 0, 0]])
  assert got[0, 0] == 9
  _, counts = mtp.targets(target, weight, segment, 2)
  np.testing.assert_array_equal(counts, np.zeros((1, 6)))


def test_mtp_sees_the_next_token_and_no_more():
  """Module 1 at position i depends on tokens up to i + 1 only."""
  model, params = make(small_config(num_nextn_predict_layers=1))

  @jax.jit
  def run(tokens):
    segment, position = tokens * 0 + 1, np.arange(9)[None]
    out = model.apply({'params': params}, tokens, position, segment)
    return model.apply(
      {'params': params},
      out.hidden_BTD,
      tokens,
      position,
      segment,
      method='predict_ahead',
    )[0][0, 0]

  changed = _TOKENS.copy()
  changed[0, 5] = (changed[0, 5] + 1) % 32
  moved = np.abs(run(_TOKENS) - run(changed)).max(-1)
  assert (moved[:4] < 1e-6).all()
  assert moved[4] > 1e-3


def test_a_reward_is_read_at_the_last_token():
  x = jnp.arange(8.0).reshape(2, 4)
  valid = jnp.array([[0, 1, 1, 0], [1, 1, 1, 1]], bool)
  np.testing.assert_array_equal(last_valid(x, valid), [2, 7])


def test_the_scalar_head_is_one_number_a_token():
  model, params = make(small_config(scalar_head=True))
  params['scalar'] = jax.random.normal(jax.random.key(0), (16, 1))
  out = model.apply({'params': params}, _TOKENS, _POSITION, _SEGMENT)
  values = model.apply({'params': params}, out.hidden_BTD, method='scalars')
  np.testing.assert_allclose(
    values, out.hidden_BTD @ np.asarray(params['scalar'])[:, 0], atol=1e-5
  )
