"""Routing, dispatch and balancing against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model import moe
from tests.conftest import small_config
from tests.reference import transformer as oracle


@pytest.mark.parametrize('groups,top_groups,active', [
    (1, 1, 2), (4, 2, 3), (4, 1, 2), (2, 2, 8), (8, 3, 2)])
def test_routing_equals_the_numpy_oracle(groups, top_groups, active):
  config = small_config(num_expert_groups=groups, topk_groups=top_groups,
                        experts_per_token=active)
  rng = np.random.default_rng(0)
  affinity = rng.uniform(0.01, 0.99, (200, 8)).astype(np.float32)
  bias = rng.normal(0, 0.5, 8).astype(np.float32)
  expert_BA, gate_BA = moe.route(affinity, bias, config)
  for row in range(200):
    want = oracle.route(affinity[row], bias, config)
    got = dict(zip(np.asarray(expert_BA[row]).tolist(),
                   np.asarray(gate_BA[row])))
    assert got.keys() == want.keys()
    for expert, gate in want.items():
      np.testing.assert_allclose(got[expert], gate, rtol=1e-5)


def test_bias_selects_but_does_not_weigh():
  config = small_config(num_expert_groups=1, topk_groups=1,
                        experts_per_token=1, routed_scaling=1.0)
  affinity = jnp.array([[0.9, 0.1] + [0.05] * 6])
  bias = jnp.array([-2.0] + [0.0] * 7)
  expert_BA, gate_BA = moe.route(affinity, bias, config)
  assert expert_BA[0, 0] == 1
  np.testing.assert_allclose(gate_BA, 1.0)


def _dense(x_BD, w_EDF, expert_BA):
  return np.einsum('BD,BADF->BAF', x_BD, w_EDF[expert_BA])


@pytest.mark.parametrize('case', ['even', 'one expert', 'some empty', 'few'])
@pytest.mark.parametrize('dispatch', ['blocks', 'ragged'])
def test_dispatch_is_dropless_and_exact(case, dispatch):
  rng = np.random.default_rng(0)
  B, A, E, D, F = (3 if case == 'few' else 301), 2, 8, 5, 6
  pool = {'one expert': [3], 'some empty': [0, 5, 7]}.get(case, range(E))
  expert_BA = rng.choice(list(pool), (B, A)).astype(np.int32)
  x_BD = rng.normal(size=(B, D)).astype(np.float32)
  w_EDF = rng.normal(size=(E, D, F)).astype(np.float32)

  def run(x, w):
    where = moe.plan(jnp.asarray(expert_BA), E, dispatch)
    return moe.grouped_matmul(x[where.token_S], w, where)[where.slot_BA]

  np.testing.assert_allclose(
      run(x_BD, w_EDF), _dense(x_BD, w_EDF, expert_BA), atol=1e-5)
  cotangent = rng.normal(size=(B, A, F)).astype(np.float32)
  dx, dw = jax.vjp(run, x_BD, w_EDF)[1](cotangent)
  want_dw = np.zeros_like(w_EDF)
  for b in range(B):
    for a in range(A):
      want_dw[expert_BA[b, a]] += np.outer(x_BD[b], cotangent[b, a])
  np.testing.assert_allclose(dw, want_dw, atol=1e-4)
  np.testing.assert_allclose(
      dx, np.einsum('BAF,BADF->BD', cotangent, w_EDF[expert_BA]), atol=1e-4)


def test_blocks_cost_little_more_than_the_ideal_product():
  """At E = 16 the padding stays below a half, and far below E times."""
  pairs, experts = 16384, 16
  expert_BA = jax.random.randint(jax.random.key(0), (pairs, 1), 0, experts)
  where = moe.plan(expert_BA, experts, 'blocks')
  assert pairs <= where.token_S.shape[0] < 1.5 * pairs


def test_balancing_moves_bias_against_the_load():
  bias = moe.balanced_bias(jnp.zeros((1, 4)), jnp.array([[9., 1., 5., 5.]]),
                           0.001)
  np.testing.assert_allclose(bias, [[-0.001, 0.001, 0, 0]])


@pytest.mark.parametrize('changes,message', [
    ({'num_expert_groups': 3}, 'num_expert_groups = 3 does not divide'),
    ({'topk_groups': 5}, 'topk_groups = 5'),
    ({'experts_per_token': 5}, 'experts_per_token = 5'),
    ({'qk_rope_head_dim': 3}, 'qk_rope_head_dim'),
    ({'first_k_dense': 9}, 'first_k_dense = 9'),
])
def test_a_wrong_architecture_is_named(changes, message):
  with pytest.raises(UserError, match=message):
    small_config(**changes)
