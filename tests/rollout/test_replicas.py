"""How the devices of a run are divided into replicas that sample."""

import jax
import numpy as np
import pytest

from r1jax.config.schema.rollout import RolloutConfig
from r1jax.errors import UserError
from r1jax.rollout import replicas
from r1jax.sharding import Layout, make_mesh
from tests.conftest import make, small_config


def _divided(shape: dict, count: int = 8, **division) -> replicas.Replicas:
  layout = Layout(make_mesh(shape, jax.devices()[:count]))
  return replicas.divide(layout, RolloutConfig(**division))


@pytest.mark.parametrize(
  'shape, own',
  [
    (dict(data=2, fsdp=2, expert=2), dict(data=4, tensor=1, expert=2)),
    (dict(fsdp=8), dict(data=8, tensor=1, expert=1)),
    (dict(tensor=2, fsdp=4), dict(data=4, tensor=2, expert=1)),
  ],
)
def test_a_host_keeps_tensor_and_expert_and_copies_the_rest(shape, own):
  division = _divided(shape, scope='host')
  assert dict(division.layout.mesh.shape) == own | dict(fsdp=1, sequence=1)
  assert not division.layout.weight_axes('D')
  assert division.are_copies and not division.apart


def test_by_default_all_devices_decode_together_where_the_weights_are():
  division = _divided(dict(fsdp=4, tensor=2))
  assert division.in_lockstep and not division.are_copies
  assert division.own == 0 and division.leads and division.trainers == ()


@pytest.mark.parametrize(
  'shape, count, sampling, own',
  [
    (dict(fsdp=4), 4, 4, dict(data=4, tensor=1)),
    (dict(tensor=2, fsdp=3), 6, 2, dict(data=1, tensor=2)),
    (dict(tensor=2, fsdp=2), 4, 1, dict(data=1, tensor=1)),
  ],
)
def test_devices_that_only_sample(shape, count, sampling, own, monkeypatch):
  devices = jax.devices()[: count + sampling]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  assert replicas.training_devices(sampling) == devices[:count]
  division = _divided(shape, count, sampling_devices=sampling)
  mesh = division.layout.mesh
  assert set(mesh.devices.flat) == set(devices[count:])
  assert {name: mesh.shape[name] for name in own} == own
  assert division.apart and division.are_copies


@pytest.mark.parametrize(
  'count, sampling, message',
  [
    (1, 8, 'leaves none of the 8 devices to train'),
    (
      5,
      3,
      'a copy of the weights lies on 3 devices, which do not divide the 5',
    ),
  ],
)
def test_devices_that_do_not_divide_are_refused(count, sampling, message):
  with pytest.raises(UserError, match=message):
    _divided(dict(data=count), count, sampling_devices=sampling)


def test_weights_arrive_as_they_were():
  """Sharded otherwise, in another order of devices, and bit for bit."""
  devices = jax.devices()
  layout = Layout(make_mesh(dict(fsdp=2, expert=2), devices[:4]))
  model, params = make(small_config(), layout)
  division = replicas.divide(layout, RolloutConfig(sampling_devices=2))
  target = jax.sharding.NamedSharding(
    division.layout.mesh, jax.sharding.PartitionSpec()
  )
  sent = replicas.send(params, jax.tree.map(lambda _: target, params), division)
  assert jax.tree.structure(sent) == jax.tree.structure(params)
  for ours, theirs in zip(*map(jax.tree.leaves, (sent, params))):
    assert ours.sharding == target
    np.testing.assert_array_equal(ours, theirs)
  assert model.layout.is_local
