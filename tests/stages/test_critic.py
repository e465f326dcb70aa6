"""PPO as a stage: whole runs, resumed runs, initial critics, refused configs."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from r1jax.checkpoints import weights
from r1jax.config.keys import flatten
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.model.parameters import init_params
from r1jax.model.transformer import Transformer
from r1jax.runs import run as runs_run
from r1jax.stages import critic, initial
from r1jax.stages.build import parts as build
from tests.configs import small_ppo
from tests.conftest import run_config
from tests.stages.conftest import rows, run

_PPO = '--config=tests/configs/small_ppo.py'


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
  """A run of four steps with a separate critic; the first is a warm-up."""
  workdir = tmp_path_factory.mktemp('runs') / 'own'
  run(environment, 'train', _PPO, f'--workdir={workdir}')
  return workdir


@pytest.mark.slow
def test_a_run_logs_metrics_of_its_critic(finished):
  first, *later = rows(finished)[1:]
  names = {
    'critic/vf_loss',
    'critic/vf_explained_var',
    'critic/values/mean',
    'critic/vf_clipfrac',
    'critic/grad_norm',
    'critic/returns/mean',
    'critic/advantages/std',
  }
  assert names <= first.keys() and 'loss' not in first
  assert first['critic/values/mean'] == 0 and first['critic/returns/mean'] < 0
  for row in later:
    assert names | {'loss', 'kl', 'entropy', 'pg_clipfrac'} <= row.keys()
    assert row['critic/values/mean'] < 0 and row['critic/advantages/std'] > 0
    assert row['skipped_updates'] == row['critic/skipped_updates'] == 0
    assert row['rollout_logp_diff/max'] < 1e-4
  assert any(row['rollout/stale_token_frac'] > 0 for row in later)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(finished, environment, tmp_path):
  """From the checkpoint of step 2: the critic and its moments were in it."""
  cut = tmp_path / 'cut'
  shutil.copytree(finished, cut)
  shutil.rmtree(cut / 'rl/checkpoints/4')
  (cut / 'rl/model.safetensors').unlink()
  printed = run(environment, 'train', _PPO, f'--workdir={cut}').stdout
  assert 'goes on after step 2' in printed
  for name in ('metrics.jsonl', 'model.safetensors'):
    assert (cut / 'rl' / name).read_bytes() == (
      finished / 'rl' / name
    ).read_bytes()


@pytest.mark.slow
def test_a_shared_trunk_runs_with_every_option_of_a_rollout(
  environment, tmp_path
):
  """Replayed routing, the trainer's probabilities, bootstrapped truncated
  values; then the run's weights are sampled from."""
  workdir = tmp_path / 'shared'
  args = (
    _PPO,
    f'--workdir={workdir}',
    '--config.model.scalar_head=True',
    '--config.rl.ppo.critic=shared',
    '--config.rl.ppo.critic_learning_rate=1e-5',  # That of a separate one.
    '--config.rl.max_steps=2',
    '--config.rl.ppo.critic_warmup_steps=0',
    '--config.rl.ppo.truncated_value=bootstrap',
    '--config.pretrain.max_steps=2',
    '--config.rl.oversample=1.0',
    '--config.rl.old_logp_source=recompute',
    '--config.rl.rollout_is=truncate',
    '--config.rl.routing_replay=True',
    '--config.rl.kl_coef=0.0',
  )
  run(environment, 'train', *args)
  for row in rows(workdir)[1:]:
    assert 'kl' not in row and row['skipped_updates'] == 0
    assert row['critic/vf_loss'] > 0 and row['rollout_logp_diff/max'] < 1e-4
  printed = run(environment, 'sample', *args, '--prompt=1+1').stdout
  assert printed.startswith('1+1')


def _config(**values):
  config = small_ppo.get_config()
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in values.items()}
  )
  return config


@pytest.mark.slow
def test_a_critic_begins_as_the_policy_or_as_its_file(tmp_path):
  """A file may hold a model of another size, whose head is kept."""
  config = run_config(_config())
  parts = build.parts(config)
  base = init_params(parts.model, jax.random.key(0))
  state = critic.make_critic(config, parts).init_state(base)
  assert not np.asarray(state.params.pop('scalar')).any()
  jax.tree.map(np.testing.assert_array_equal, state.params, base)

  other = _config(model__intermediate_size=48, model__scalar_head=True)
  model = Transformer(run_config(other).model, parts.model.layout)
  params = init_params(model, jax.random.key(1))
  params['scalar'] += 1
  path = tmp_path / 'reward_model.safetensors'
  weights.save(path, params, 'float32', {'config': flatten(other.to_dict())})
  config = run_config(_config(rl__ppo__critic_init=str(path)))
  separate = critic.make_critic(config, parts)
  state = separate.init_state(base)
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  kind = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.map(kind, state) == jax.tree.map(
    kind, separate.abstract_state()
  )


@pytest.mark.parametrize(
  'values, passes',
  [
    (dict(), 1 + 3),  # Values, and an update of its own.
    (
      dict(
        model__scalar_head=True,
        rl__ppo__critic='shared',
        rl__ppo__critic_warmup_steps=0,
      ),
      1,  # The update is the policy's.
    ),
    (dict(rl__adv_estimator='grpo', rl__group_size=2), 0),
  ],
)
def test_the_work_of_a_critic(values, passes):
  """Values need no output head."""
  config = run_config(_config(**values))
  parts = build.parts(config)
  counts = model_flops.TokenCounts(10, 55, 7)
  found = critic.make_critic(config, parts).flops(counts)
  info = model_flops.count(dataclasses.replace(config.model, scalar_head=True))
  forward = 2 * (info.active - info.head) * 10 + info.attention_flops * 55
  assert found == passes * forward


@pytest.mark.parametrize(
  'values,message',
  [
    (
      dict(rl__adv_estimator='gea'),
      "rl.adv_estimator: .*unknown 'gea'; did you mean 'gae'",
    ),
    (
      dict(rl__policy_loss='clap'),
      "rl.policy_loss: .*unknown 'clap'; did you mean 'clip'",
    ),
    (
      dict(rl__ppo__critic='both'),
      "rl.ppo.critic = 'both' must be one of 'separate', 'shared'",
    ),
    (
      dict(rl__ppo__lam=1.5),
      'rl.ppo.lam = 1.5 must be at least 0 and at most 1',
    ),
    (dict(rl__ppo__gamma=-0.5), 'rl.ppo.gamma = -0.5 must be at least 0'),
    (
      dict(rl__ppo__truncated_value='go'),
      "rl.ppo.truncated_value = 'go' must be one of",
    ),
    (dict(rl__ppo__vf_coef=-1.0), 'rl.ppo.vf_coef = -1.0 must be at least 0'),
    (
      dict(rl__ppo__critic_warmup_steps=4),
      'rl.max_steps = 4 must be above ppo.critic_warmup_steps = 4',
    ),
    (
      dict(rl__ppo__critic='shared', rl__ppo__critic_warmup_steps=0),
      'needs model.scalar_head = True',
    ),
    (
      dict(rl__ppo__critic='shared', model__scalar_head=True),
      "rl.ppo.critic_warmup_steps = 1 needs critic = 'separate'",
    ),
    (dict(rl__ppo__critic_init='no/where'), 'critic_init: no file no/where'),
    (
      dict(rl__ppo__critic_init=str(initial.SHIPPED_BASE)),
      'rl.ppo.critic_init: .*base_tiny.safetensors has no scalar head',
    ),
    (dict(rl__group_size=0), 'rl.group_size = 0 must be at least 1'),
    (
      dict(rl__prompts_per_step=3, rl__num_minibatches=2),
      'rl.prompts_per_step × rl.group_size = 3 does not divide',
    ),
    (
      dict(rl__dynamic_sampling=True),
      'rl.group_size = 1 must be at least 2 with dynamic_sampling',
    ),
  ],
)
def test_a_config_that_cannot_run_is_refused_at_start_up(values, message):
  with pytest.raises(UserError, match=message) as caught:
    runs_run.check(run_config(_config(**values)))
  assert '\n' not in str(caught.value)
