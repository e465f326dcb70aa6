"""FLOPs counted from jaxprs."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.launch import flops
from r1jax.model import kernels
from r1jax.sharding import make_mesh
from tests.conftest import one_device


def test_products_in_scans_count_as_often_as_they_run():
  w = jnp.ones((3, 4, 4))

  @jax.jit
  def run(x):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

  assert flops.of(run, jnp.ones((5, 4)))['dense'] == 3 * 2 * 5 * 4 * 4


def test_products_in_a_loop_count_as_often_as_they_may_run():
  w = jnp.ones((4, 4))

  @jax.jit
  def run(x, times):
    return jax.lax.while_loop(
      lambda state: (state[0] < times) & (state[0] < 7),
      lambda state: (state[0] + 1, state[1] @ w),
      (0, x),
    )[1]

  assert flops.of(run, jnp.ones((5, 4)), 3)['dense'] == 7 * 2 * 5 * 4 * 4


def test_a_gradient_costs_two_more_products_and_remat_a_third():
  def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w))

  args = jnp.ones((4, 6)), jnp.ones((5, 4))
  once = 2 * 5 * 4 * 6
  both = jax.jit(jax.grad(loss, (0, 1)))
  assert flops.of(both, *args)['dense'] == 3 * once
  again = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))
  assert flops.of(again, *args)['dense'] == 4 * once


def test_every_device_of_a_shard_map_counts():
  mesh = make_mesh(dict(data=8))
  split = PartitionSpec('data')

  @jax.jit
  def run(x, w):
    return jax.shard_map(
      lambda x, w: x @ w,
      mesh=mesh,
      in_specs=(split, PartitionSpec()),
      out_specs=split,
      check_vma=False,
    )(x, w)

  assert flops.of(run, jnp.ones((16, 4)), jnp.ones((4, 6)))['dense'] == (
    2 * 16 * 4 * 6
  )


def test_grouped_products_and_their_gradients_count_by_row():
  def loss(x, w):
    return jnp.sum(jax.lax.ragged_dot(x, w, jnp.array([3, 2])) ** 2)

  found = flops.of(
    jax.jit(jax.grad(loss, (0, 1))), jnp.ones((5, 4)), jnp.ones((2, 4, 6))
  )
  assert found['grouped'] == 3 * 2 * 5 * 4 * 6


def test_a_kernel_counts_its_whole_grid_forward_and_backward():
  """Splash: two products forward, five backward, masked blocks among them."""
  B, T, N, H, U = 2, 1024, 3, 192, 128
  q = jnp.ones((B, T, N, H))
  v = jnp.ones((B, T, N, U))
  segment = jnp.ones((B, T), jnp.int32)

  def mix(q, k, v):
    return kernels.attend(q, k, v, segment, 1.0, one_device(), 'splash').sum()

  forward = 2 * B * N * T * T * (H + U)
  backward = 2 * B * N * T * T * (3 * H + 2 * U)
  assert flops.of(jax.jit(mix), q, q, v)['kernel'] == forward
  assert flops.of(jax.jit(jax.grad(mix, (0, 1, 2))), q, q, v)['kernel'] == (
    forward + backward
  )


def test_a_loop_counts_as_often_as_its_scope_says():
  """A row of one segment visits the lower triangle of 4 × 4 blocks of 64."""
  B, T, N, H, U = 3, 256, 2, 8, 4
  q = jnp.ones((B, T, N, H))
  v = jnp.ones((B, T, N, U))
  segment = jnp.ones((B, T), jnp.int32)

  def mix(q, k, v):
    return kernels.attend(q, k, v, segment, 1.0, one_device(), 'blocked').sum()

  pairs = B * N * (4 * 5 // 2) * 64**2
  forward = 2 * pairs * (H + U)
  assert flops.of(jax.jit(mix), q, q, v)['dense'] == forward
  assert flops.of(jax.jit(jax.grad(mix, (0, 1, 2))), q, q, v)['dense'] == (
    forward + 2 * pairs * (3 * H + 2 * U)
  )


def test_a_loop_of_at_most_so_many_counts_the_share_that_is_asked_for():
  w = jnp.ones((4, 4))

  def run(x, times):
    with jax.named_scope('upto_8'):
      return jax.lax.fori_loop(0, times, lambda i, x: x @ w, x)

  jaxpr = jax.jit(run).trace(jnp.ones((5, 4)), 3).jaxpr.jaxpr
  once = 2 * 5 * 4 * 4
  assert flops.count(jaxpr)['dense'] == 8 * once
  assert flops.count(jaxpr, fill=0.25)['dense'] == 2 * once
