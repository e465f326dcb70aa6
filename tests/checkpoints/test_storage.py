"""What is streamed to the disk is read by the safetensors library."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from r1jax.checkpoints import storage
from r1jax.errors import UserError

_RNG = np.random.default_rng(0)
_ARRAYS = {
  'odd': _RNG.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
  'wide': _RNG.normal(size=(4, 7)).astype(np.float32),
  'scalar': np.float32(2.5).reshape(()),
  'empty': np.zeros((0, 3), np.float16),
  'whole': np.arange(7, dtype=np.int64),
}


def _tensor(name: str, array: np.ndarray) -> storage.Tensor:
  """In two pieces, the second of them not contiguous."""
  if array.ndim < 2:
    return storage.Tensor(name, array.dtype, array.shape, (lambda: array,))
  rest = np.asfortranarray(array[1:])
  return storage.Tensor(
    name, array.dtype, array.shape, (lambda: array[:1], lambda: rest)
  )


def _write(folder, arrays, shard_bytes=1 << 30):
  storage.write(
    folder,
    [_tensor(*item) for item in arrays.items()],
    shard_bytes,
    {'about': '{}'},
  )


@pytest.mark.parametrize('slab_bytes', [1, 1 << 20])
def test_the_library_reads_what_was_streamed(tmp_path, monkeypatch, slab_bytes):
  monkeypatch.setattr(storage, '_SLAB_BYTES', slab_bytes)
  _write(tmp_path, _ARRAYS)
  assert [path.name for path in tmp_path.iterdir()] == [storage.SINGLE]
  got = load_file(tmp_path / storage.SINGLE)
  assert got.keys() == _ARRAYS.keys()
  for name, array in _ARRAYS.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    assert got[name].tobytes() == array.tobytes(), name
  with safe_open(tmp_path / storage.SINGLE, 'numpy') as file:
    assert file.metadata() == {'about': '{}'}


def test_numbers_lie_at_multiples_of_their_width(tmp_path):
  """An odd count of bf16 comes first and may not shift the rest."""
  _write(tmp_path, _ARRAYS)
  data = (tmp_path / storage.SINGLE).read_bytes()
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + length])
  assert length % 8 == 0
  for name, array in _ARRAYS.items():
    assert header[name]['data_offsets'][0] % array.dtype.itemsize == 0


def test_shards_and_their_index(tmp_path):
  arrays = {f'x{i}': np.full(100, i, np.float32) for i in range(5)}
  _write(tmp_path, arrays, shard_bytes=900)
  said = json.loads((tmp_path / storage.INDEX).read_text())
  assert said['metadata']['total_size'] == 2000
  assert sorted(set(said['weight_map'].values())) == [
    f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)
  ]
  assert not list(tmp_path.glob('*.partial'))
  reader = storage.Reader(tmp_path)
  for name, array in arrays.items():
    np.testing.assert_array_equal(reader.read(name), array)


def test_a_read_that_fails_leaves_no_checkpoint(tmp_path):
  def fails():
    raise RuntimeError('the source is gone')

  good = _tensor('wide', _ARRAYS['wide'])
  bad = storage.Tensor('x', np.dtype(np.float32), (3,), (fails,))
  with pytest.raises(RuntimeError):
    storage.write(tmp_path, [good, bad], 1 << 30, {})
  with pytest.raises(UserError, match='has neither'):
    storage.Reader(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(UserError, match='cannot write to .*file'):
    _write(tmp_path / 'file', _ARRAYS)
