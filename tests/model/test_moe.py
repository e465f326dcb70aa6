"""Routing, dispatch and balancing against NumPy."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.model import dispatch as expert_dispatch
from r1jax.model import moe
from r1jax.sharding import Layout, make_mesh
from tests.conftest import one_device, small_config
from tests.reference import transformer as oracle


@pytest.mark.parametrize(
  'groups,top_groups,active',
  [(1, 1, 2), (4, 2, 3), (4, 1, 2), (2, 2, 8), (8, 3, 2)],
)
def test_routing_equals_the_numpy_oracle(groups, top_groups, active):
  config = small_config(
    n_group=groups, topk_group=top_groups, num_experts_per_tok=active
  )
  rng = np.random.default_rng(0)
  affinity = rng.uniform(0.01, 0.99, (200, 8)).astype(np.float32)
  bias = rng.normal(0, 0.5, 8).astype(np.float32)
  expert_BA, gate_BA = moe.route(affinity, bias, config)
  for row in range(200):
    want = oracle.route(affinity[row], bias, config)
    got = dict(
      zip(np.asarray(expert_BA[row]).tolist(), np.asarray(gate_BA[row]))
    )
    assert got.keys() == want.keys()
    for expert, gate in want.items():
      np.testing.assert_allclose(got[expert], gate, rtol=1e-5)


def test_bias_selects_but_does_not_weigh():
  config = small_config(
    n_group=1, topk_group=1, num_experts_per_tok=1, routed_scaling_factor=1.0
  )
  affinity = jnp.array([[0.9, 0.1] + [0.05] * 6])
  bias = jnp.array([-2.0] + [0.0] * 7)
  expert_BA, gate_BA = moe.route(affinity, bias, config)
  assert expert_BA[0, 0] == 1
  np.testing.assert_allclose(gate_BA, 1.0)


def test_balancing_moves_bias_against_the_load():
  bias = moe.updated_bias(
    jnp.zeros((1, 4)), jnp.array([[9.0, 1.0, 5.0, 5.0]]), 0.001
  )
  np.testing.assert_allclose(bias, [[-0.001, 0.001, 0, 0]])


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'n_group': 3}, 'n_group = 3 does not divide'),
    ({'topk_group': 5}, 'topk_group = 5'),
    ({'num_experts_per_tok': 5}, 'num_experts_per_tok = 5'),
    ({'qk_rope_head_dim': 3}, 'qk_rope_head_dim'),
    ({'first_k_dense_replace': 9}, 'first_k_dense_replace = 9'),
  ],
)
def test_a_wrong_architecture_is_named(changes, message):
  with pytest.raises(UserError, match=message):
    small_config(**changes)


def test_softmax_routing_is_that_of_v2():
  """V2 ranks groups by their best expert and does not normalize gates."""
  config = small_config(
    scoring_func='softmax',
    group_scoring='max',
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
    n_group=4,
    topk_group=2,
    num_experts_per_tok=2,
  )
  rng = np.random.default_rng(0)
  affinity = jax.nn.softmax(rng.normal(size=(50, 8)).astype(np.float32) * 2)
  expert_BA, gate_BA = moe.route(affinity, jnp.zeros(8), config)
  for row, experts, gates in zip(np.asarray(affinity), expert_BA, gate_BA):
    best = np.argsort(-row.reshape(4, 2).max(1))[:2]
    allowed = [e for e in range(8) if e // 2 in best]
    want = sorted(allowed, key=lambda e: -row[e])[:2]
    assert set(np.asarray(experts).tolist()) == set(want)
    np.testing.assert_allclose(gates, 16 * row[np.asarray(experts)], rtol=1e-6)


def test_the_balance_loss_equals_numpy_and_ignores_padding():
  """Compares with V3 eq. 17–20 in loops."""
  rng = np.random.default_rng(0)
  B, T, E, A = 3, 7, 6, 2
  affinity = rng.uniform(0.1, 0.9, (B, T, E)).astype(np.float32)
  expert = np.argsort(-affinity + rng.normal(size=affinity.shape), -1)[..., :A]
  counted = np.arange(T) < np.array([7, 4, 0])[:, None]
  total, rows = 0.0, 0
  for b in range(B):
    seen = [t for t in range(T) if counted[b, t]]
    if not seen:
      continue
    rows += 1
    for i in range(E):
      f = E / (A * len(seen)) * sum(i in expert[b, t] for t in seen)
      P = np.mean([affinity[b, t, i] / affinity[b, t].sum() for t in seen])
      total += f * P
  loss, load = moe.sequence_aux_loss(affinity, jnp.asarray(expert), counted)
  np.testing.assert_allclose(loss, total / rows, rtol=1e-5)
  np.testing.assert_array_equal(
    load, np.bincount(expert[counted].reshape(-1), minlength=E)
  )


def test_load_metrics_name_the_worst_layer():
  load = jnp.array([[5.0, 5.0, 5.0, 5.0], [20.0, 0.0, 0.0, 0.0]])
  found = moe.load_metrics(load)
  assert found['moe/max_violation'] == 3
  assert found['moe/dead_experts'] == 3
  assert found['moe/layer_0/violation'] == 0
  np.testing.assert_allclose(found['moe/layer_0/entropy'], 1, rtol=1e-6)
  np.testing.assert_allclose(found['moe/min_entropy'], 0, atol=1e-6)


_ONE_LAYER = dict(
  num_hidden_layers=1, first_k_dense_replace=0, n_shared_experts=0
)


def _moe_layer(shape, **changes):
  """Computes output, gradients and routing of one MoE layer on a mesh."""
  config = small_config(**_ONE_LAYER, **changes)
  mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
  module = moe.MoE(config, Layout(mesh))
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 6, 16)).astype(np.float32)
  counted = np.arange(6) < rng.integers(1, 7, (8, 1))
  params = nn.meta.unbox(
    moe.MoE(config, one_device()).init(jax.random.key(1), x, counted)['params']
  )

  @jax.jit
  def run(params, x):
    y, routing = module.apply({'params': params}, x, counted)
    y = jnp.where(counted[..., None], y, 0)
    return jnp.mean(y**2), (y, routing)

  (_, (y, routing)), grads = jax.value_and_grad(run, (0, 1), has_aux=True)(
    jax.device_get(params), x
  )
  return jax.device_get((y, routing, grads))


@pytest.mark.parametrize(
  'shape',
  [
    dict(data=4),
    dict(expert=4),
    dict(tensor=2, expert=4),
    dict(fsdp=2, expert=2, tensor=2),
    dict(tensor=8),
    dict(data=2, tensor=4),
  ],
  ids=str,
)
@pytest.mark.parametrize(
  'dispatch, gathers',
  [
    ('blocks', False),
    ('ragged', False),
    ('blocks', True),
    pytest.param('ragged', True, marks=pytest.mark.slow),
  ],
)
def test_expert_parallelism_is_exact(monkeypatch, shape, dispatch, gathers):
  """Output, load and all gradients agree when experts are sharded.

  That holds where pairs are sent to their experts, and where each device reads
  all tokens.
  """
  monkeypatch.setattr(expert_dispatch, '_gathers', lambda *_: gathers)
  want = _moe_layer(dict(data=1), moe_dispatch=dispatch)
  got = _moe_layer(shape, moe_dispatch=dispatch)
  assert got[1].dropped == 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    got,
    want,
  )


@pytest.mark.parametrize(
  'tokens, group, shards, experts, gathers',
  [
    (4, 32, 256, 1, True),  # DeepSeek-V3 decodes on 1,024 chips.
    (4, 8, 8, 1, False),  # Slots are no more than tokens.
    (64, 1, 8, 4, True),  # All devices have the same tokens.
  ],
)
def test_few_tokens_are_read_by_all(tokens, group, shards, experts, gathers):
  config = small_config(
    num_experts_per_tok=8, n_routed_experts=256, n_group=1, topk_group=1
  )
  sent = 2 * shards * tokens * min(8, experts)
  assert (sent > 2 * tokens * group) == gathers  # In float32.
  assert (
    expert_dispatch._gathers(tokens, group, shards, experts, config) == gathers
  )
  capped = dataclasses.replace(config, capacity_factor=1.25)
  assert not expert_dispatch._gathers(tokens, group, shards, experts, capped)


def test_a_capacity_drops_and_counts():
  """With a capacity of one pair per device the rest is dropped and counted."""
  exact, _, _ = _moe_layer(dict(expert=4))
  y, routing, grads = _moe_layer(dict(expert=4), capacity_factor=0.3)
  assert routing.dropped > 0
  assert jax.tree.all(jax.tree.map(lambda g: np.isfinite(g).all(), grads))
  assert not np.allclose(y, exact, atol=1e-3)
  y, routing, _ = _moe_layer(dict(expert=4), capacity_factor=4.0)
  assert routing.dropped == 0
  np.testing.assert_allclose(y, exact, atol=1e-5)


def test_a_tiny_capacity_still_has_room_for_one():
  y, routing, _ = _moe_layer(dict(expert=4), capacity_factor=1e-6)
  assert np.isfinite(y).all() and routing.dropped > 0
