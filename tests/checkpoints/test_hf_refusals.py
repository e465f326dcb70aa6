"""Checkpoints that cannot be converted: one line that names what is wrong."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax.checkpoints import convert, hf_config, weights
from r1jax.checkpoints.storage import SafetensorsReader, encode_metadata
from r1jax.config import models
from r1jax.config.keys import flatten
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from tests.conftest import from_dict, one_device


def _broken(shared, tmp_path, change, config=None) -> str:
  """The error after `change(tensors)` and an update of config.json."""
  folder = tmp_path / 'hf'
  folder.mkdir()
  source = shared / 'oracle' / 'deepseek_v3'
  tensors = load_file(source / 'model.safetensors')
  change(tensors)
  save_file(tensors, folder / 'model.safetensors')
  fields_json = json.loads((source / 'config.json').read_text()) | (
    config or {}
  )
  (folder / 'config.json').write_text(json.dumps(fields_json))
  with pytest.raises(UserError) as caught:
    convert.import_hf(folder, tmp_path / 'r1jax')
  assert not (tmp_path / 'r1jax').exists()
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_every_wrong_tensor_is_listed_at_once(shared, tmp_path):
  def change(tensors):
    del tensors['model.norm.weight']
    tensors['model.layers.9.surplus'] = np.zeros(3, np.float32)
    router = 'model.layers.1.mlp.gate.weight'
    tensors[router] = tensors[router][:5]

  message = _broken(shared, tmp_path, change)
  assert 'model.norm.weight is missing' in message
  assert 'model.layers.9.surplus is unknown' in message
  assert (
    'model.layers.1.mlp.gate.weight has shape (5, 64), config.json says '
    '(16, 64)'
  ) in message


@pytest.mark.parametrize(
  'config,parts',
  [
    ({'model_type': 'mamba'}, ["'mamba'", 'deepseek_v3, llama, qwen2']),
    ({'hidden_act': 'gelu'}, ["hidden_act = 'gelu'", "'silu'"]),
    ({'vocab_size': 600}, ['lm_head.weight', '(512, 64)', '(600, 64)']),
    ({'n_group': 3}, ['n_group = 3', 'n_routed_experts = 16']),
    ({'num_experts_per_tok': 9}, ['num_experts_per_tok = 9', '8 experts']),
    (
      {'rope_parameters': {'rope_theta': 1e4, 'rope_type': 'longrope'}},
      ["'longrope'", 'yarn'],
    ),
    ({'rope_parameters': {}}, ['rope_theta', 'a number']),
    ({'model_type': ['llama']}, ['model_type', 'deepseek_v3, llama, qwen2']),
    ({'hidden_size': None}, ['hidden_size = null', 'a whole number']),
    ({'hidden_size': '64'}, ['hidden_size = "64"', 'a whole number']),
    ({'hidden_size': 64.0}, ['hidden_size = 64.0', 'a whole number']),
    ({'num_hidden_layers': True}, ['num_hidden_layers = true', 'a whole']),
    ({'num_attention_heads': 0}, ['num_attention_heads = 0', 'at least 1']),
    ({'n_group': 'four'}, ['n_group = "four"', 'a whole number']),
    ({'first_k_dense_replace': None}, ['first_k_dense_replace = null']),
    ({'first_k_dense_replace': -1}, ['first_k_dense_replace', 'at least 0']),
    ({'rms_norm_eps': 'small'}, ['rms_norm_eps = "small"', 'a number']),
    ({'norm_topk_prob': 'yes'}, ['norm_topk_prob', 'true or false']),
    ({'rope_parameters': 'yarn'}, ['rope_parameters = "yarn"', 'an object']),
    (
      {'rope_parameters': {'rope_theta': '1e4'}},
      ['rope_parameters has rope_theta = "1e4"', 'a number'],
    ),
    ({'dtype': 32}, ['dtype = 32', 'a string']),
  ],
  ids=lambda value: str(value)[:30],
)
def test_a_config_that_we_cannot_run_is_named(shared, tmp_path, config, parts):
  message = _broken(shared, tmp_path, lambda tensors: None, config)
  for part in parts:
    assert part in message


def test_a_broken_file_is_named(shared, tmp_path):
  folder = tmp_path / 'hf'
  shutil.copytree(shared / 'oracle' / 'qwen2', folder)
  file = folder / 'model.safetensors'
  file.chmod(0o644)
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(UserError, match='cannot read .*model.safetensors'):
    convert.import_hf(folder, tmp_path / 'r1jax')
  file.unlink()
  with pytest.raises(UserError, match='has neither model.safetensors nor'):
    convert.import_hf(folder, tmp_path / 'r1jax')


def test_a_scale_of_other_blocks_is_refused(shared, tmp_path):
  def change(tensors):
    tensors['model.layers.0.mlp.up_proj.weight_scale_inv'] = np.ones(
      (4, 3), np.float32
    )
    tensors['model.norm.weight_scale_inv'] = np.ones(1, np.float32)

  message = _broken(shared, tmp_path, change)
  assert 'mlp.up_proj.weight_scale_inv has shape (4, 3)' in message
  assert 'model.norm.weight_scale_inv' in message
  assert 'blocks of 128 × 128' in message


def test_a_checkpoint_of_another_architecture_is_refused(shared, tmp_path):
  """The same shapes, another rotation: no shape would have told."""
  convert.import_hf(shared / 'oracle' / 'qwen2', tmp_path / 'r1jax')
  fields = hf_config.read_config(shared / 'oracle' / 'qwen2')
  fields['rope']['rope_theta'] = 1e4
  model = Transformer(from_dict(fields), one_device())
  with pytest.raises(
    UserError, match='model.rope.rope_theta is 1000000.0 there'
  ):
    weights.load(tmp_path / 'r1jax', model)


def test_a_field_that_says_what_weights_mean_may_not_be_missing(tmp_path):
  file = tmp_path / 'model.safetensors'
  fields_json = flatten({'model': models.tiny()})
  for field in ('n_shared_experts', 'rope.rope_theta'):
    metadata = {
      'config': {
        key: value
        for key, value in fields_json.items()
        if key != f'model.{field}'
      }
    }
    save_file(
      {'nothing': np.zeros(1)}, file, metadata=encode_metadata(metadata)
    )
    with pytest.raises(UserError, match=f'{field} is missing'):
      convert.model_config_of(str(file))


def test_export_refuses_before_it_writes(tmp_path):
  """Another rotation, a head that they lack, a file that says nothing."""
  for changes, message in (
    ({'rope': models.rope(1e4, 'adjacent')}, 'rotates halves pairs'),
    ({'scalar_head': True}, 'scalar head'),
    ({}, 'lacks embedding'),
  ):
    metadata = {'config': flatten({'model': models.llama3_1_8b() | changes})}
    file = tmp_path / 'model.safetensors'
    save_file(
      {'nothing': np.zeros(1)}, file, metadata=encode_metadata(metadata)
    )
    with pytest.raises(UserError, match=message):
      convert.export_hf(file, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
  save_file({'nothing': np.zeros(1)}, file)
  with pytest.raises(UserError, match='does not say what model'):
    convert.export_hf(file, tmp_path / 'out')
  metadata['config'].pop('model.attention')
  save_file({'nothing': np.zeros(1)}, file, metadata=encode_metadata(metadata))
  with pytest.raises(UserError, match='attention is missing'):
    convert.export_hf(file, tmp_path / 'out')


def test_export_lists_every_tensor_that_does_not_fit(shared, tmp_path):
  convert.import_hf(shared / 'oracle' / 'qwen2', tmp_path / 'r1jax')
  file = tmp_path / 'r1jax' / 'model.safetensors'
  tensors = load_file(file)
  tensors['norm/scale'] = tensors['norm/scale'][:-1]
  del tensors['dense_layers/1/ffn/up']
  metadata = encode_metadata(SafetensorsReader(file).metadata)
  save_file(tensors, file, metadata=metadata)
  with pytest.raises(UserError, match='ffn/up; norm/scale of shape'):
    convert.export_hf(file, tmp_path / 'exported')
  assert not (tmp_path / 'exported').exists()
