"""Import and export keep bits and dtypes, and refuse copies that differ."""

import json
from pathlib import Path
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.flax import save_file as save_jax
from safetensors.numpy import load_file, save_file

from r1jax.checkpoints import convert, hf_config, hf_mapping, weights
from r1jax.checkpoints.storage import SafetensorsReader, encode_metadata
from r1jax.config import models
from r1jax.config.keys import flatten
from r1jax.config.schema.model import RUN_DEFAULTS
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.stages.initial import SHIPPED_BASE
from tests.conftest import from_dict, one_device


def _write(folder: Path, like: Path, changes: dict, tensors: dict):
  """Writes a Hugging Face checkpoint with a changed copy of a config.json."""
  folder.mkdir()
  config = json.loads((like / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps(config))
  save_jax(
    {name: jnp.asarray(x) for name, x in tensors.items()},
    folder / 'model.safetensors',
  )


def _same_files(one: Path, other: Path):
  """Asserts equal names, dtypes and bits."""
  before, after = SafetensorsReader(one), SafetensorsReader(other)
  assert before.shapes == after.shapes
  for name in before.shapes:
    assert before.dtype(name) == after.dtype(name), name
    assert before.read(name).tobytes() == after.read(name).tobytes(), name


def test_the_shipped_base_survives_a_round_trip(tmp_path):
  """Its metadata lacks newer fields, which do not change what weights mean."""
  convert.export_hf(SHIPPED_BASE, tmp_path / 'exported')
  convert.import_hf(tmp_path / 'exported', tmp_path / 'r1jax')
  fields = convert.model_config_of(str(tmp_path / 'r1jax'))
  fields_before = convert.model_config_of(str(SHIPPED_BASE))
  for field in fields.keys() - RUN_DEFAULTS.keys() - {'rope'}:
    assert fields[field] == fields_before[field], field
  before, after = (
    SafetensorsReader(SHIPPED_BASE),
    SafetensorsReader(tmp_path / 'r1jax'),
  )
  assert before.shapes == after.shapes
  for name in before.shapes:
    assert before.dtype(name) == after.dtype(name)
    assert before.read(name).tobytes() == after.read(name).tobytes(), name
  model = Transformer(from_dict(fields_before), one_device())
  weights.load(tmp_path / 'r1jax', model)


@pytest.mark.parametrize(
  'wide',
  [('norm.weight', 'mlp.gate.weight', 'e_score_correction_bias'), ()],
  ids=['float32 norms and router', 'bf16 alone'],
)
def test_every_tensor_keeps_its_dtype(shared, tmp_path, wide):
  folder = shared / 'oracle' / 'deepseek_v3'
  tensors = {
    name: x if wide and name.endswith(wide) else x.astype(ml_dtypes.bfloat16)
    for name, x in load_file(folder / 'model.safetensors').items()
  }
  _write(tmp_path / 'hf', folder, {'dtype': 'bfloat16'}, tensors)
  convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')
  convert.export_hf(tmp_path / 'r1jax', tmp_path / 'exported')
  _same_files(tmp_path / 'hf', tmp_path / 'exported')
  convert.export_hf(tmp_path / 'r1jax', tmp_path / 'cast', 'bfloat16')
  cast = SafetensorsReader(tmp_path / 'cast')
  for name in cast.shapes:  # The routing bias stays float32.
    assert (cast.dtype(name) == np.float32) == name.endswith('bias')


def _with_mtp_module(folder: Path) -> dict[str, np.ndarray]:
  """The oracle's tensors, and an MTP module after its three layers."""
  rng = np.random.default_rng(0)
  tensors = load_file(folder / 'model.safetensors')
  old, new = 'model.layers.2.', 'model.layers.3.'
  tensors |= {
    name.replace(old, new): rng.normal(size=x.shape).astype(x.dtype)
    for name, x in tensors.items()
    if name.startswith(old)
  }
  for name, shape in (
    ('eh_proj', (64, 128)),
    ('enorm', (64,)),
    ('hnorm', (64,)),
    ('shared_head.norm', (64,)),
  ):
    tensors[f'{new}{name}.weight'] = rng.normal(size=shape).astype(np.float32)
  tensors[f'{new}embed_tokens.weight'] = tensors['model.embed_tokens.weight']
  tensors[f'{new}shared_head.head.weight'] = tensors['lm_head.weight']
  return tensors


def test_mtp_modules_round_trip_bit_equal(shared, tmp_path):
  folder = shared / 'oracle' / 'deepseek_v3'
  tensors = _with_mtp_module(folder)
  _write(tmp_path / 'hf', folder, {'num_nextn_predict_layers': 1}, tensors)
  convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')
  fields = convert.model_config_of(str(tmp_path / 'r1jax'))
  model = Transformer(from_dict(fields), one_device())
  params = weights.load(tmp_path / 'r1jax', model)
  np.testing.assert_array_equal(
    params['mtp']['merge'][0], tensors['model.layers.3.eh_proj.weight'].T
  )
  np.testing.assert_array_equal(
    params['mtp']['block']['ffn']['gate'][0, 5],
    tensors['model.layers.3.mlp.experts.5.gate_proj.weight'].T,
  )
  convert.export_hf(tmp_path / 'r1jax', tmp_path / 'exported')
  _same_files(tmp_path / 'hf', tmp_path / 'exported')
  assert (
    hf_config.read_config(tmp_path / 'exported')['num_nextn_predict_layers']
    == 1
  )


@pytest.mark.parametrize(
  'name',
  [
    'model.layers.3.embed_tokens.weight',
    'model.layers.3.shared_head.head.weight',
  ],
)
def test_a_copy_that_differs_is_named(shared, tmp_path, name):
  """Its numbers would be lost: r1jax shares embedding and head."""
  folder = shared / 'oracle' / 'deepseek_v3'
  tensors = _with_mtp_module(folder)
  tensors[name] = tensors[name].copy()
  tensors[name][-1, -1] += 1
  _write(tmp_path / 'hf', folder, {'num_nextn_predict_layers': 1}, tensors)
  with pytest.raises(UserError, match=f'{name} of .* differs'):
    convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')
  assert not (tmp_path / 'r1jax').exists()


def test_a_tied_head_that_differs_is_named(shared, tmp_path):
  folder = shared / 'oracle' / 'llama3'
  tensors = load_file(folder / 'model.safetensors')
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'] + 1
  _write(tmp_path / 'hf', folder, {'tie_word_embeddings': True}, tensors)
  with pytest.raises(UserError, match='lm_head.weight of .* differs'):
    convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')


def _quantised(tensor: np.ndarray):
  """Returns FP8 numbers, scales of 128 × 128 blocks, and their product."""
  blocks = [-(-size // 128) for size in tensor.shape]
  scale = np.arange(1, np.prod(blocks) + 1, dtype=np.float32).reshape(
    blocks
  ) * np.float32(1.7)
  spread = np.kron(scale, np.ones((128, 128), np.float32))
  spread = spread[: tensor.shape[0], : tensor.shape[1]]
  numbers = (tensor / spread).astype(ml_dtypes.float8_e4m3fn)
  return numbers, scale, numbers.astype(np.float32) * spread


def test_fp8_weights_are_imported_as_the_numbers_they_stand_for(
  shared, tmp_path
):
  """FP8 projections and bf16 for the rest, as DeepSeek-V3; partial blocks."""
  folder = shared / 'oracle' / 'deepseek_v3'
  rng = np.random.default_rng(0)
  tensors = load_file(folder / 'model.safetensors')
  for name, shape in (
    ('gate', (300, 64)),
    ('up', (300, 64)),
    ('down', (64, 300)),
  ):
    tensors[f'model.layers.0.mlp.{name}_proj.weight'] = rng.normal(
      size=shape
    ).astype(np.float32)
  written, dequantized = {}, {}
  for name, tensor in tensors.items():
    if '_proj' in name:
      written[name], written[f'{name}_scale_inv'], dequantized[name] = (
        _quantised(tensor)
      )
    else:
      written[name] = dequantized[name] = tensor.astype(ml_dtypes.bfloat16)
  config_changes = {
    'intermediate_size': 300,
    'quantization_config': {'quant_method': 'fp8'},
  }
  for where, held in (('fp8', written), ('wide', dequantized)):
    _write(tmp_path / where, folder, config_changes, held)
    convert.import_hf(tmp_path / where, tmp_path / f'{where}_r1jax')
  got, want = (
    SafetensorsReader(tmp_path / f'{where}_r1jax') for where in ('fp8', 'wide')
  )
  assert got.shapes == want.shapes
  assert got.shapes['dense_layers/0/ffn/gate'] == (64, 300)
  for name in got.shapes:
    assert got.dtype(name) == want.dtype(name), name
    assert got.read(name).tobytes() == want.read(name).tobytes(), name

  q, scale = (
    written[f'model.layers.0.mlp.down_proj.weight{end}']
    for end in ('', '_scale_inv')
  )
  params = got.read('dense_layers/0/ffn/down')
  for row, column in ((0, 0), (63, 127), (5, 128), (9, 299)):
    assert (
      params[column, row]
      == np.float32(q[row, column]) * scale[0, column // 128]
    )


def test_shards_hold_what_one_file_holds(shared, tmp_path):
  source = shared / 'oracle' / 'qwen3'
  convert.import_hf(source, tmp_path / 'r1jax', shard_bytes=100_000)
  files = list((tmp_path / 'r1jax').glob('*.safetensors'))
  assert len(files) > 3
  assert max(file.stat().st_size for file in files) < 150_000
  convert.export_hf(
    tmp_path / 'r1jax', tmp_path / 'exported', shard_bytes=90_000
  )
  exported = SafetensorsReader(tmp_path / 'exported')
  before = load_file(source / 'model.safetensors')
  assert exported.shapes.keys() == before.keys()
  for name, tensor in before.items():
    assert exported.read(name).tobytes() == tensor.tobytes()


def test_a_conversion_holds_one_tensor_of_theirs(tmp_path):
  """64 experts: a layer's stack is 16 times the largest tensor."""
  fields = models.tiny() | dict(
    num_hidden_layers=1,
    first_k_dense_replace=0,
    hidden_size=256,
    moe_intermediate_size=256,
    n_routed_experts=64,
    n_group=4,
    topk_group=2,
    vocab_size=1024,
  )
  stack = 64 * 256 * 256 * 4
  largest = stack // 16
  rng = np.random.default_rng(0)
  config = from_dict(fields)
  sizes = hf_mapping.dimension_sizes(config)
  params = {
    parameter.name: rng.normal(size=parameter.mapping.shape(sizes)).astype(
      np.float32
    )
    for parameter in hf_mapping.mapped_parameters(config)
  }
  (tmp_path / 'r1jax').mkdir()
  save_file(
    params,
    tmp_path / 'r1jax' / 'model.safetensors',
    metadata=encode_metadata({'config': flatten({'model': fields})}),
  )
  assert max(x.nbytes for x in params.values()) == stack
  del params
  assert (
    _peak_bytes(convert.export_hf, tmp_path / 'r1jax', tmp_path / 'hf')
    < 2.5 * largest
  )
  assert (
    max(
      x.nbytes
      for x in load_file(tmp_path / 'hf' / 'model.safetensors').values()
    )
    == largest
  )
  assert (
    _peak_bytes(convert.import_hf, tmp_path / 'hf', tmp_path / 'again')
    < 2.5 * largest
  )
  _same_files(tmp_path / 'r1jax', tmp_path / 'again')


def _peak_bytes(convert_fn, source: Path, out: Path) -> int:
  tracemalloc.start()
  try:
    convert_fn(source, out)
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('modules', [1, 2])
def test_mtp_modules_that_transformers_left_out(
  shared, tmp_path, modules, caplog
):
  """Its config.json names them still; without their tensors there are none."""
  folder = shared / 'oracle' / 'deepseek_v3'
  tensors = load_file(folder / 'model.safetensors')
  _write(
    tmp_path / 'hf', folder, {'num_nextn_predict_layers': modules}, tensors
  )
  convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')
  assert 'has no tensors of the MTP modules' in caplog.text
  for source in ('hf', 'r1jax'):
    fields = convert.model_config_of(tmp_path / source)
    assert fields['num_nextn_predict_layers'] == 0
  model = Transformer(from_dict(fields), one_device())
  weights.load(tmp_path / 'hf', model)
  weights.load(tmp_path / 'r1jax', model)


def test_a_part_of_an_mtp_module_is_not_left_out(shared, tmp_path):
  folder = shared / 'oracle' / 'deepseek_v3'
  tensors = _with_mtp_module(folder)
  del tensors['model.layers.3.eh_proj.weight']
  _write(tmp_path / 'hf', folder, {'num_nextn_predict_layers': 1}, tensors)
  with pytest.raises(UserError, match='eh_proj.weight is missing'):
    convert.import_hf(tmp_path / 'hf', tmp_path / 'r1jax')
