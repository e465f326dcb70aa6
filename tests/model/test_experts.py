"""The dispatches of experts against a loop over (token, expert) pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import experts


def _silu(x):
  return x / (1 + np.exp(-x))


def _loop(x_TD, gating_TA, gate_EDI, up_EDI, down_EID, expert_TA, cotangent_TD):
  """Computes the output and its vector-Jacobian products, pair by pair."""
  out = np.zeros(cotangent_TD.shape)
  grads = [
    np.zeros(a.shape) for a in (x_TD, gating_TA, gate_EDI, up_EDI, down_EID)
  ]
  for (r, a), e in np.ndenumerate(expert_TA):
    if e == len(gate_EDI):
      continue
    x, dy = x_TD[r].astype(np.float64), cotangent_TD[r]
    gating, g, u = gating_TA[r, a], x @ gate_EDI[e], x @ up_EDI[e]
    alone = _silu(g) * u @ down_EID[e]
    out[r] += gating * alone
    grads[1][r, a] = alone @ dy
    dy = gating * dy
    dh = down_EID[e] @ dy
    sigmoid = 1 / (1 + np.exp(-g))
    dg = dh * u * sigmoid * (1 + g * (1 - sigmoid))
    du = dh * _silu(g)
    grads[0][r] += gate_EDI[e] @ dg + up_EDI[e] @ du
    grads[2][e] += np.outer(x, dg)
    grads[3][e] += np.outer(x, du)
    grads[4][e] += np.outer(_silu(g) * u, dy)
  return out, grads


@pytest.mark.parametrize(
  'case', ['even', 'one expert', 'some empty', 'few', 'some none']
)
@pytest.mark.parametrize('dispatch', ['blocks', 'ragged'])
def test_dispatch_is_dropless_and_exact(case, dispatch):
  rng = np.random.default_rng(0)
  T, A, E, D, I = (3 if case == 'few' else 151), 2, 8, 5, 6
  pool = {
    'one expert': [3],
    'some empty': [0, 5, 7],
    'some none': [1, 4, 8],
  }.get(case, range(E))
  expert = rng.choice(list(pool), (T, A)).astype(np.int32)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  arrays = draw(T, D), draw(T, A), draw(E, D, I), draw(E, D, I), draw(E, I, D)
  cotangent = draw(T, D)

  @jax.jit
  def run(x, gating, *weights):
    return experts.swiglu(x, expert, gating, weights, dispatch, False)

  out, vjp = jax.vjp(run, *arrays)
  want, want_grads = _loop(*arrays, expert, cotangent)
  np.testing.assert_allclose(out, want, atol=1e-4)
  for grad, want in zip(vjp(cotangent), want_grads, strict=True):
    np.testing.assert_allclose(grad, want, atol=3e-4)


def test_blocks_cost_little_more_than_the_ideal_product():
  """At E = 16 the padding stays below a tenth, and far below E times."""
  pairs, num = 16384, 16
  expert = jax.random.randint(jax.random.key(0), (pairs,), 0, num)
  slots = experts.assign_slots(expert, num, smallest=2)
  block = slots.pair_s.shape[0] // slots.expert_w.shape[0]
  assert pairs <= int(slots.end_E[-1]) * block < 1.1 * pairs


@pytest.mark.parametrize(
  'pairs, slots',
  [(4, 2), (32, 2), (64, 4), (256, 4), (512, 8), (1024, 16), (65536, 128)],
)
def test_a_block_holds_a_quarter_of_a_fair_share(pairs, slots):
  assert experts.slots_per_block(pairs, 16, smallest=2) == slots
  assert experts.slots_per_block(pairs, 16, smallest=16) == max(slots, 16)


def test_pairs_are_in_order_of_expert_and_then_of_number():
  """The order equals that of a stable sort; pairs of no expert come last."""
  expert = jax.random.randint(jax.random.key(0), (1000,), 0, 8)
  np.testing.assert_array_equal(
    experts.sorted_pairs(expert, 7), jnp.argsort(expert, stable=True)
  )


def test_pairs_that_no_key_can_number_are_refused():
  with pytest.raises(ValueError, match='smaller batches'):
    jax.eval_shape(
      lambda expert: experts.sorted_pairs(expert, 256),
      jax.ShapeDtypeStruct((1 << 24,), jnp.int32),
    )


def test_both_dispatches_agree_in_bfloat16():
  """Gradients of a weight are summed in float32 over all of its blocks."""
  rng = np.random.default_rng(1)
  T, A, E, D, I = 400, 2, 2, 8, 16
  expert = rng.integers(0, E, (T, A)).astype(np.int32)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
  x, gating = draw(T, D), draw(T, A)
  weights = draw(E, D, I), draw(E, D, I), draw(E, I, D)
  cotangent = draw(T, D)
  found = []
  for dispatch in ('blocks', 'ragged'):
    run = jax.jit(partial(experts.swiglu, dispatch=dispatch, fp8=False))
    found.append(
      jax.vjp(
        lambda *args, run=run: run(args[0], expert, *args[1:]),
        x,
        gating,
        weights,
      )[1](cotangent)
    )
  for blocks, ragged in zip(*map(jax.tree.leaves, found), strict=True):
    assert blocks.dtype == jnp.bfloat16
    blocks, ragged = (np.asarray(x, np.float32) for x in (blocks, ragged))
    assert np.abs(blocks - ragged).max() <= 0.02 * np.abs(ragged).max()
