"""Checksums of arrays that are computed where the arrays lie, on the devices.

The checksum of an array is a sum over its elements of a hash of the element's
bits and its position, modulo 2³², twice with other constants. A sum does not
depend on the order of its terms, so the checksum does not depend on the mesh,
on the sharding or on the number of processes: one that was taken before a save
can be compared after a restore onto other devices. It covers all that lies
between: the copy to the host, the library that writes, the file, and the way
back. Nothing is gathered, and an array is read once.

The hash of an element is a bijection of its bits, so that one element that
changes, by one bit or more, always changes the sum. Several that change are
missed with a probability of 2⁻⁶⁴. This guards against accidents, not against
an adversary, for which no sum is fit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.records import Array

# Odd numbers, so that a multiplication by one loses nothing modulo 2³².
_AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D)
_SEEDS = (0x2545F491, 0x9E6C63D1)
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)  # MurmurHash3 ends with them.


def of_tree(tree: Any) -> dict[str, dict]:
  """Returns shape, dtype and checksum of each array, by its path, as JSON.

  Every process of a run calls it. It waits until the arrays are computed.

  Args:
    tree: Arrays, possibly sharded over the devices of several processes.

  Returns:
    For example {'params/embedding': {'shape': [32, 16], 'dtype': 'float32',
    'checksum': '0d1e…'}}, with 16 hexadecimal digits.
  """
  leaves = described(tree)
  groups: dict[frozenset, dict[str, Array]] = {}  # A program runs on one set.
  for name, array in zip(leaves, jax.tree.leaves(tree), strict=True):
    devices = array.sharding.device_set if isinstance(array, jax.Array) else ()
    groups.setdefault(frozenset(devices), {})[name] = array
  for sums in jax.device_get([_sums(group) for group in groups.values()]):
    for name, (first, second) in sums.items():
      leaves[name]['checksum'] = f'{int(first):08x}{int(second):08x}'
  return leaves


def described(tree: Any) -> dict[str, dict]:
  """Returns shape and dtype of each array or ShapeDtypeStruct, by its path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): {
      'shape': list(leaf.shape),
      'dtype': str(leaf.dtype),
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@jax.jit
def _sums(arrays: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
  return {name: _sum(x) for name, x in arrays.items()}


def _sum(x: Array) -> tuple[Array, Array]:
  """Returns the uint32 sums of the hashes of an array's elements.

  Both come from one reduction: compilers fuse what it reads into it, where two
  sums over the same bits would each write them to memory first.
  """
  bits, zero = _bits(x), jnp.uint32(0)
  hashes = tuple(_hash(bits, seed) for seed in _SEEDS)
  return jax.lax.reduce(
    hashes,
    (zero, zero),
    lambda one, other: (one[0] + other[0], one[1] + other[1]),
    tuple(range(bits.ndim)),
  )


def _hash(bits: Array, seed: int) -> Array:
  """Returns a hash of each element and its position, uint32."""
  position = jnp.full(bits.shape, seed, jnp.uint32)
  for axis in range(bits.ndim):
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position += index * jnp.uint32(_AXES[axis % len(_AXES)])
  return _mixed((bits ^ _mixed(position)) + jnp.uint32(seed))


def _mixed(x: Array) -> Array:
  """Spreads each bit of uint32 numbers over all of them, bijectively."""
  for shift, multiplier in zip((16, 13), _MULTIPLIERS):
    x = (x ^ (x >> shift)) * jnp.uint32(multiplier)
  return x ^ (x >> 16)


def _bits(x: Array) -> Array:
  """Returns the bits of an array as uint32; 64-bit numbers as two each."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  width = min(np.dtype(x.dtype).itemsize, 4)
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
