"""RL on other tasks: real files, and another synthetic one."""

import json

import pytest

from r1jax.config import algorithms
from r1jax.configs import r1_zero_tiny
from r1jax.stages import rl_update
from tests.conftest import run_config
from tests.stages.conftest import SMALL, rows, run


@pytest.mark.slow
@pytest.mark.parametrize('name', ['gsm8k', 'countdown'])
def test_real_files_run_log_and_checkpoint(shared, environment, tmp_path, name):
  environment = dict(environment, R1JAX_DATA=str(shared / 'data'))
  workdir = tmp_path / name
  run(
    environment,
    'train',
    f'--config=r1_zero_{name}',
    f'--workdir={workdir}',
    '--config.rl.max_steps=1',
    '--config.rl.max_new_tokens=8',
    '--config.data.max_prompt_tokens=320',  # One width: compiled once.
    '--config.eval.top_p=1.0',
    '--config.eval.num_problems=4',
    '--config.rl.prompts_per_step=2',
    '--config.rl.group_size=2',
    '--config.rl.num_minibatches=1',
  )
  lines = rows(workdir)
  assert [row['step'] for row in lines] == [0, 1]
  assert lines[1]['entropy'] > 5  # A random model under 150,000 tokens.
  assert lines[1]['verdict/unparsable'] == 1  # It closes no answer tag.
  assert lines[1]['eval/unscorable'] == lines[1]['verdict/crash'] == 0
  assert (workdir / 'rl/checkpoints/1').is_dir()


@pytest.mark.slow
def test_synthetic_countdown_runs(environment, tmp_path):
  workdir = tmp_path / 'run'
  run(
    environment,
    'train',
    SMALL,
    f'--workdir={workdir}',
    '--config.data.task=countdown',
    '--config.data.max_prompt_tokens=16',
    '--config.pretrain.max_steps=2',
    '--config.rl.max_steps=1',
    '--config.rl.kl_coef=0.0',
    '--config.rl.old_logp_source=recompute',
    '--config.rl.oversample=1.0',  # As recomputing needs it.
    '--config.rl.routing_replay=True',
    '--config.rl.dynamic_sampling=True',
    '--config.rl.dynamic_sampling_max_rounds=2',
  )
  row = rows(workdir)[1]
  # An untrained policy is always wrong: all groups are sampled in two rounds.
  assert (
    row['dynamic_sampling/sampled_groups'] == 8
    and row['dynamic_sampling/useful_group_frac'] == 0
  )
  assert row['grad_norm'] == 0
  assert 'kl' not in row and row['rollout_logp_diff/max'] < 1e-4
  saved = (workdir / 'rl/samples/step_000001.jsonl').read_text().splitlines()
  assert json.loads(json.loads(saved[0])['gold'])['target'] > 0


@pytest.mark.slow
def test_a_run_may_change_the_loss_in_every_way(environment, tmp_path):
  """Importance weights, KL in the reward, a mixed reference, masked truncated
  completions, other rewards, and general prompts after a step: all numbers
  stay finite."""
  workdir = tmp_path / 'run'
  run(
    environment,
    'train',
    SMALL,
    f'--workdir={workdir}',
    '--config.pretrain.max_steps=2',
    '--config.rl.max_steps=2',
    '--config.rl.oversample=1.0',
    '--config.rl.old_logp_source=recompute',
    '--config.rl.max_new_tokens=40',  # Some of them end by themselves.
    '--config.rl.rollout_is=truncate',
    '--config.rl.rollout_is_level=sequence',
    '--config.rl.kl_in_reward=True',
    '--config.rl.kl_estimator=k1',
    '--config.rl.ref_model_mixup_alpha=0.5',
    '--config.rl.ref_model_sync_steps=1',
    '--config.rl.mask_truncated_completions=True',
    '--config.rl.loss_agg_mode=seq-mean-token-sum-norm',
    '--config.rl.importance_sampling_level=sequence',
    '--config.rl.reward.language=0.1',
    '--config.rl.reward.format_errors=1.0',
    '--config.rl.reward.repetition=0.1',
    "--config.data.mixture=('arithmetic:1', 'manners:1')",
    '--config.data.max_prompt_tokens=16',
    '--config.rl.general_reward.format=1.0',
    '--config.rl.general_prompts_after_steps=1',
  )
  lines = rows(workdir)[1:]
  assert [row['verdict/general'] for row in lines] == [0, 0.5]
  for row in lines:
    assert 0.9 < row['rollout_is/mean'] < 1.1
    assert 0.9 < row['rollout_is/eff_sample_size'] <= 1
    assert -1 <= row['rewards/format_errors/mean'] <= 0
    assert row['skipped_updates'] == 0


@pytest.mark.parametrize(
  'name',
  [
    'r1_zero',
    'deepseek_math',
    'dapo',
    'dr_grpo',
    'bnpo',
    'gspo',
    'cispo',
    'ppo',
  ],
)
def test_every_preset_is_a_policy_loss(name):
  config = r1_zero_tiny.get_config()
  config.rl.update(getattr(algorithms, name)())
  loss = rl_update.policy_loss(run_config(config))
  in_loss = not config.rl.kl_in_reward
  assert loss.kl_coef == config.rl.kl_coef * in_loss
  assert loss.max_tokens == config.rl.max_new_tokens
