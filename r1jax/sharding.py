"""The device mesh, and the mesh axes that each dimension is sharded over.

A `Layout` is a mesh with two tables from dimension letters (r1jax/records.py)
to mesh axes, one for weights and one for activations. They differ because one
letter has two roles: the D of a weight is sharded over `fsdp` to save memory,
the D of an activation is not sharded. Only this module names mesh axes.
"""

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from r1jax.errors import UserError

MESH_AXES = ('data', 'fsdp', 'sequence', 'tensor', 'expert')

_Axes = tuple[tuple[str, tuple[str, ...]], ...]

# A lower-case letter stands for the same dimension as its capital where that is
# not sharded. The exceptions are three letters of activations: 't', the tokens
# between layers; 'n', the heads in the attention core; and 'k', the shards of
# all tokens in algos/token_chunks.py.
#
# Training: the rows of a batch are sharded over data, fsdp and expert, and the
# tokens of each row over sequence, so weights are gathered over the last three
# when they are used. Routed experts are not gathered: E is sharded over
# expert × tensor, and tokens are sent to them. Within a layer heads and FFN
# width are sharded over tensor; between layers the tokens are ('t', Megatron's
# sequence parallelism). The attention core sees whole rows, so there the heads
# are sharded over sequence too ('n'); see model/kernels.py.
TRAIN_WEIGHTS: _Axes = (
  ('V', ('tensor',)),
  ('D', ('fsdp', 'sequence', 'expert')),
  ('Q', ('fsdp', 'sequence', 'expert')),
  ('C', ('fsdp', 'sequence', 'expert')),
  ('N', ('tensor',)),
  ('K', ('tensor',)),
  ('F', ('tensor',)),
  ('E', ('expert', 'tensor')),
  ('I', ('fsdp', 'sequence')),
)
# Decoding: weights are not sharded over fsdp, so that a step gathers none. It
# computes one token of a sequence at a time: the devices of the axis sequence
# hold other sequences, as those of data do.
DECODE_WEIGHTS: _Axes = tuple(
  (letter, axes) for letter, axes in TRAIN_WEIGHTS if letter not in 'DQCI'
)
TRAIN_ACTIVATIONS: _Axes = (
  ('B', ('data', 'fsdp', 'expert')),
  ('T', ('sequence',)),
  ('t', ('sequence', 'tensor')),
  ('k', ('data', 'fsdp', 'expert', 'sequence')),
  ('N', ('tensor',)),
  ('n', ('tensor', 'sequence')),
  ('K', ('tensor',)),
  ('F', ('tensor',)),
  ('V', ('tensor',)),
)
DECODE_ACTIVATIONS: _Axes = (
  ('B', ('data', 'fsdp', 'sequence', 'expert')),
  ('Y', ('data', 'fsdp', 'sequence', 'expert')),
  ('t', ('tensor',)),
  ('N', ('tensor',)),
  ('K', ('tensor',)),
  ('F', ('tensor',)),
  ('V', ('tensor',)),
)


def mesh_sizes(shape: Mapping[str, int], devices: int) -> dict[str, int]:
  """Returns the sizes of all MESH_AXES.

  Args:
    shape: Sizes by axis, 1 by default; one of them may be -1, which uses all
      remaining devices.
    devices: Number of devices.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  unknown = set(shape) - set(MESH_AXES)
  if unknown:
    raise UserError(
      f'mesh: unknown axis {sorted(unknown)[0]!r}; use {MESH_AXES}'
    )
  sizes = {axis: int(shape.get(axis, 1)) for axis in MESH_AXES}
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
    raise UserError(
      f'mesh: sizes are at least 1, and at most one is -1; got {sizes}'
    )
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and devices % fixed == 0:
    sizes[free[0]] = devices // fixed
  if math.prod(sizes.values()) != devices:
    wanted = ' × '.join(f'{axis}={size}' for axis, size in sizes.items())
    raise UserError(
      f'mesh: {wanted} does not make the {devices} devices that there are; '
      'change mesh in the config'
    )
  return sizes


def make_mesh(shape: Mapping[str, int], devices=None) -> Mesh:
  """Creates a mesh of the given devices, or of all; see mesh_sizes.

  On several TPU slices the axis `data` runs over them: the network between
  slices is slow, and data parallelism asks least of it.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or `data` is
      not a multiple of the number of slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(shape, len(devices))
  slices = num_slices(devices)
  if sizes['data'] % slices:
    raise UserError(
      f'mesh: data = {sizes["data"]} does not divide over the {slices} slices; '
      'make it a multiple of them'
    )
  # Splitting torus axes allows tensor = 2, less than any axis of a pod.
  if slices > 1:
    within = sizes | {'data': sizes['data'] // slices}
    across = dict.fromkeys(MESH_AXES, 1) | {'data': slices}
    array = mesh_utils.create_hybrid_device_mesh(
      tuple(within.values()),
      tuple(across.values()),
      devices,
      allow_split_physical_axes=True,
    )
  else:
    array = mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
  return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def num_slices(devices) -> int:
  """Returns the number of TPU slices that devices belong to; 1 for others."""
  return len(
    {
      getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0
      for device in devices
    }
  )


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh with its tables from letters to mesh axes.

  It is hashable, so it can be a static argument of jit.

  Attributes:
    mesh: The mesh, with the axes MESH_AXES.
    weights: Mesh axes of the letters of weights.
    activations: Mesh axes of the letters of activations.
    sampling: Devices of the run that are not in the mesh, and only sample.
  """

  mesh: Mesh | AbstractMesh
  weights: _Axes = TRAIN_WEIGHTS
  activations: _Axes = TRAIN_ACTIVATIONS
  sampling: tuple[jax.Device, ...] = ()

  def weight_spec(self, letters: str | tuple) -> PartitionSpec:
    """Returns the PartitionSpec of a weight with these dimensions."""
    return _spec(letters, self.weights)

  def activation_spec(self, letters: str) -> PartitionSpec:
    """Returns the PartitionSpec of an activation with these dimensions."""
    return _spec(letters, self.activations)

  def fitting_spec(self, shape: tuple[int, ...], letters: str) -> PartitionSpec:
    """Like activation_spec, but a dimension that its mesh axes do not divide is
    not sharded.
    """
    fits = ''.join(
      letter if size % self.size(letter) == 0 else '_'
      for size, letter in zip(shape, letters, strict=True)
    )
    return self.activation_spec(fits)

  def constrain(self, x: jax.Array, letters: str) -> jax.Array:
    """Constrains an activation's sharding by the letters of its shape."""
    sharding = NamedSharding(self.mesh, self.fitting_spec(x.shape, letters))
    return jax.lax.with_sharding_constraint(x, sharding)

  def sharding(self, letters: str) -> NamedSharding:
    """Returns the NamedSharding of an activation with these dimensions."""
    return NamedSharding(self.mesh, self.activation_spec(letters))

  def replicated(self) -> NamedSharding:
    """Returns the sharding that copies an array to every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  def alone(self) -> 'Layout':
    """Returns the same tables on the first device alone."""
    return dataclasses.replace(self, mesh=make_mesh({}, [self.device]))

  def decoding(self) -> 'Layout':
    """Returns the layout for decoding, on the same mesh."""
    return dataclasses.replace(
      self, weights=DECODE_WEIGHTS, activations=DECODE_ACTIVATIONS
    )

  def size(self, letter: str) -> int:
    """Returns the number of shards of an activation's dimension."""
    axes = dict(self.activations).get(letter, ())
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def activation_axes(self, letter: str) -> tuple[str, ...]:
    """Returns the mesh axes that an activation's dimension is sharded over."""
    return dict(self.activations).get(letter, ())

  def weight_axes(self, letter: str) -> tuple[str, ...]:
    """Returns the mesh axes that a weight's dimension is sharded over."""
    return dict(self.weights).get(letter, ())

  def parts(self, spec: PartitionSpec) -> int:
    """Returns the number of shards of an array with this PartitionSpec."""
    return math.prod(
      self.mesh.shape[axis]
      for entry in spec
      if entry is not None
      for axis in ((entry,) if isinstance(entry, str) else entry)
    )

  @property
  def device(self) -> jax.Device:
    """The mesh's first device of this process, which represents all of them.

    The first one of this machine stands for those of an abstract mesh, and of
    one on other hosts alone.
    """
    if isinstance(self.mesh, AbstractMesh) or not self.is_local:
      return jax.local_devices()[0]
    return self.mesh.local_devices[0]

  @property
  def is_local(self) -> bool:
    """Whether the mesh has devices of this process."""
    return isinstance(self.mesh, AbstractMesh) or bool(self.mesh.local_devices)

  @property
  def platform(self) -> str:
    """The devices' platform: 'cpu', 'gpu' or 'tpu'."""
    return self.device.platform

  def weight_parts(self, letters: str | tuple) -> int:
    """Returns the number of shards of a weight with these dimensions."""
    return math.prod(
      self.mesh.shape[axis]
      for letter in letters
      for axis in self.weight_axes(letter)
    )

  def check(self, name: str, shape: tuple[int, ...], letters: str | tuple):
    """Checks that the mesh divides a weight.

    Args:
      name: The weight's path, for the error message.
      shape: Its shape.
      letters: The letters of its dimensions.

    Raises:
      UserError: it does not.
    """
    for size, letter in zip(shape, letters):
      axes, parts = self.weight_axes(letter), self.weight_parts(letter)
      if size % parts:
        raise UserError(
          f'mesh: {name} has {letter} = {size}, which does not divide over '
          f'{" × ".join(axes)} = {parts}; change mesh in the config'
        )

  def check_row(self, key: str, tokens: int):
    """Checks that the mesh divides the tokens of a row.

    Args:
      key: The key of the length, for the error message.
      tokens: Tokens of a row.

    Raises:
      UserError: rows are sharded over the axis sequence, and this one cannot
        be.
    """
    if tokens % self.row_multiple:
      raise UserError(
        f"{key} = {tokens} tokens do not divide over the mesh's "
        f'{" × ".join(self.activation_axes("t"))} = {self.row_multiple}; '
        f'make it {-(-tokens // self.row_multiple) * self.row_multiple}, or '
        'change mesh'
      )

  @property
  def row_multiple(self) -> int:
    """The number that divides the tokens of every row; 1 if rows are whole."""
    return self.size('t') if self.size('T') > 1 else 1


def _spec(letters: str | tuple, table: _Axes) -> PartitionSpec:
  axes = [dict(table).get(letter) for letter in letters]
  used = [axis for group in axes for axis in group or ()]
  twice = {axis for axis in used if used.count(axis) > 1}
  if twice:
    raise ValueError(
      f'two of the letters {"".join(letters)!r} are split over the mesh axis '
      f'{twice.pop()!r}; give one of them another axis in sharding.py'
    )
  return PartitionSpec(*axes)
