"""Weights that do not fit the model are refused in one line that says why."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from r1jax.checkpoints import storage, tensor_digests, weights
from r1jax.config.keys import flatten
from r1jax.errors import UserError
from r1jax.model import parameters
from r1jax.model.transformer import Transformer
from tests.conftest import one_device, small_config


def _saved(path, with_metadata: bool):
  config = small_config()
  params = jax.tree.map(
    lambda box: np.zeros(box.value.shape, np.float32),
    parameters.parameter_shapes(Transformer(config, one_device())),
    is_leaf=lambda x: hasattr(x, 'names'),
  )
  metadata = {'config': flatten({'model': dataclasses.asdict(config)})}
  weights.save(path, params, 'float32', metadata if with_metadata else {})
  return path


def _refused(path, **changes) -> str:
  with pytest.raises(UserError) as caught:
    weights.load(path, Transformer(small_config(**changes), one_device()))
  message = str(caught.value)
  assert '\n' not in message and str(path) in message
  return message


def test_another_vocabulary_is_named_by_its_field(tmp_path):
  path = _saved(tmp_path / 'a.safetensors', with_metadata=True)
  assert 'model.vocab_size is 32 there and 40 here' in _refused(
    path, vocab_size=40
  )


def test_another_vocabulary_is_named_by_its_tensors(tmp_path):
  """For a file without metadata."""
  message = _refused(
    _saved(tmp_path / 'a.safetensors', with_metadata=False), vocab_size=40
  )
  assert 'embedding has shape (32, 16), the model (40, 16)' in message
  assert 'head has shape (16, 32), the model (16, 40)' in message
  assert 'norm' not in message


@pytest.mark.parametrize('lost_bytes', [1, 10_000])
def test_a_file_cut_off_inside_its_data_is_named(tmp_path, lost_bytes):
  """Its header is whole: every tensor's name and shape could be read."""
  path = _saved(tmp_path / 'a.safetensors', with_metadata=True)
  whole = path.read_bytes()
  header = 8 + int.from_bytes(whole[:8], 'little')
  assert len(whole) - lost_bytes > header
  path.write_bytes(whole[:-lost_bytes])
  assert 'broken' in _refused(path)


def _loads(path):
  return weights.load(path, Transformer(small_config(), one_device()))


def test_no_flipped_bit_is_loaded(tmp_path):
  """Wherever it is: in the header's length, in the header, in a tensor."""
  path = _saved(tmp_path / 'a.safetensors', with_metadata=True)
  _loads(path)  # It checks what is checked here.
  whole = path.read_bytes()
  header = 8 + int.from_bytes(whole[:8], 'little')
  places = [*range(0, header, 97), *range(header, len(whole), 2003)]
  places += range(whole.index(b'r1jax_sha256'), header, 61)
  for place in [*places, len(whole) - 1]:
    flipped = bytearray(whole)
    flipped[place] ^= 2
    path.write_bytes(flipped)
    with pytest.raises(UserError) as caught:
      tensor_digests.check(storage.SafetensorsReader(path).files)
    message = str(caught.value)
    assert '\n' not in message and str(path) in message
    if place >= header:
      assert 'has other bytes than were written' in message
  with pytest.raises(UserError, match='has other bytes than were written'):
    _loads(path)


def test_the_tensor_that_changed_is_named(tmp_path):
  path = _saved(tmp_path / 'a.safetensors', with_metadata=True)
  tensors = safetensors.numpy.load_file(path)
  whole = bytearray(path.read_bytes())
  length = int.from_bytes(whole[:8], 'little')
  header = json.loads(whole[8 : 8 + length])
  for name in ('embedding', 'moe_layers/0/ffn/gate'):
    assert name in tensors
    whole[8 + length + header[name]['data_offsets'][0] + 3] ^= 1
  path.write_bytes(whole)
  message = _refused(path)
  assert 'is broken: embedding, moe_layers/0/ffn/gate has' in message


def test_the_digests_are_those_of_the_tensors_bytes(tmp_path):
  path = _saved(tmp_path / 'a.safetensors', with_metadata=True)
  with safetensors.safe_open(path, 'numpy') as file:
    digests = json.loads(file.metadata()[tensor_digests.KEY])
  tensors = safetensors.numpy.load_file(path)
  assert digests.keys() == tensors.keys() | {''}
  for name, array in tensors.items():
    assert digests[name] == hashlib.sha256(array.tobytes()).hexdigest()


def test_processes_share_the_tensors_that_they_check(tmp_path):
  path = _saved(tmp_path / 'a.safetensors', with_metadata=True)
  whole = bytearray(path.read_bytes())
  whole[-1] ^= 1
  path.write_bytes(whole)
  refusals = []
  for share in range(3):
    try:
      tensor_digests.check([path], share, 3)
    except UserError as error:
      refusals.append(str(error))
  assert len(refusals) == 1


def test_weights_of_other_programs_pass_unchecked(tmp_path):
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file({'x': np.ones(3, np.float32)}, path)
  tensor_digests.check([path])
