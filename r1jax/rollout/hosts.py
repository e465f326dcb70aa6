"""Rollouts by host: each process samples on the devices of its own host.

Processes need not decode in lockstep if a model fits the devices of one host. At the beginning of a step every host receives a whole copy of the
weights by one exchange. The groups are shared out by the lengths that are
expected of them, each process completes its own, and at the end all tell each
other what they have sampled. A sample is the same wherever it is drawn: it
depends on the weights, its prompt and its key alone.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
import numpy as np

from r1jax import processes
from r1jax.errors import UserError
from r1jax.sharding import MESH_AXES, Layout, make_mesh

_MAX_KNOWN = 65_536  # Prompts whose lengths are remembered.


def host_layout(layout: Layout) -> Layout:
  """Returns the decoding layout on the devices of this process alone.

  Its axes `tensor` and `expert` are as long as in training, or as the devices
  of a host allow; the rest is data parallel.

  Args:
    layout: The training layout, on the devices of all processes.

  Raises:
    UserError: processes have different numbers of devices.
  """
  mesh: Any = layout.mesh
  count = len(mesh.local_devices)
  if count * num_hosts(layout) != mesh.size:
    raise UserError(
      "rollout.scope = 'host' needs as many devices in every process"
    )
  tensor = math.gcd(mesh.shape['tensor'], count)
  expert = math.gcd(mesh.shape['expert'], count // tensor)
  own = make_mesh(
    dict(data=-1, tensor=tensor, expert=expert), _own_devices(mesh)
  )
  return dataclasses.replace(layout, mesh=own).decoding()


def num_hosts(layout: Layout) -> int:
  """Returns the number of processes that a mesh's devices belong to."""
  mesh: Any = layout.mesh
  return len({device.process_index for device in mesh.devices.flat})


def is_by_host(layout: Layout, scope: str) -> bool:
  """Returns whether sampling has a mesh of its own on each host.

  An abstract mesh has no hosts: what is counted on it is that of all devices.
  """
  return scope == 'host' and not isinstance(layout.mesh, AbstractMesh)


def _own_devices(mesh: Mesh) -> list:
  here = mesh.local_devices[0].process_index
  return [d for d in mesh.devices.flat if d.process_index == here]


def to_host(params: Any, shardings: Any, mesh: Any) -> Any:
  """Returns a copy of global arrays on the devices of this process.

  A collective operation: all processes receive their copies at once.

  Args:
    params: Arrays over the devices of all processes.
    shardings: Their shardings on this process's mesh, see host_layout.
    mesh: The mesh of all devices.
  """
  local: Mesh = jax.tree.leaves(shardings)[0].mesh
  if not processes.several():
    return jax.device_put(params, shardings)
  everywhere = _mesh_of_hosts(mesh, local)
  spread = jax.device_put(
    params, jax.tree.map(lambda s: NamedSharding(everywhere, s.spec), shardings)
  )

  def own(x, sharding):
    parts = {shard.device: shard.data for shard in x.addressable_shards}
    return jax.make_array_from_single_device_arrays(
      x.shape, sharding, [parts[device] for device in local.devices.flat]
    )

  return jax.tree.map(own, spread, shardings)


@functools.cache  # It is the same in every step.
def _mesh_of_hosts(mesh: Mesh, local: Mesh) -> Mesh:
  """The meshes of all hosts side by side: an axis `hosts`, and MESH_AXES.

  Each host's devices are in the order of its own mesh. Hosts of a pod have the
  same number of devices in the same places, so this order is that of all.
  """
  of_host: dict[int, list] = {}
  for device in mesh.devices.flat:
    of_host.setdefault(device.process_index, []).append(device)
  here = local.devices.flat[0].process_index
  own = of_host[here]
  order = [own.index(device) for device in local.devices.flat]
  orders = processes.exchange(order)
  devices = [
    [of_host[host][i] for i in orders[host]] for host in sorted(of_host)
  ]
  array = np.array(devices).reshape(len(devices), *local.devices.shape)
  return Mesh(array, ('hosts', *MESH_AXES))


def share_out(expected: Sequence[float], hosts: int) -> list[int]:
  """Returns the host of each group, so that all hosts end at the same time.

  The longest group goes first, each to the host that has least to do; hosts of
  equal load take the group whose turn it is, by their number.

  Args:
    expected: Tokens that are expected of each group.
    hosts: Number of hosts.
  """
  load, count = [0.0] * hosts, [0] * hosts
  host_of = [0] * len(expected)
  limit = -(-len(expected) // hosts)
  for i in sorted(range(len(expected)), key=lambda i: (-expected[i], i)):
    free = [host for host in range(hosts) if count[host] < limit]
    host_of[i] = host = min(free, key=lambda host: (load[host], host))
    load[host] += expected[i]
    count[host] += 1
  return host_of


def quotas(host_of: Sequence[int], hosts: int, wanted: int) -> list[int]:
  """Returns how many of its groups each host completes, `wanted` in all."""
  has = [sum(host == h for host in host_of) for h in range(hosts)]
  parts = [count * wanted // max(len(host_of), 1) for count in has]
  while sum(parts) < wanted:
    parts[max(range(hosts), key=lambda h: (has[h] - parts[h], -h))] += 1
  return parts


class LengthHistory:
  """Remembers how long the samples of each prompt were."""

  def __init__(self):
    self._mean_of: dict[str, float] = {}

  def expected(self, prompt_id: str) -> float:
    """Returns the mean tokens of a prompt's samples, or of all prompts."""
    if prompt_id in self._mean_of:
      return self._mean_of[prompt_id]
    known = self._mean_of.values()
    return sum(known) / len(known) if known else 1.0

  def see(self, prompt_id: str, mean_tokens: float):
    """Remembers the latest samples of a prompt."""
    self._mean_of.pop(prompt_id, None)
    self._mean_of[prompt_id] = mean_tokens
    if len(self._mean_of) > _MAX_KNOWN:
      del self._mean_of[next(iter(self._mean_of))]

  def get_state(self) -> list[tuple[str, float]]:
    """Returns what it remembers as JSON."""
    return list(self._mean_of.items())

  def set_state(self, state: Sequence[tuple[str, float]]):
    """Remembers what another one did."""
    self._mean_of = {key: mean for key, mean in state}


def tell_all(own: dict[int, Any]) -> dict[int, Any]:
  """Returns the values of all processes by number; each is JSON.

  Args:
    own: The values of this process, by numbers that no other process has.
  """
  message = json.dumps({str(key): value for key, value in own.items()})
  return {
    int(key): value
    for text in processes.all_gather(message.encode())
    for key, value in json.loads(text).items()
  }
