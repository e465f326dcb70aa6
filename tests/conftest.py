"""Shared by the tests: virtual devices, a compilation cache, the real data."""

import os
from pathlib import Path
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight virtual devices, before JAX starts; tests that need one use one. The
# compiler's lighter passes: tests compile much and run little.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
    + ' --xla_backend_optimization_level=1')

import jax  # noqa: E402: after the environment is set.
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from configs import models  # noqa: E402
from r1jax.model.config import ModelConfig  # noqa: E402
from r1jax.model.transformer import Transformer, init_params  # noqa: E402
from r1jax.sharding import Layout, make_mesh  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session', autouse=True)
def compilation_cache():
  """Programs compiled once are found again by later tests and later runs."""
  folder = os.environ.get('R1JAX_TEST_CACHE', os.path.join(
      tempfile.gettempdir(), f'r1jax-test-cache-{os.getuid()}'))
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder with real data and oracles: `data/`, `oracle/`."""
  places = [ROOT.parent / 'shared']
  if 'R1JAX_DATA' in os.environ:
    places.insert(0, Path(os.environ['R1JAX_DATA']).resolve().parent)
  for place in places:
    if (place / 'oracle').is_dir():
      return place
  pytest.skip('needs the real data: set R1JAX_DATA to its folder')


def small_config(**changes) -> ModelConfig:
  """A model of a few thousand parameters with V3's attention and experts."""
  return from_dict(models.tiny() | dict(
      d_model=16, num_layers=3, num_heads=2, q_lora_rank=16, kv_lora_rank=8,
      qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, ffn_dim=32,
      expert_ffn_dim=16, num_experts=8, vocab_size=32, init_std=0.3,
      num_expert_groups=4, topk_groups=2) | changes)


def dense_config(**changes) -> ModelConfig:
  """A dense model of a few thousand parameters, Qwen2's and Qwen3's at once."""
  return from_dict(models.llama3_1_8b() | dict(
      d_model=16, num_layers=2, first_k_dense=2, num_heads=4, num_kv_heads=2,
      head_dim=6, ffn_dim=32, vocab_size=32, init_std=0.3, dtype='float32',
      remat=False, qkv_bias=True, qk_norm=True, max_context=128) | changes)


from_dict = ModelConfig.from_dict


def one_device() -> Layout:
  return Layout(make_mesh({}, jax.devices()[:1]))


def make(config: ModelConfig, layout: Layout | None = None, seed: int = 0):
  """A model and its parameters; the routing bias is drawn too, not zero."""
  model = Transformer(config, layout or one_device())
  params = init_params(model, jax.random.key(seed))
  if 'moe_layers' in params:
    ffn = params['moe_layers']['ffn']
    ffn['bias'] = 0.3 * jax.random.normal(jax.random.key(7), ffn['bias'].shape)
  return model, params


def forward(model: Transformer, params, tokens_BT, position_BT=None,
            segment_BT=None):
  """Logits of the full forward pass, jitted: [B, T, V] in NumPy."""
  shape = np.shape(tokens_BT)
  if position_BT is None:
    position_BT = np.broadcast_to(np.arange(shape[1]), shape)
  if segment_BT is None:
    segment_BT = np.ones(shape, np.int32)

  @jax.jit
  def run(params, *inputs):
    out = model.apply({'params': params}, *inputs)
    return model.apply({'params': params}, out.hidden_BTD, method='logits')

  return np.asarray(
      run(params, jnp.asarray(tokens_BT), position_BT, segment_BT))
