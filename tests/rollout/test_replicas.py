"""How the devices of a run are divided into replicas that sample."""

import jax
import numpy as np
import pytest

from r1jax.config.schema.rollout import RolloutConfig
from r1jax.errors import UserError
from r1jax.rollout import replicas
from tests.conftest import make, small_config


def _divided(shape: dict, **division) -> replicas.Replicas:
  config = RolloutConfig(**division)
  layout = replicas.training_layout(shape, config.sampling_devices)
  return replicas.divide(layout, config)


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
  'shape, sampling, own',
  [
    (dict(fsdp=4), 4, dict(data=4, tensor=1)),
    (dict(tensor=2, fsdp=3), 2, dict(data=1, tensor=2)),
    (dict(tensor=7), 1, dict(data=1, tensor=1)),
  ],
)
def test_devices_that_only_sample(shape, sampling, own):
  division = _divided(shape, sampling_devices=sampling)
  mesh, count = division.layout.mesh, 8 - sampling
  assert set(division.trained.mesh.devices.flat) == set(jax.devices()[:count])
  assert set(mesh.devices.flat) == set(jax.devices()[count:])
  assert {name: mesh.shape[name] for name in own} == own
  assert division.apart and division.are_copies


@pytest.mark.parametrize(
  'sampling, message',
  [
    (8, 'leaves none of the 8 devices to train'),
    (3, 'a copy of the weights lies on 3 devices, which do not divide the 5'),
  ],
)
def test_devices_that_do_not_divide_are_refused(sampling, message):
  with pytest.raises(UserError, match=message):
    _divided(dict(data=-1), sampling_devices=sampling)


class _Device:
  """A device of another process, for which only its place counts."""

  platform = 'cpu'

  def __init__(self, number: int, process: int):
    self.id, self.process_index = number, process


def test_a_process_has_devices_of_one_kind():
  devices = [_Device(i, i // 2) for i in range(6)]
  with pytest.raises(UserError, match='with all of its 2 devices; give a mult'):
    replicas.training_layout(dict(data=-1), 3, devices)


def test_weights_arrive_as_they_were():
  """Sharded otherwise, in another order of devices, and bit for bit."""
  layout = replicas.training_layout(dict(data=3, fsdp=2), 2)
  model, params = make(small_config(), layout)
  division = replicas.divide(layout, RolloutConfig())
  target = jax.sharding.NamedSharding(
    division.layout.mesh, jax.sharding.PartitionSpec()
  )
  params = params['dense_layers']  # Each shape is a program.
  sent = replicas.send(params, jax.tree.map(lambda _: target, params), division)
  assert jax.tree.structure(sent) == jax.tree.structure(params)
  for ours, theirs in zip(*map(jax.tree.leaves, (sent, params))):
    assert ours.sharding == target
    np.testing.assert_array_equal(ours, theirs)
  assert model.layout.is_local
