"""Imported checkpoints give the logits of transformers, and export bit-equal."""

from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1jax.checkpoints import convert, hf_config, hf_export, weights
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.model.transformer import Transformer
from tests.conftest import continued, forward, from_dict, one_device

FAMILIES = (
  'deepseek_v3',
  'deepseek_v3_yarn',
  'deepseek_v3_noqlora',
  'qwen2',
  'qwen3',
  'llama3',
)
_TOLERANCE = 2e-4


@pytest.fixture(scope='module', params=FAMILIES)
def oracle(request, shared, tmp_path_factory):
  """The Hugging Face folder, the model, its parameters, reference arrays."""
  folder = shared / 'oracle' / request.param
  imported = tmp_path_factory.mktemp('imported')
  convert.import_hf(folder, imported)
  model = _model(folder)
  return (
    folder,
    model,
    weights.load(imported, model),
    np.load(folder / 'reference.npz'),
  )


def _model(folder: Path) -> Transformer:
  fields = hf_config.read_config(folder) | dict(dtype='float32', remat='none')
  return Transformer(from_dict(fields), one_device())


def _worst(got, want) -> float:
  assert (got.argmax(-1) == want.argmax(-1)).all()
  return np.abs(got - want).max()


def test_the_full_forward_gives_the_reference_logits(oracle):
  _, model, params, reference = oracle
  got = forward(model, params, reference['tokens_a'])
  assert _worst(got, reference['logits_a']) <= _TOLERANCE


def test_left_padded_rows_give_the_reference_logits(oracle):
  _, model, params, reference = oracle
  mask = reference['mask_b'].astype(bool)
  got = forward(
    model,
    params,
    reference['tokens_b'],
    reference['positions_b'].astype(np.int32),
    mask.astype(np.int32),
  )
  assert _worst(got[mask], reference['logits_b'][mask]) <= _TOLERANCE


def test_cached_decoding_gives_the_reference_logits_token_by_token(oracle):
  """Prompts of 2 to 32 tokens in pages, 16 tokens after them, one at a time."""
  _, model, params, reference = oracle
  tokens, mask = reference['tokens_b'], reference['mask_b'].astype(bool)
  cut = 32
  prompts = [row[:cut][live[:cut]] for row, live in zip(tokens, mask)]
  got = continued(model, params, prompts, tokens[:, cut:], block_size=8)
  assert _worst(got, reference['logits_b'][:, cut - 1 :]) <= _TOLERANCE


def test_loss_gradients_have_hf_gradient_norms(oracle):
  folder, model, params, reference = oracle
  tokens = jnp.asarray(reference['tokens_a'])

  def loss(params):
    B, T = tokens.shape
    position = jnp.broadcast_to(jnp.arange(T), (B, T))
    out = model.apply(
      {'params': params}, tokens, position, jnp.ones((B, T), jnp.int32)
    )
    logits = model.apply({'params': params}, out.hidden_BTD, method='logits')
    logp = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean()

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, reference['loss_a'], rtol=1e-5)
  got = _hf_gradient_norms(folder, model, grads)
  checked = 0
  for name, want in zip(reference['grad_names'], reference['grad_norms_a']):
    np.testing.assert_allclose(
      got[str(name)], want, rtol=2e-3, atol=1e-6, err_msg=str(name)
    )
    checked += 1
  assert checked == len(got)


def _hf_gradient_norms(folder, model, grads) -> dict[str, float]:
  """Norms of r1jax gradients under the (fused) names of transformers."""
  import tempfile

  with tempfile.TemporaryDirectory() as where:
    weights.save(Path(where) / 'model.safetensors', grads, 'float32', {})
    hf_export.write_tensors(
      Path(where) / 'hf',
      model.config,
      SafetensorsReader(Path(where)),
      np.float32,
      1 << 40,
    )
    flat = load_file(Path(where) / 'hf' / 'model.safetensors')
  squares: dict[str, float] = {}
  for name, value in flat.items():
    name = _fused(name)
    if name:
      squares[name] = squares.get(name, 0.0) + float(
        np.square(value, dtype=np.float64).sum()
      )
  return {name: square**0.5 for name, square in squares.items()}


def _fused(name: str) -> str | None:
  if name.endswith('e_score_correction_bias'):
    return None
  parts = name.split('.')
  if 'experts' in parts:
    kind = 'down_proj' if 'down_proj' in parts else 'gate_up_proj'
    return '.'.join(parts[: parts.index('experts') + 1] + [kind])
  return name


def test_a_round_trip_is_bit_equal(oracle, tmp_path):
  folder, _, _, _ = oracle
  convert.import_hf(folder, tmp_path / 'r1jax')
  convert.export_hf(tmp_path / 'r1jax', tmp_path / 'exported')
  before = load_file(folder / 'model.safetensors')
  after = load_file(tmp_path / 'exported' / 'model.safetensors')
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    assert tensor.dtype == after[name].dtype
    assert tensor.tobytes() == after[name].tobytes(), name
  again = hf_config.read_config(tmp_path / 'exported')
  assert again == hf_config.read_config(folder)


@pytest.mark.parametrize('name', FAMILIES)
def test_old_and_new_config_json_mean_the_same(shared, tmp_path, name):
  folder = shared / 'oracle' / name
  shutil.copy(folder / 'config_hub.json', tmp_path / 'config.json')
  hub, new = hf_config.read_config(tmp_path), hf_config.read_config(folder)
  for field in ('initializer_range', 'dtype'):
    hub.pop(field), new.pop(field)
  assert hub == new
