"""The real-size pipelines: every stage fits its mesh and has its numbers."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from r1jax.config.schema.preferences import PackedConfig
from r1jax.configs import pipeline_r1, pipeline_r1_zero
from r1jax.data import sample_packing
from r1jax.launch import info
from r1jax.runs import pipeline_config, stage_list
from r1jax.sharding import Layout, mesh_sizes
from r1jax.stages import rl_update
from r1jax.stages.build import packing
from r1jax.stages.build import parts as build

_PIPELINES = [
  pipeline_config.load_pipeline(module.get_config())
  for module in (pipeline_r1_zero, pipeline_r1)
]
_STAGES = [
  (pipeline, name) for pipeline in _PIPELINES for name in pipeline.stages
]


@pytest.mark.slow
@pytest.mark.parametrize(
  'pipeline, name', _STAGES, ids=[name for _, name in _STAGES]
)
def test_every_stage_divides_over_its_mesh(pipeline, name):
  run = pipeline.runs[name]
  stage_list.check_names(run)
  shape = dataclasses.asdict(run.mesh)
  sizes = mesh_sizes(
    shape, 1024 if -1 in shape.values() else math.prod(shape.values())
  )
  layout = Layout(
    jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  )
  assert all(size > 0 for size in info.training_bytes(run, layout).values())
  section = getattr(run, run.stages[-1])
  if run.stages[-1] == 'rl':
    rl_update.check_rl(run, layout)
  elif isinstance(section, PackedConfig):
    packing.example_row_shape(run, run.stages[-1], layout)
  elif hasattr(section, 'batch_size'):
    parts = section.gradient_accumulation_steps
    build.divides(name, section.batch_size, parts, layout)


def test_an_update_of_r1_zero_costs_the_tokens_that_came():
  """Samples of 8,000 tokens in the mean fill a quarter of the longest ones."""
  run = _PIPELINES[0].runs['zero']
  sizes = mesh_sizes(dataclasses.asdict(run.mesh), 1024)
  layout = Layout(
    jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  )
  shape = packing.row_shape(run, layout)
  samples = shape.num_samples // shape.num_updates
  assert (samples, shape.max_sample_tokens) == (512, 33792)
  shape = dataclasses.replace(shape, num_updates=1, num_samples=samples)
  assert shape.max_microbatches == 4
  counts = []
  for seed in range(64):
    lengths_B = np.random.default_rng(seed).exponential(8000, samples)
    lengths_B = np.minimum(lengths_B, 33792).astype(int)
    packed = sample_packing.plan(lengths_B, np.arange(samples), shape)
    counts += packed.num_microbatches_u.tolist()
  # A few updates have more tokens than one microbatch.
  assert max(counts) == 2 and np.mean(counts) <= 0.35 * 4


def test_the_stages_feed_each_other_as_in_the_paper():
  runs = _PIPELINES[1].runs
  parents = {
    name: pipeline_config.references(run) for name, run in runs.items()
  }
  assert parents['reasoning'] == {'init': 'cold_start'}
  assert parents['rejection_sampled'] == {'init': 'reasoning'}
  assert parents['sft'] == {
    'sft.data[0]': 'rejection_sampled'
  }  # From the base again.
  assert runs['sft'].init == runs['cold_start'].init
  assert parents['final'] == {
    'init': 'sft',
    'rl.reward_models.helpful': 'helpful',
    'rl.reward_models.safe': 'safe',
  }
  assert parents['qwen_7b'] == {'sft.data[0]': 'rejection_sampled'}
  assert parents['qwen_32b_zero'] == {}


@pytest.mark.parametrize(
  'name, billions',
  [
    ('qwen_1_5b', 1.54),
    ('qwen_7b', 7.62),
    ('qwen_14b', 14.8),
    ('qwen_32b', 32.8),
    ('llama_8b', 8.03),
    ('llama_70b', 70.6),
    ('final', 671.0),
  ],
)
def test_students_have_their_published_sizes(name, billions):
  total = info.count(_PIPELINES[1].runs[name].model).total
  assert abs(total / 1e9 - billions) < 0.006 * billions


def test_the_published_numbers():
  """DeepSeek-R1, second version, sections 2.2 to 2.4 and appendix B."""
  zero = pipeline_r1_zero.get_config()
  updates = (zero.zero.rl.max_steps + zero.zero_long.rl.max_steps) * 16
  assert updates == 10_400 and zero.zero.rl.max_steps * 16 == 8192
  assert zero.zero_long.rl.max_new_tokens == 65536
  config = pipeline_r1.get_config()
  rates = [
    config[name].sft.optimizer.learning_rate
    for name in (
      'qwen_1_5b',
      'qwen_7b',
      'qwen_14b',
      'qwen_32b',
      'llama_8b',
      'llama_70b',
    )
  ]
  assert rates == [1e-4, 8e-5, 7e-5, 6e-5, 5e-5, 2e-5]
  final = config.final.rl
  updates = final.num_minibatches
  assert final.max_steps * updates == pytest.approx(1700, abs=updates / 2)
  assert (final.max_steps - final.general_prompts_after_steps) * updates == 400
  assert final.temperature == 0.7 and config.reasoning.rl.clip_ratio_high == 10
  sft = config.sft.sft
  assert (sft.batch_size, sft.length_tokens) == (128, 32768)
  assert sft.optimizer.learning_rate * sft.optimizer.min_lr_ratio == (
    pytest.approx(5e-6)
  )
  assert config.helpful.reward_model.optimizer.learning_rate == 6e-6
