"""The copies of the policy that sample, and how weights come to them.

A replica is a mesh whose devices hold one copy of the weights and decode
together. There are three ways to divide the devices of a run:

  rollout.scope = 'global'     all devices train, and are one replica
  rollout.scope = 'host'       all devices train; each host, or each
                               rollout.replica_hosts of them, is a replica
  rollout.sampling_devices     the first devices train; the last so many only
                               sample, as one replica or as one for each host

Replicas share out the work, and decode without waiting for each other. Weights
come to all of them by one collective operation of all processes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np

from r1jax.config.schema.rollout import RolloutConfig
from r1jax.errors import UserError
from r1jax.sharding import MESH_AXES, Layout, make_mesh

_ROWS = 'replica'  # The mesh axis that runs over copies of the weights.


@dataclasses.dataclass(frozen=True)
class Replicas:
  """The replicas of a run, the same in all processes.

  Attributes:
    layouts: The decoding layout of each; all of them have the same sizes.
    members: The processes of each, in rising order.
    trained: The training layout.
    apart: Whether their devices do not train.
  """

  layouts: tuple[Layout, ...]
  members: tuple[tuple[int, ...], ...]
  trained: Layout
  apart: bool = False

  @property
  def own(self) -> int | None:
    """The replica that this process belongs to; None if it only trains."""
    here = jax.process_index()
    return next((i for i, m in enumerate(self.members) if here in m), None)

  @property
  def layout(self) -> Layout:
    """The layout of this process's replica; of the first one if it has none."""
    return self.layouts[self.own or 0]

  @property
  def in_lockstep(self) -> bool:
    """Whether all processes are one replica, and decode the same batch."""
    return (
      len(self.members) == 1 and len(self.members[0]) == jax.process_count()
    )

  @property
  def trainers(self) -> tuple[int, ...]:
    """The processes whose devices train; () if all processes do."""
    if not self.apart:
      return ()
    mesh: Any = self.trained.mesh
    found = {device.process_index for device in mesh.devices.flat}
    return tuple(sorted(found)) if len(found) < jax.process_count() else ()

  @property
  def leads(self) -> bool:
    """Whether this process is the first of its replica, which speaks for it."""
    return self.own is not None and self._rank == 0

  def is_mine(self, index: int) -> bool:
    """Whether this process grades the replica's sample group of this index.

    The processes of a replica hold the same samples, and take turns.
    """
    if self.own is None:
      return False
    return index % len(self.members[self.own]) == self._rank

  @property
  def _rank(self) -> int:
    return self.members[self.own or 0].index(jax.process_index())

  @property
  def are_copies(self) -> bool:
    """Whether weights are sent, as opposed to laid out anew on one mesh."""
    return self.apart or len(self.members) > 1 or not self._on_trained_mesh

  @property
  def _on_trained_mesh(self) -> bool:
    return self.layouts[0].mesh == self.trained.mesh


def training_layout(
  shape: Mapping[str, int],
  sampling_devices: int,
  devices: Sequence | None = None,
) -> Layout:
  """Returns the training layout of a run.

  Args:
    shape: Sizes by mesh axis, of the devices that train; see make_mesh.
    sampling_devices: The last so many devices only sample.
    devices: The devices of the run, by default all.

  Raises:
    UserError: no device is left to train, a process would have devices of both
      kinds, or the sizes do not multiply to the number of those that train.
  """
  devices = list(jax.devices() if devices is None else devices)
  if not sampling_devices:
    return Layout(make_mesh(shape, devices))
  devices.sort(key=_order)
  if sampling_devices >= len(devices):
    raise UserError(
      f'rollout.sampling_devices = {sampling_devices} leaves none of the '
      f'{len(devices)} devices to train; lower it'
    )
  trained, sampled = devices[:-sampling_devices], devices[-sampling_devices:]
  if trained[-1].process_index == sampled[0].process_index:
    own = sum(d.process_index == sampled[0].process_index for d in devices)
    if own != len(devices):
      raise UserError(
        f'rollout.sampling_devices = {sampling_devices}: a process trains or '
        f'samples with all of its {own} devices; give a multiple of them'
      )
  return Layout(make_mesh(shape, trained), sampling=tuple(sampled))


def _order(device: jax.Device) -> tuple[int, int]:
  return device.process_index, device.id


def divide(trained: Layout, c: RolloutConfig) -> Replicas:
  """Returns the replicas of a run.

  An abstract mesh has no hosts: its replica is the whole mesh.

  Args:
    trained: The training layout, which names devices that only sample.
    c: config.rollout, whose scope and replica_hosts count.

  Raises:
    UserError: the devices do not divide.
  """
  if isinstance(trained.mesh, AbstractMesh):
    return Replicas((trained.decoding(),), ((0,),), trained)
  apart = bool(trained.sampling)
  devices = list(trained.sampling or trained.mesh.devices.flat)
  processes = sorted({d.process_index for d in devices})
  if c.scope == 'global':
    layout = _decoding(trained, devices) if apart else trained.decoding()
    return _checked(Replicas((layout,), (tuple(processes),), trained, apart))
  if len(processes) % c.replica_hosts:
    raise UserError(
      f'rollout.replica_hosts = {c.replica_hosts} does not divide the '
      f'{len(processes)} processes that sample'
    )
  members = [
    tuple(processes[i : i + c.replica_hosts])
    for i in range(0, len(processes), c.replica_hosts)
  ]
  own = [[d for d in devices if d.process_index in each] for each in members]
  if len(set(map(len, own))) > 1:
    raise UserError(
      "rollout.scope = 'host' needs as many devices in every process"
    )
  layouts = tuple(_decoding(trained, each) for each in own)
  return _checked(Replicas(layouts, tuple(members), trained, apart))


def _decoding(trained: Layout, devices: Sequence[Any]) -> Layout:
  """Returns the decoding layout on some devices.

  Its axes `tensor` and `expert` are as long as in training, or as the devices
  allow; the rest is data parallel.
  """
  tensor = math.gcd(trained.mesh.shape['tensor'], len(devices))
  expert = math.gcd(trained.mesh.shape['expert'], len(devices) // tensor)
  mesh = make_mesh(dict(data=-1, tensor=tensor, expert=expert), devices)
  return dataclasses.replace(trained, mesh=mesh).decoding()


def _checked(replicas: Replicas) -> Replicas:
  """Refuses replicas that are no equal parts of the devices that train."""
  size = replicas.layouts[0].mesh.size
  if replicas.apart and replicas.trained.mesh.size % size:
    raise UserError(
      f'rollout.sampling_devices: a copy of the weights lies on {size} devices, '
      f'which do not divide the {replicas.trained.mesh.size} that train; '
      "change rollout.sampling_devices, or rollout.scope to 'host'"
    )
  return replicas


def send(params: Any, shardings: Any, replicas: Replicas) -> Any:
  """Returns a copy of the weights on the devices of this process's replica.

  A collective operation: all processes call it, and all replicas receive their
  copies at once.

  Args:
    params: Arrays on the training mesh; their shapes alone in a process that
      does not train.
    shardings: Their shardings on the mesh of this process's replica.
    replicas: The replicas.

  Returns:
    The copy; None in a process that does not sample.
  """
  if not replicas.apart:
    rows = _rows_mesh(replicas, False)
    target = lambda s: NamedSharding(rows, s.spec)
    spread = jax.device_put(params, jax.tree.map(target, shardings))
    return jax.tree.map(_own_part, spread, shardings)
  sent = jax.tree.map(
    functools.partial(_broadcast, replicas), params, shardings
  )
  return sent if replicas.own is not None else None


def _broadcast(replicas: Replicas, x: Any, sharding: NamedSharding) -> Any:
  """Sends one array from the devices that train to those that sample.

  It becomes one array of all devices with a row for each copy: the rows of the
  devices that train hold it, the others nothing yet. The first row is what all
  receive.
  """
  rows, spec = _rows_mesh(replicas, True), sharding.spec
  num_rows = rows.shape[_ROWS]
  stacked = NamedSharding(rows, PartitionSpec(_ROWS, *spec))
  source: dict[Any, jax.Array] = {}
  if isinstance(x, jax.Array):
    trained = Mesh(rows.devices[: _trained_rows(replicas)], rows.axis_names)
    spread = jax.device_put(x, NamedSharding(trained, spec))
    source = {shard.device: shard.data for shard in spread.addressable_shards}
  part = (1, *sharding.shard_shape(x.shape))
  local = [
    source[device].reshape(part)
    if device in source
    else jax.numpy.zeros(part, x.dtype, device=device)
    for device in rows.local_devices
  ]
  whole = jax.make_array_from_single_device_arrays(
    (num_rows, *x.shape), stacked, local
  )
  received = _first_row(NamedSharding(rows, spec))(whole)
  return None if replicas.own is None else _own_part(received, sharding)


@functools.cache
def _first_row(sharding: NamedSharding):
  """Returns the jitted function that gives all devices an array's first row."""
  return jax.jit(lambda rows: rows[0], out_shardings=sharding)


def _own_part(x: jax.Array, sharding: NamedSharding) -> jax.Array:
  """Returns the copy on one replica's mesh of an array that all of them hold."""
  parts = {shard.device: shard.data for shard in x.addressable_shards}
  mesh: Any = sharding.mesh
  return jax.make_array_from_single_device_arrays(
    x.shape, sharding, [parts[device] for device in mesh.local_devices]
  )


def _trained_rows(replicas: Replicas) -> int:
  return replicas.trained.mesh.size // replicas.layouts[0].mesh.size


@functools.cache  # It is the same in every step.
def _rows_mesh(replicas: Replicas, with_trained: bool) -> Mesh:
  """The meshes of all replicas side by side: an axis `replica`, and MESH_AXES.

  Args:
    replicas: The replicas.
    with_trained: Whether the devices that train come first, as meshes of the
      same sizes.
  """
  meshes: list[Any] = [layout.mesh for layout in replicas.layouts]
  rows = [mesh.devices for mesh in meshes]
  if with_trained:
    mesh: Any = replicas.trained.mesh
    devices = sorted(mesh.devices.flat, key=_order)
    trained = np.array(devices).reshape(_trained_rows(replicas), *rows[0].shape)
    rows = [*trained, *rows]
  return Mesh(np.stack(rows), (_ROWS, *MESH_AXES))
