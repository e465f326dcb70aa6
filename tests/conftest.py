"""Fixtures of all tests: virtual devices, a compilation cache, real data."""

import logging
import os
from pathlib import Path
import tempfile
import textwrap

from tests import compiler, exhaustive

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

from r1jax import registry
from r1jax.config import models
from r1jax.config.load import load, model_config
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.model import cache
from r1jax.model.parameters import init_params
from r1jax.model.transformer import Transformer
from r1jax.rollout.engine import Engine
from r1jax.rollout.sizes import EngineConfig
from r1jax.sharding import Layout, make_mesh
from r1jax.workers import plugin_pool

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
  """Marks the tests that `.ci/run` leaves out."""
  found = {item.nodeid: item for item in items}
  for name in exhaustive.IDS:
    if name in found:
      found[name].add_marker(pytest.mark.slow)
      found[name].add_marker(pytest.mark.exhaustive)


@pytest.fixture(scope='session', autouse=True)
def compilation_cache():
  """Reuses programs that earlier tests and runs have compiled."""
  folder = os.environ.get(
    'R1JAX_TEST_CACHE',
    os.path.join(tempfile.gettempdir(), f'r1jax-test-cache-{os.getuid()}'),
  )
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(autouse=True)
def loggers():
  """Leaves r1jax's loggers as they were: a command in a test sets them up."""
  names = [name for name in logging.root.manager.loggerDict if _ours(name)]
  kept = {
    name: (logger.level, logger.propagate, list(logger.handlers))
    for name in ('r1jax', *names)
    for logger in [logging.getLogger(name)]
  }
  yield
  for name in filter(_ours, list(logging.root.manager.loggerDict)):
    logger = logging.getLogger(name)
    logger.level, logger.propagate, logger.handlers = kept.get(
      name, (logging.NOTSET, True, [])
    )
  logging.getLogger('r1jax').manager._clear_cache()


def _ours(name: str) -> bool:
  return name == 'r1jax' or name.startswith('r1jax.')


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
  """Returns the folder with real data (`data/`) and oracles (`oracle/`)."""
  places = [ROOT.parent / 'shared']
  if 'R1JAX_DATA' in os.environ:
    places.insert(0, Path(os.environ['R1JAX_DATA']).resolve().parent)
  for place in places:
    if (place / 'oracle').is_dir():
      return place
  pytest.skip('needs the real data: set R1JAX_DATA to its folder')


@pytest.fixture
def plugin(tmp_path, monkeypatch):
  """Returns write(text), which writes and imports mine.py; its path."""
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'mine.py'

  def write(text: str) -> str:
    path.write_text('from r1jax import registry\n' + textwrap.dedent(text))
    registry.load_plugins(['mine.py'])
    return str(path)

  yield write
  plugin_pool.shutdown()
  for kind in registry.KINDS:
    kind.forget(str(path.resolve()))


def small_config(**changes) -> ModelConfig:
  """Returns a V3 (MLA and MoE) of a few thousand parameters."""
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
  """Returns a dense model of a few thousand parameters with GQA.

  It has the biases of Qwen2 and the head norms of Qwen3.
  """
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
      remat='none',
      qkv_bias=True,
      qk_norm=True,
      max_position_embeddings=128,
    )
    | changes
  )


from_dict = model_config


def run_config(config) -> RunConfig:
  """The typed config of a run, from the ConfigDict that users write."""
  return load(config, RunConfig)


def one_device() -> Layout:
  return Layout(make_mesh({}, jax.devices()[:1]))


def make(config: ModelConfig, layout: Layout | None = None, seed: int = 0):
  """Returns a model and random parameters, the routing bias included."""
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
  """Computes logits of given continuations by decoding with a KV cache.

  Each prompt without its last token is prefilled; then that token and those of
  `after` are fed one by one, and flushed to blocks after every call.

  Args:
    model: The model.
    params: Its parameters.
    prompts: B lists of tokens.
    after: Tokens that follow the prompts, [B, n].
    block_size: Tokens per block.
    decode_steps: Tokens per call.
    **sizes: Other fields of EngineConfig.

  Returns:
    NumPy [B, 1 + n, V]: logits after the prompt and after each token of
    `after`.
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
  block_id_BW = 1 + np.arange(B * W).reshape(B, W)
  prefilled_B = np.array([len(p) - 1 for p in prompts])
  tokens_BT = np.zeros((B, longest), np.int32)
  for row, prompt in zip(tokens_BT, prompts):
    row[: len(prompt) - 1] = prompt[:-1]

  def block_tables(tokens_B):  # Blocks are filled one after another.
    rest_BW = tokens_B[:, None] - block_size * np.arange(W)
    return cache.BlockTables(
      block_id_BW=jnp.asarray(block_id_BW, jnp.int32),
      next_slot_B=jnp.asarray(tokens_B),
      num_tokens_BW=jnp.asarray(np.clip(rest_BW, 0, block_size), jnp.int32),
    )

  kv_cache, _ = jax.jit(engine.programs.prefill)(
    engine.prepare_params(params),
    engine.new_kv_cache(),
    block_tables(np.zeros(B, int)),
    tokens_BT,
    prefilled_B,
  )
  fed_BT = np.concatenate([[[p[-1]] for p in prompts], after], 1)

  @jax.jit
  def step(params, kv_cache, block_tables, columns, token_B, column):
    hidden, columns, _ = model.apply(
      {'params': params},
      token_B[:, None],
      block_tables.num_tokens_BW.sum(-1)[:, None] + column,
      jnp.ones((B, 1), bool),
      jnp.broadcast_to(
        jnp.arange(decode_steps) <= column, (B, 1, decode_steps)
      ),
      columns,
      column,
      kv_cache,
      block_tables,
      method='extend',
    )
    return model.apply(
      {'params': params}, hidden[:, 0], method='logits'
    ), columns

  logits_of_steps = []
  for start in range(0, n + 1, decode_steps):
    columns = engine.programs.init_columns(B, decode_steps)
    chunk_BT = fed_BT[:, start : start + decode_steps].astype(np.int32)
    tables = block_tables(prefilled_B + start)
    for column in range(chunk_BT.shape[1]):
      logits, columns = step(
        params,
        kv_cache,
        tables,
        columns,
        chunk_BT[:, column],
        jnp.int32(column),
      )
      logits_of_steps.append(np.asarray(logits))
    kept = jnp.broadcast_to(
      jnp.arange(decode_steps) < chunk_BT.shape[1], (B, decode_steps)
    )
    kv_cache = jax.jit(engine.programs.flush)(
      kv_cache, tables, columns, kept, None
    )
  return np.stack(logits_of_steps, 1)


def forward(
  model: Transformer, params, tokens_BT, position_BT=None, segment_BT=None
):
  """Computes logits of the full forward pass, NumPy [B, T, V]."""
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
