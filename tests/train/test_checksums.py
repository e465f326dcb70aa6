"""Checksums of arrays: every bit counts, and no mesh matters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.train import checksums

_DTYPES = (
  'float32',
  'bfloat16',
  'float16',
  'float8_e4m3fn',
  'int32',
  'uint8',
  'bool',
)


def _checksum(x) -> str:
  return checksums.of_tree({'x': x})['x']['checksum']


def _numbers(shape=(8, 6), dtype='float32'):
  values = 3 * jax.random.normal(jax.random.key(0), shape)
  return (values > 0 if dtype == 'bool' else values).astype(dtype)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_any_bit_that_flips_changes_it(dtype):
  numbers = np.asarray(_numbers(dtype=dtype))
  before = _checksum(numbers)
  raw = numbers.tobytes()
  bits = (0,) if dtype == 'bool' else range(0, 8, 3)
  for byte in range(0, len(raw), 7):
    for bit in bits:
      flipped = bytearray(raw)
      flipped[byte] ^= 1 << bit
      other = np.frombuffer(flipped, numbers.dtype).reshape(numbers.shape)
      assert _checksum(other) != before, (byte, bit)


def test_elements_that_change_places_change_it():
  numbers = np.array(_numbers((5, 4, 3)))
  for axis in range(3):
    assert _checksum(np.roll(numbers, 1, axis)) != _checksum(numbers)
  assert _checksum(np.zeros(3)) != _checksum(np.zeros(4))


def test_the_sign_of_zero_and_not_a_number_count():
  nan, zero = np.full(3, np.nan, np.float32), np.zeros(3, np.float32)
  assert _checksum(-zero) != _checksum(zero)
  assert _checksum(nan) == _checksum(nan.copy())


def test_it_does_not_depend_on_the_mesh():
  numbers = _numbers((16, 8))
  found = {_checksum(numbers)}
  for shape, spec in (
    ((8,), ('a',)),
    ((2, 4), ('a', 'b')),
    ((4, 2), (None, 'b')),
  ):
    mesh = jax.make_mesh(shape, ('a', 'b')[: len(shape)])
    sharding = jax.NamedSharding(mesh, jax.P(*spec))
    found.add(_checksum(jax.device_put(numbers, sharding)))
  assert len(found) == 1


def test_shapes_dtypes_and_paths_are_told():
  tree = {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': [jnp.int32(3)]}
  found = checksums.of_tree(tree)
  assert list(found) == ['a', 'b/0']
  assert found['a']['shape'] == [2, 3] and found['a']['dtype'] == 'bfloat16'
  assert {len(leaf['checksum']) for leaf in found.values()} == {16}
  assert checksums.described(tree)['b/0'] == {'shape': [], 'dtype': 'int32'}


def test_the_sum_is_that_of_an_independent_count():
  """The same sum in NumPy, element by element."""
  numbers = np.asarray(_numbers((3, 2)))
  bits = numbers.view(np.uint32)
  wrapped = (1 << 32) - 1

  def mixed(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & wrapped
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & wrapped
    return x ^ (x >> 16)

  sums = []
  for seed in (0x2545F491, 0x9E6C63D1):
    terms = [
      mixed(
        (
          (
            int(bits[i, j])
            ^ mixed((seed + i * 0x9E3779B1 + j * 0x85EBCA77) & wrapped)
          )
          + seed
        )
        & wrapped
      )
      for i in range(3)
      for j in range(2)
    ]
    sums.append(sum(terms) & wrapped)
  assert _checksum(numbers) == f'{sums[0]:08x}{sums[1]:08x}'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_nothing_of_an_array_is_copied_or_gathered(dtype):
  """It needs no memory beside a state that fills the devices."""
  mesh = jax.make_mesh((8,), ('x',))
  sharding = jax.NamedSharding(mesh, jax.P('x'))
  array = jax.ShapeDtypeStruct((1024, 1024), dtype, sharding=sharding)
  program = checksums._sums.lower({'x': array}).compile()
  assert program.memory_analysis().temp_size_in_bytes < 10_000
  shapes = re.findall(r'= u32\[([\d,]*)\]\S* all-gather', program.as_text())
  assert set(shapes) <= {'8', '8,1'}  # The devices' sums.
