"""Configs of models on the hub: their sizes, and that all keys have an effect."""

import jax
import pytest

from r1jax import chips as tpus
from r1jax.config import effects
from r1jax.configs import grpo_hub, sft_hub
from r1jax.errors import UserError
from r1jax.launch import info
from r1jax.model.model_flops import count
from r1jax.runs import stage_list
from r1jax.sharding import Layout, mesh_sizes
from r1jax.stages import memory, rl_update
from r1jax.stages.build import parts as build
from tests.conftest import run_config

# The numbers of parameters that the hub shows, embeddings counted once, and the
# chips that the docstring names.
_SIZES = {
  'qwen2.5-0.5b': (494_032_768, 8),
  'qwen2.5-1.5b': (1_543_714_304, 8),
  'qwen2.5-7b': (7_615_616_512, 16),
  'qwen2.5-math-1.5b': (1_543_714_304, 8),
  'qwen2.5-math-7b': (7_615_616_512, 16),
  'qwen3-0.6b': (596_049_920, 8),
  'qwen3-1.7b': (1_720_574_976, 8),
  'qwen3-8b': (8_190_735_360, 16),
  'llama-3.1-8b': (8_030_261_248, 16),
}


def _made(size: str, configs=grpo_hub):
  """The run, and the layout on the chips that the docstring names."""
  run = run_config(configs.get_config(size))
  sizes = mesh_sizes(
    dict(data=1, fsdp=-1, tensor=run.mesh.tensor), _SIZES[size][1]
  )
  mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  return run, Layout(mesh)


@pytest.mark.parametrize('size', _SIZES)
def test_each_has_its_published_size_and_divides_over_its_chips(size):
  run, layout = _made(size)
  effects.check(run)
  assert count(run.model).total == _SIZES[size][0]
  rl_update.check_rl(run, layout)


@pytest.mark.slow
@pytest.mark.parametrize('size', _SIZES)
def test_each_fits_its_chips(size):
  run, layout = _made(size)
  kept = info.training_bytes(run, layout)
  (update,) = rl_update.updates(run, layout, 1000)
  reference = kept['reference policy: weights, float32']
  limit = memory.SHARE * tpus.CHIPS['v5e'].hbm_bytes
  assert memory.predict(update, 'block').total + reference < limit
  sampling = sum(memory.sampling_bytes(run, layout).values())
  assert sampling + reference + kept['Adam moments, float32'] < limit


@pytest.mark.parametrize('size', _SIZES)
def test_sft_of_each_has_keys_of_effect_and_divides_over_its_chips(size):
  run, layout = _made(size, sft_hub)
  effects.check(run)
  c = run.sft
  build.divides(
    'sft.batch_size', c.batch_size, c.gradient_accumulation_steps, layout
  )
  assert c.length_tokens <= run.model.max_position_embeddings


@pytest.mark.slow
@pytest.mark.parametrize(
  'size, chip', [('qwen2.5-0.5b', 'v5e'), ('llama-3.1-8b', 'v6e')]
)
def test_sft_of_the_smallest_and_the_largest_fits(size, chip):
  run, layout = _made(size, sft_hub)
  (update,) = stage_list.updates(run, layout)
  limit = memory.SHARE * tpus.CHIPS[chip].hbm_bytes
  assert memory.predict(update, 'block').total < limit


def test_all_sizes_are_tested_and_another_one_is_refused():
  assert set(grpo_hub.SIZES) == set(_SIZES)
  with pytest.raises(UserError, match='one of qwen2.5-0.5b, '):
    grpo_hub.get_config('gpt-5')
  with pytest.raises(UserError, match='one of qwen2.5-0.5b, '):
    sft_hub.get_config('gpt-5')
