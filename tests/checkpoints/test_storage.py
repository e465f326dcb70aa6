"""Streamed files are read by the safetensors library."""

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


def _tensor(name: str, array: np.ndarray) -> storage.LazyTensor:
  """A LazyTensor of two pieces, of which the second is not contiguous."""
  if array.ndim < 2:
    return storage.LazyTensor(name, array.dtype, array.shape, (lambda: array,))
  rest = np.asfortranarray(array[1:])
  return storage.LazyTensor(
    name, array.dtype, array.shape, (lambda: array[:1], lambda: rest)
  )


def _write(folder, arrays, shard_bytes=1 << 30):
  storage.write(
    folder,
    [_tensor(*item) for item in arrays.items()],
    shard_bytes,
    storage.encode_metadata({}),
  )


@pytest.mark.parametrize('write_bytes', [1, 1 << 20])
def test_the_library_reads_a_streamed_file(tmp_path, monkeypatch, write_bytes):
  monkeypatch.setattr(storage, '_WRITE_BYTES', write_bytes)
  _write(tmp_path, _ARRAYS)
  assert [path.name for path in tmp_path.iterdir()] == [storage.SINGLE_FILE]
  got = load_file(tmp_path / storage.SINGLE_FILE)
  assert got.keys() == _ARRAYS.keys()
  for name, array in _ARRAYS.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    assert got[name].tobytes() == array.tobytes(), name
  with safe_open(tmp_path / storage.SINGLE_FILE, 'numpy') as file:
    assert file.metadata() == storage.encode_metadata({})


def test_tensors_are_aligned_to_their_item_size(tmp_path):
  """A bf16 tensor with an odd number of entries must not shift the others."""
  _write(tmp_path, _ARRAYS)
  data = (tmp_path / storage.SINGLE_FILE).read_bytes()
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + length])
  assert length % 8 == 0
  for name, array in _ARRAYS.items():
    assert header[name]['data_offsets'][0] % array.dtype.itemsize == 0


def test_shards_and_their_index(tmp_path):
  arrays = {f'x{i}': np.full(100, i, np.float32) for i in range(5)}
  _write(tmp_path, arrays, shard_bytes=900)
  index = json.loads((tmp_path / storage.INDEX_FILE).read_text())
  assert index['metadata']['total_size'] == 2000
  assert sorted(set(index['weight_map'].values())) == [
    f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)
  ]
  assert not list(tmp_path.glob('*.partial'))
  reader = storage.SafetensorsReader(tmp_path)
  for name, array in arrays.items():
    np.testing.assert_array_equal(reader.read(name), array)


def test_a_read_that_fails_leaves_no_checkpoint(tmp_path):
  def fails():
    raise RuntimeError('the source is gone')

  good = _tensor('wide', _ARRAYS['wide'])
  bad = storage.LazyTensor('x', np.dtype(np.float32), (3,), (fails,))
  with pytest.raises(RuntimeError):
    storage.write(tmp_path, [good, bad], 1 << 30, {})
  with pytest.raises(UserError, match='has neither'):
    storage.SafetensorsReader(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(UserError, match='cannot write to .*file'):
    _write(tmp_path / 'file', _ARRAYS)


@pytest.mark.parametrize(
  'index', ['{"weight_map": {"a": "gone.safetensors"}}', '{', '{}']
)
def test_a_single_file_counts_before_a_stale_index(tmp_path, index, caplog):
  """The same file is read as in transformers, and the other one is named."""
  _write(tmp_path, {'a': np.ones(2, np.float32)})
  (tmp_path / storage.INDEX_FILE).write_text(index)
  reader = storage.SafetensorsReader(tmp_path)
  assert reader.read('a').tolist() == [1, 1]
  assert storage.INDEX_FILE in caplog.text and 'is stale' in caplog.text
  (tmp_path / storage.SINGLE_FILE).unlink()
  with pytest.raises(UserError):
    storage.SafetensorsReader(tmp_path)
