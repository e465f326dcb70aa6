"""FLOPs counted from jaxprs, and the compile for an absent slice."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from r1jax import main
from r1jax.errors import UserError
from r1jax.launch import aot, flops
from r1jax.sharding import make_mesh


def test_products_in_scans_count_as_often_as_they_run():
  w = jnp.ones((3, 4, 4))

  @jax.jit
  def run(x):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

  assert flops.of(run, jnp.ones((5, 4)))['dense'] == 3 * 2 * 5 * 4 * 4


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
    return jax.shard_map(lambda x, w: x @ w, mesh=mesh,
                         in_specs=(split, PartitionSpec()), out_specs=split,
                         check_vma=False)(x, w)

  assert flops.of(run, jnp.ones((16, 4)), jnp.ones((4, 6)))['dense'] == (
      2 * 16 * 4 * 6)


def test_grouped_products_and_their_gradients_count_by_row():
  def loss(x, w):
    return jnp.sum(jax.lax.ragged_dot(x, w, jnp.array([3, 2])) ** 2)

  found = flops.of(jax.jit(jax.grad(loss, (0, 1))), jnp.ones((5, 4)),
                   jnp.ones((2, 4, 6)))
  assert found['grouped'] == 3 * 2 * 5 * 4 * 6


@pytest.mark.parametrize('name', ['v9:2x2', 'v5p', 'v5p:8', 'v5p:8x8x'])
def test_a_wrong_topology_is_named(name):
  with pytest.raises(UserError, match='v5p:8x8x16'):
    aot.topology(name)


def test_without_the_compiler_the_fix_is_named():
  try:
    import libtpu  # noqa: F401
  except ImportError:
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
      main.run(['aot', '--config=configs/r1_zero_671b.py',
                '--topology=v5p:2x2x1'])
  else:
    pytest.skip('libtpu is installed here')
