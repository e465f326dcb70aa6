"""Real checkpoints' form: transformers' logits, and back bit for bit."""

import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import models
from r1jax import hf, hf_config
from r1jax.errors import UserError
from r1jax.model.config import RUN_DEFAULTS
from r1jax.model.transformer import Transformer
from r1jax.settings import flatten
from r1jax.stages import convert
from r1jax.stages.build import SHIPPED_BASE
from r1jax.train import weights
from tests.conftest import continued, forward, from_dict, one_device

FAMILIES = ('deepseek_v3', 'deepseek_v3_yarn', 'deepseek_v3_noqlora',
            'qwen2', 'qwen3', 'llama3')
_TOLERANCE = 2e-4


@pytest.fixture(scope='module', params=FAMILIES)
def oracle(request, shared, tmp_path_factory):
  """(folder of theirs, our model, its parameters, reference arrays)."""
  folder = shared / 'oracle' / request.param
  made = tmp_path_factory.mktemp('imported')
  convert.import_hf(folder, made)
  model = _model(folder)
  return folder, model, weights.load(made, model), np.load(
      folder / 'reference.npz')


def _model(folder: Path) -> Transformer:
  fields = hf_config.read_config(folder) | dict(dtype='float32', remat=False)
  return Transformer(from_dict(fields), one_device())


def _worst(got, want) -> float:
  assert (got.argmax(-1) == want.argmax(-1)).all()
  return np.abs(got - want).max()


def test_the_full_forward_gives_their_logits(oracle):
  _, model, params, reference = oracle
  got = forward(model, params, reference['tokens_a'])
  assert _worst(got, reference['logits_a']) <= _TOLERANCE


def test_left_padded_rows_give_their_logits(oracle):
  _, model, params, reference = oracle
  mask = reference['mask_b'].astype(bool)
  got = forward(model, params, reference['tokens_b'],
                reference['positions_b'].astype(np.int32),
                mask.astype(np.int32))
  assert _worst(got[mask], reference['logits_b'][mask]) <= _TOLERANCE


def test_cached_decoding_gives_their_logits_token_by_token(oracle):
  """Prompts of 2 to 32 tokens in pages, 16 tokens after them, one at a time."""
  _, model, params, reference = oracle
  tokens, mask = reference['tokens_b'], reference['mask_b'].astype(bool)
  cut = 32
  prompts = [row[:cut][live[:cut]] for row, live in zip(tokens, mask)]
  got = continued(model, params, prompts, tokens[:, cut:], page_tokens=8)
  assert _worst(got, reference['logits_b'][:, cut - 1:]) <= _TOLERANCE


def test_loss_gradients_have_their_norms(oracle):
  folder, model, params, reference = oracle
  tokens = jnp.asarray(reference['tokens_a'])

  def loss(params):
    B, T = tokens.shape
    position = jnp.broadcast_to(jnp.arange(T), (B, T))
    out = model.apply({'params': params}, tokens, position,
                      jnp.ones((B, T), jnp.int32))
    logits = model.apply({'params': params}, out.hidden_BTD, method='logits')
    logp = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean()

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, reference['loss_a'], rtol=1e-5)
  got = _their_norms(folder, model, grads)
  checked = 0
  for name, want in zip(reference['grad_names'], reference['grad_norms_a']):
    np.testing.assert_allclose(
        got[str(name)], want, rtol=2e-3, atol=1e-6, err_msg=str(name))
    checked += 1
  assert checked == len(got)


def _their_norms(folder, model, grads) -> dict[str, float]:
  """Our gradients under their (fused) names."""
  import tempfile
  with tempfile.TemporaryDirectory() as where:
    weights.save(Path(where) / 'model.safetensors', grads, 'float32', {})
    hf.write_tensors(Path(where) / 'hf', model.config,
                     hf.Reader(Path(where)), np.float32, 1 << 40)
    flat = load_file(Path(where) / 'hf' / 'model.safetensors')
  squares: dict[str, float] = {}
  for name, value in flat.items():
    name = _fused(name)
    if name:
      squares[name] = squares.get(name, 0.0) + float(
          np.square(value, dtype=np.float64).sum())
  return {name: square ** 0.5 for name, square in squares.items()}


def _fused(name: str) -> str | None:
  if name.endswith('e_score_correction_bias'):
    return None
  parts = name.split('.')
  if 'experts' in parts:
    kind = 'down_proj' if 'down_proj' in parts else 'gate_up_proj'
    return '.'.join(parts[:parts.index('experts') + 1] + [kind])
  return name


def test_a_round_trip_is_bit_equal(oracle, tmp_path):
  folder, _, _, _ = oracle
  convert.import_hf(folder, tmp_path / 'ours')
  convert.export_hf(tmp_path / 'ours', tmp_path / 'theirs')
  before = load_file(folder / 'model.safetensors')
  after = load_file(tmp_path / 'theirs' / 'model.safetensors')
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    assert tensor.dtype == after[name].dtype
    assert tensor.tobytes() == after[name].tobytes(), name
  again = hf_config.read_config(tmp_path / 'theirs')
  assert again == hf_config.read_config(folder)


@pytest.mark.parametrize('name', FAMILIES)
def test_both_forms_of_config_say_the_same(shared, tmp_path, name):
  folder = shared / 'oracle' / name
  shutil.copy(folder / 'config_hub.json', tmp_path / 'config.json')
  hub, new = hf_config.read_config(tmp_path), hf_config.read_config(folder)
  for field in ('init_std', 'dtype'):
    hub.pop(field), new.pop(field)
  assert hub == new


def test_the_shipped_base_goes_out_and_comes_back(tmp_path):
  """It is older than some fields: those do not change what weights mean."""
  convert.export_hf(SHIPPED_BASE, tmp_path / 'theirs')
  convert.import_hf(tmp_path / 'theirs', tmp_path / 'ours')
  fields = models.imported(str(tmp_path / 'ours'))
  told = models.imported(str(SHIPPED_BASE))
  for field in fields.keys() - RUN_DEFAULTS.keys() - {'rope'}:
    assert fields[field] == told[field], field
  before, after = hf.Reader(SHIPPED_BASE), hf.Reader(tmp_path / 'ours')
  assert before.shapes == after.shapes
  for name in before.shapes:
    np.testing.assert_array_equal(
        before.read(name).astype(np.float32),
        after.read(name).astype(np.float32), name)
  model = Transformer(from_dict(told), one_device())
  weights.load(tmp_path / 'ours', model)


def test_a_field_that_says_what_weights_mean_may_not_be_missing(tmp_path):
  file = tmp_path / 'model.safetensors'
  said = flatten({'model': models.tiny()})
  for field in ('num_shared_experts', 'rope.theta'):
    about = {'config': {
        key: value for key, value in said.items() if key != f'model.{field}'}}
    save_file({'nothing': np.zeros(1)}, file,
              metadata={'about': json.dumps(about)})
    with pytest.raises(UserError, match=f'{field} is missing'):
      models.imported(str(file))


def _broken(shared, tmp_path, change, config=None) -> str:
  """The error after `change(tensors)` and an update of config.json."""
  folder = tmp_path / 'hf'
  folder.mkdir()
  source = shared / 'oracle' / 'deepseek_v3'
  tensors = load_file(source / 'model.safetensors')
  change(tensors)
  save_file(tensors, folder / 'model.safetensors')
  said = json.loads((source / 'config.json').read_text()) | (config or {})
  (folder / 'config.json').write_text(json.dumps(said))
  with pytest.raises(UserError) as caught:
    convert.import_hf(folder, tmp_path / 'ours')
  assert not (tmp_path / 'ours').exists()
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
  assert ('model.layers.1.mlp.gate.weight has shape (5, 64), config.json says '
          '(16, 64)') in message


@pytest.mark.parametrize('config,parts', [
    ({'model_type': 'mamba'}, ["'mamba'", 'deepseek_v3, llama, qwen2']),
    ({'hidden_act': 'gelu'}, ["hidden_act = 'gelu'", "'silu'"]),
    ({'vocab_size': 600}, ['lm_head.weight', '(512, 64)', '(600, 64)']),
    ({'n_group': 3}, ['num_expert_groups = 3', 'num_experts = 16']),
    ({'num_experts_per_tok': 9}, ['experts_per_token = 9', '8 experts']),
    ({'rope_parameters': {'rope_theta': 1e4, 'rope_type': 'longrope'}},
     ["'longrope'", 'yarn']),
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
    ({'rope_parameters': {'rope_theta': '1e4'}},
     ['rope_parameters has rope_theta = "1e4"', 'a number']),
    ({'dtype': 32}, ['dtype = 32', 'a string']),
], ids=lambda value: str(value)[:30])
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
    convert.import_hf(folder, tmp_path / 'ours')
  file.unlink()
  with pytest.raises(UserError, match='has neither model.safetensors nor'):
    convert.import_hf(folder, tmp_path / 'ours')


def test_fp8_blocks_are_dequantised(tmp_path):
  """Two blocks a side, the last of them ragged, each with its own scale."""
  import ml_dtypes
  rng = np.random.default_rng(0)
  quantised = rng.normal(size=(200, 130)).astype(ml_dtypes.float8_e4m3fn)
  scale = np.array([[0.5, 2.0], [3.0, 0.25]], np.float32)
  from safetensors.flax import save_file as save_jax
  save_jax({'w': jnp.asarray(quantised), 'w_scale_inv': jnp.asarray(scale)},
           tmp_path / 'model.safetensors')
  got = hf._read(hf.Reader(tmp_path), 'w')
  for row, column in ((0, 0), (127, 127), (128, 0), (0, 128), (199, 129)):
    want = np.float32(quantised[row, column]) * scale[row // 128, column // 128]
    assert got[row, column] == want


def test_shards_hold_what_one_file_holds(shared, tmp_path):
  source = shared / 'oracle' / 'qwen3'
  convert.import_hf(source, tmp_path / 'ours', shard_bytes=100_000)
  files = list((tmp_path / 'ours').glob('*.safetensors'))
  assert len(files) > 3
  assert max(file.stat().st_size for file in files) < 150_000
  convert.export_hf(tmp_path / 'ours', tmp_path / 'theirs', shard_bytes=90_000)
  theirs = hf.Reader(tmp_path / 'theirs')
  before = load_file(source / 'model.safetensors')
  assert theirs.shapes.keys() == before.keys()
  for name, tensor in before.items():
    assert theirs.read(name).tobytes() == tensor.tobytes()


def test_a_checkpoint_of_another_architecture_is_refused(shared, tmp_path):
  """The same shapes, another rotation: no shape would have told."""
  convert.import_hf(shared / 'oracle' / 'qwen2', tmp_path / 'ours')
  fields = hf_config.read_config(shared / 'oracle' / 'qwen2')
  fields['rope']['theta'] = 1e4
  model = Transformer(from_dict(fields), one_device())
  with pytest.raises(UserError, match='model.rope.theta is 1000000.0 there'):
    weights.load(tmp_path / 'ours', model)


def test_export_refuses_before_it_writes(tmp_path):
  """Another rotation, a head that they lack, a file that says nothing."""
  for changes, message in (
      ({'rope': models.rope(1e4, 'adjacent')}, "rotates halves pairs"),
      ({'scalar_head': True}, 'scalar head'),
      ({}, 'lacks embedding')):
    about = {'config': flatten({'model': models.llama3_1_8b() | changes})}
    file = tmp_path / 'model.safetensors'
    save_file({'nothing': np.zeros(1)}, file,
              metadata={'about': json.dumps(about)})
    with pytest.raises(UserError, match=message):
      convert.export_hf(file, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
  save_file({'nothing': np.zeros(1)}, file)
  with pytest.raises(UserError, match='does not say what model'):
    convert.export_hf(file, tmp_path / 'out')
  about['config'].pop('model.attention')
  save_file({'nothing': np.zeros(1)}, file,
            metadata={'about': json.dumps(about)})
  with pytest.raises(UserError, match='attention is missing'):
    convert.export_hf(file, tmp_path / 'out')


def test_a_scale_of_other_blocks_is_refused(tmp_path):
  save_file({'w': np.zeros((200, 130), np.float32),
             'w_scale_inv': np.ones((4, 3), np.float32)},
            tmp_path / 'model.safetensors')
  with pytest.raises(UserError, match='blocks of 128 × 128'):
    hf._read(hf.Reader(tmp_path), 'w')
