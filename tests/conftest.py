"""Shared by the tests: virtual devices, a compilation cache, the real data."""

import os
from pathlib import Path
import tempfile

from tests import compiler

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight virtual devices, before JAX starts; tests that need one use one.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    compiler.light_flags(),
  ]
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import models
from r1jax.model import cache
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, init_params
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.sharding import Layout, make_mesh

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session', autouse=True)
def compilation_cache():
  """Programs compiled once are found again by later tests and later runs."""
  folder = os.environ.get(
    'R1JAX_TEST_CACHE',
    os.path.join(tempfile.gettempdir(), f'r1jax-test-cache-{os.getuid()}'),
  )
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> dict[str, str]:
  """The environment of a command in a process of its own.

  One device, an empty cache of base models, the tests' compilation cache.
  """
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=compiler.light_flags())
  env['R1JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))
  env['JAX_COMPILATION_CACHE_DIR'] = jax.config.jax_compilation_cache_dir
  env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
  return env


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
  return from_dict(
    models.tiny()
    | dict(
      hidden_size=16,
      num_hidden_layers=3,
      num_attention_heads=2,
      q_lora_rank=16,
      kv_lora_rank=8,
      qk_nope_head_dim=6,
      qk_rope_head_dim=4,
      v_head_dim=5,
      intermediate_size=32,
      moe_intermediate_size=16,
      n_routed_experts=8,
      vocab_size=32,
      initializer_range=0.3,
      n_group=4,
      topk_group=2,
    )
    | changes
  )


def dense_config(**changes) -> ModelConfig:
  """A dense model of a few thousand parameters, Qwen2's and Qwen3's at once."""
  return from_dict(
    models.llama3_1_8b()
    | dict(
      hidden_size=16,
      num_hidden_layers=2,
      first_k_dense_replace=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=6,
      intermediate_size=32,
      vocab_size=32,
      initializer_range=0.3,
      dtype='float32',
      remat=False,
      qkv_bias=True,
      qk_norm=True,
      max_position_embeddings=128,
    )
    | changes
  )


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


def continued(
  model: Transformer,
  params,
  prompts,
  after,
  block_size: int = 3,
  decode_steps: int = 4,
  **sizes,
):
  """Logits of cached decoding, which is told its tokens.

  Reads each prompt but its last token into pages, then feeds that token and
  those of `after` one by one, moving them to pages after every chunk.

  Args:
    prompts: B lists of tokens.
    after: [B, n].
    sizes: Of the engine.

  Returns:
    NumPy [B, 1 + n, V]: after the prompt, and after each token of `after`.
  """
  B, n = after.shape
  longest = max(map(len, prompts))
  engine = Engine(
    model,
    EngineConfig(
      max_num_seqs=B,
      max_model_len=longest + n + 1,
      block_size=block_size,
      decode_steps=decode_steps,
      **sizes,
    ),
  )
  W = engine.max_blocks_per_seq
  table_BW = 1 + np.arange(B * W).reshape(B, W)
  held_B = np.array([len(p) - 1 for p in prompts])
  tokens_BT = np.zeros((B, longest), np.int32)
  for row, prompt in zip(tokens_BT, prompts):
    row[: len(prompt) - 1] = prompt[:-1]

  def context(tokens_B):  # Pages are filled to the brim, one after another.
    fill = tokens_B[:, None] - block_size * np.arange(W)
    return cache.Context(
      table_BW=jnp.asarray(table_BW, jnp.int32),
      next_B=jnp.asarray(tokens_B),
      fill_BW=jnp.asarray(np.clip(fill, 0, block_size), jnp.int32),
    )

  pages, _ = jax.jit(engine.programs.prefill)(
    engine.prepare_params(params),
    engine.new_kv_cache(),
    context(np.zeros(B, int)),
    tokens_BT,
    held_B,
  )
  fed_BT = np.concatenate([[[p[-1]] for p in prompts], after], 1)

  @jax.jit
  def step(params, pages, context, columns, token_B, column):
    hidden, columns, _ = model.apply(
      {'params': params},
      token_B[:, None],
      context.fill_BW.sum(-1)[:, None] + column,
      jnp.ones((B, 1), bool),
      jnp.broadcast_to(
        jnp.arange(decode_steps) <= column, (B, 1, decode_steps)
      ),
      columns,
      column,
      pages,
      context,
      method='extend',
    )
    return model.apply(
      {'params': params}, hidden[:, 0], method='logits'
    ), columns

  found = []
  for start in range(0, n + 1, decode_steps):
    columns = engine.programs.init_columns(B, decode_steps)
    some = fed_BT[:, start : start + decode_steps].astype(np.int32)
    here = context(held_B + start)
    for column in range(some.shape[1]):
      logits, columns = step(
        params, pages, here, columns, some[:, column], jnp.int32(column)
      )
      found.append(np.asarray(logits))
    kept = jnp.broadcast_to(
      jnp.arange(decode_steps) < some.shape[1], (B, decode_steps)
    )
    pages = jax.jit(engine.programs.flush)(pages, here, columns, kept, None)
  return np.stack(found, 1)


def forward(
  model: Transformer, params, tokens_BT, position_BT=None, segment_BT=None
):
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
    run(params, jnp.asarray(tokens_BT), position_BT, segment_BT)
  )
