"""Weights that do not fit the model are refused in one line that says why."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.checkpoints import weights
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
