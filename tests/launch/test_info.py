"""Published sizes come out, and the command shows them."""

import math

import jax
import pytest
from safetensors import safe_open

from r1jax.cli import main
from r1jax.config import algorithms, models
from r1jax.config.load import model_config
from r1jax.configs import r1_zero_tiny
from r1jax.errors import UserError
from r1jax.launch import info
from r1jax.sharding import Layout, make_mesh
from r1jax.stages import initial
from tests.configs import small_pipeline
from tests.conftest import run_config


@pytest.mark.parametrize(
  'name,total,cache_bytes',
  [
    ('deepseek_v3', 671.0e9, 70_272),
    ('qwen2_5_math_1_5b', 1.54e9, 28 * 2 * 2 * 128 * 2),
    ('qwen2_5_math_7b', 7.62e9, 28 * 2 * 4 * 128 * 2),
    ('qwen2_5_14b', 14.77e9, 48 * 2 * 8 * 128 * 2),
    ('qwen2_5_32b', 32.76e9, 64 * 2 * 8 * 128 * 2),
    ('qwen3_8b', 8.19e9, 36 * 2 * 8 * 128 * 2),
    ('llama3_1_8b', 8.03e9, 32 * 2 * 8 * 128 * 2),
    ('llama3_3_70b', 70.55e9, 80 * 2 * 8 * 128 * 2),
  ],
)
def test_named_sizes_have_their_published_parameters(name, total, cache_bytes):
  config = model_config(getattr(models, name)())
  found = info.count(config)
  assert found.total == pytest.approx(total, rel=0.005)
  assert found.cache_bytes == cache_bytes


# DeepSeek's README_WEIGHTS: '671B', '36.7B' active, which the report rounds to
# 37B, and '11.5B unique parameters' of one MTP module.
@pytest.mark.parametrize('num_nextn_predict_layers', [0, 1])
def test_v3_has_671_billion_and_activates_37(num_nextn_predict_layers):
  config = model_config(
    models.deepseek_v3()
    | dict(num_nextn_predict_layers=num_nextn_predict_layers)
  )
  found = info.count(config)
  assert found.total == pytest.approx(671.0e9, rel=0.005)
  assert found.active == pytest.approx(36.7e9, rel=0.005)
  assert found.mtp == pytest.approx(num_nextn_predict_layers * 11.5e9, rel=0.01)
  assert found.cache_bytes == 61 * (512 + 64) * 2  # bf16


@pytest.mark.parametrize(
  'num_nextn_predict_layers', [pytest.param(0, marks=pytest.mark.slow), 1]
)
def test_info_prints_the_published_sizes(capsys, num_nextn_predict_layers):
  main.run(
    [
      'info',
      '--config=r1_zero_671b',
      '--devices=1024',
      f'--config.model.num_nextn_predict_layers={num_nextn_predict_layers}',
    ]
  )
  printed = capsys.readouterr().out
  assert '70,272' in printed
  rows = [line.rsplit(maxsplit=2) for line in printed.splitlines()]
  shown = {row[0].strip(): row[1:] for row in rows}
  assert shown['parameters'] == ['671,026,404,352', '671B']
  assert shown['used by one token'][1] == '37B'
  assert ('MTP modules, apart' in shown) == bool(num_nextn_predict_layers)


def _training_bytes(config) -> dict[str, int]:
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  return info.training_bytes(run_config(config), layout)


def test_memory_of_grpo_and_of_ppo_is_that_of_their_networks():
  """Against sizes by hand: float32, two moments, one reference policy."""
  config = r1_zero_tiny.get_config()
  n = info.count(run_config(config).model).total
  n += 3 * config.model.n_routed_experts  # Routing biases are held too.
  head = config.model.hidden_size
  grpo = _training_bytes(config)
  assert grpo['in all'] == (4 + 4 + 8 + 4) * n
  config.rl.update(algorithms.ppo())
  ppo = _training_bytes(config)
  assert ppo['critic: weights, float32'] == 4 * (n + head)
  assert ppo['critic: Adam moments, float32'] == 8 * (n + head)
  assert ppo['gradients, float32'] == 4 * (n + head)  # Those of the larger one.
  has_reference = bool(config.rl.kl_coef)
  assert ppo['in all'] == (
    (4 + 8 + 4 * has_reference) * n + (4 + 8 + 4) * (n + head)
  )
  config.model.scalar_head = True
  config.rl.ppo.critic = 'shared'
  assert _training_bytes(config)['in all'] == (
    (16 + 4 * has_reference) * (n + head)
  )


def test_memory_without_a_reference_and_with_short_moments():
  config = r1_zero_tiny.get_config()
  n = info.count(run_config(config).model).total
  n += 3 * config.model.n_routed_experts
  config.rl.kl_coef = 0.0
  config.rl.optimizer.moment_dtype = 'bfloat16'
  found = _training_bytes(config)
  assert found['in all'] == (4 + 4 + 4) * n
  assert not any('reference' in name for name in found)


def test_memory_counts_loaded_models_whose_files_are_there():
  config = r1_zero_tiny.get_config()
  alone = _training_bytes(config)
  config.rl.reward_models.helpful = str(initial.SHIPPED_BASE)
  config.rl.reward_models.safe = '@safe'
  found = _training_bytes(config)
  with safe_open(initial.SHIPPED_BASE, 'np') as stored:
    sizes = [math.prod(stored.get_slice(k).get_shape()) for k in stored.keys()]
  key = 'rl.reward_models.helpful: weights, float32'
  assert found[key] == 4 * sum(sizes)
  assert found['in all'] == alone['in all'] + found[key]
  assert info.uncounted(run_config(config)) == ['rl.reward_models.safe']


def test_a_teacher_without_a_file_is_said_to_be_uncounted():
  config = small_pipeline.get_config().student
  assert info.uncounted(run_config(config)) == ['sft.teacher_model']


def _stage(name: str):
  config = r1_zero_tiny.get_config()
  config.stages = (name,)
  return config


@pytest.mark.parametrize(
  'stage,reference', [('reward_model', False), ('dpo', True)]
)
@pytest.mark.slow
def test_info_counts_a_reference_where_there_is_one(capsys, stage, reference):
  main.run(
    [
      'info',
      '--config=r1_zero_671b',
      '--devices=1024',
      f'--config.stages=("{stage}",)',
      f'--config.{stage}.optimizer.moment_dtype=bfloat16',
    ]
  )
  printed = capsys.readouterr().out
  assert ('reference policy' in printed) == reference
  assert 'Adam moments, bfloat16' in printed
  found = _training_bytes(_stage(stage))
  n = found['weights, float32'] // 4
  assert found['in all'] == n * (4 + 8 + 4 + 4 * reference)


@pytest.mark.parametrize(
  'stage,tokens,trains',
  [
    ('sft', 32768, True),
    pytest.param('helpful', 8192, True, marks=pytest.mark.slow),
    ('rejection_sampled', 33792, False),
  ],
)
def test_info_of_a_stage_is_of_its_own_sequences(capsys, stage, tokens, trains):
  main.run(
    ['info', '--config=pipeline_r1', '--devices=1024', f'--stage={stage}']
  )
  printed = capsys.readouterr().out
  assert f'of one sequence of {tokens:,} tokens' in printed
  assert ('Adam moments' in printed) == trains
  assert ('training FLOPs' in printed) == trains


def test_info_shows_a_mesh_that_is_not_here(capsys):
  main.run(['info', '--config=r1_zero_671b', '--devices=1024'])
  assert 'data 1 × fsdp 4 × sequence 1 × tensor 8' in capsys.readouterr().out
  with pytest.raises(UserError, match='expert=3 does not make the 1024'):
    main.run(
      [
        'info',
        '--config=r1_zero_671b',
        '--devices=1024',
        '--config.mesh.expert=3',
      ]
    )
