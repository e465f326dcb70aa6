"""Every stage declares itself, and a plugin's stage runs as they do."""

import dataclasses
import gc
import os
from pathlib import Path
import signal

import jax
import numpy as np
import pytest

from r1jax import interrupts, registry
from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.config.field import walk
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.runs import lineage, run, stage_list
from r1jax.stages.build import parts as build
from r1jax.stages.stage import Kind, Network
from tests.configs import small
from tests.conftest import one_device, run_config

NAMES = tuple(registry.stage)
KEYS = tuple(key for key, *_ in walk(RunConfig()))
SAMPLED = ('rejection_sampling', 'label_steps')


def _config(name: str, **changes):
  """A run of one stage, with data to learn from."""
  config = small.get_config()
  config.stages, config.init = (name,), 'random'
  config.model.scalar_head = name in ('reward_model', 'prm')
  config.sft.update(data=('arithmetic:8',), batch_size=8, length_tokens=64)
  for section in ('reward_model', 'dpo'):
    config[section].update(data=('manners:8',), batch_size=4)
    config[section].max_tokens = 96
  config.prm.update(batch_size=4, max_tokens=52)
  config.update_from_flattened_dict(changes)
  return run_config(config)


def test_the_stages_of_the_package_are_registered():
  assert {
    'pretrain',
    'sft',
    'reward_model',
    'dpo',
    'prm',
    'rl',
    'rejection_sampling',
    'label_steps',
  } <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_a_stage_declares_itself(name):
  stage, config = stage_list.stage_class(name), _config(name)
  assert stage.name == name
  assert type(getattr(RunConfig(), name)) is stage.section
  for start, kinds in stage.takes.items():
    assert any(key.startswith(start) for key in KEYS), start
    assert kinds and all(isinstance(kind, Kind) for kind in kinds)
  kind = stage.leaves(config)
  assert isinstance(kind, Kind)
  assert kind.is_weights == stage.output.endswith('.safetensors')
  assert stage_list.output(config, Path('w')).parts == ('w', name, stage.output)
  for key, files in stage.reads(config).items():
    assert key.partition('.')[0] in RunConfig.__dataclass_fields__
    assert files == []  # All of its data is synthetic.
  trained, *others = stage.networks(config)
  assert trained.label == '' and trained.model == config.model
  assert (trained.optimizer is None) == (name in SAMPLED)
  for network in others:
    assert isinstance(network, Network) and network.label
    assert isinstance(network.model, ModelConfig)


@pytest.mark.parametrize(
  'name, changes, labels',
  [
    ('pretrain', {}, ['pre-training']),
    ('sft', {}, ['SFT']),
    ('reward_model', {}, ['reward model']),
    ('reward_model', {'reward_model.kind': 'safe'}, ['reward model']),
    ('dpo', {}, ['DPO']),
    ('dpo', {'dpo.group_robust': True}, ['DPO']),
    ('prm', {}, ['PRM']),
    ('rl', {}, ['GRPO']),
    ('rl', {'rl.adv_estimator': 'gae'}, ['PPO policy', 'PPO critic']),
    (
      'rl',
      {
        'rl.adv_estimator': 'gae',
        'rl.ppo.critic': 'shared',
        'model.scalar_head': True,
      },
      ['PPO policy'],
    ),
  ],
)
def test_the_programs_of_an_update_take_abstract_arguments(
  name, changes, labels
):
  """They trace, and give a state of the shapes that they take."""
  stage, config = stage_list.stage_class(name), _config(name, **changes)
  updates = stage.update(config, one_device())
  assert [update.label for update in updates] == labels
  for update in updates:
    for leaf in jax.tree.leaves(update.arguments):
      assert isinstance(leaf, jax.ShapeDtypeStruct)
      assert leaf.sharding is not None
    state, metrics = jax.eval_shape(update.step, *update.arguments)
    shape_of = lambda x: (x.shape, x.dtype)
    assert jax.tree.map(shape_of, state) == jax.tree.map(
      shape_of, update.arguments[0]
    )
    assert 'loss' in metrics or 'critic/vf_loss' in metrics
    assert any(
      leaf.shape == (update.rows * update.microbatches, update.tokens)
      for leaf in jax.tree.leaves(update.arguments[1])
    )


def test_every_stage_that_trains_has_its_programs_tested():
  """The list above misses no stage; the others say that they have none."""
  for name in NAMES:
    stage, config = stage_list.stage_class(name), _config(name)
    if any(network.optimizer for network in stage.networks(config)):
      assert stage.update(config, one_device())
      continue
    with pytest.raises(UserError, match=f'the stage {name!r} trains nothing'):
      stage.update(config, one_device())


def test_an_advantage_estimator_of_a_plugin_takes_the_place_of_grpo_s(
  monkeypatch,
):
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )

  @registry.adv_estimator('plain')
  def plain(reward_B, group_B, num_groups, scorable_B, config):
    return reward_B

  try:
    config = _config('rl', **{'rl.adv_estimator': 'plain'})
    stage = stage_list.stage_class('rl')(config, build.parts(config))
  finally:
    registry.adv_estimator.forget(str(Path(__file__).resolve()))
  assert stage._learner._adv_estimator is plain


_PLUGIN = '''
import dataclasses
import jax
from r1jax import registry
from r1jax.config.schema.section import Section
from r1jax.stages.stage import Stage, save_weights


@dataclasses.dataclass(frozen=True)
class DoubleConfig(Section):
  pass


@registry.stage('double')
class Double(Stage):
  """Doubles every weight."""

  section = DoubleConfig

  def __init__(self, config, parts):
    self._seed = config.seed

  def run(self, directory, params, metadata):
    doubled = jax.tree.map(lambda x: 2 * x, params)
    return save_weights(directory, doubled, metadata | {'seed': self._seed})
'''


@pytest.fixture
def plugin(tmp_path):
  """A file that registers the stage 'double'."""
  path = tmp_path / 'double.py'
  path.write_text(_PLUGIN)
  yield path
  registry.stage.forget(str(path.resolve()))


@pytest.fixture
def two_stages(plugin, tmp_path, monkeypatch):
  """A run of one step of pre-training, and the stage of the plugin."""
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'cache'))
  return dataclasses.replace(
    _config('pretrain', **{'pretrain.max_steps': 1}),
    init='pretrain',
    stages=('pretrain', 'double'),
    plugins=(str(plugin),),
  )


@pytest.mark.slow
def test_sigterm_in_a_last_step_ends_the_run_before_the_next_stage(
  two_stages, tmp_path, monkeypatch
):
  """The stage is finished; the same command goes on with the next one."""
  workdir = tmp_path / 'run'
  pretrain = stage_list.stage_class('pretrain')
  step = pretrain.train_step

  def end(self, state, at, data):
    assert at == self.num_steps
    os.kill(os.getpid(), signal.SIGTERM)
    return step(self, state, at, data)

  with monkeypatch.context() as patched:
    patched.setattr(pretrain, 'train_step', end)
    patched.setattr(interrupts, '_STEP_SECS', 600.0)  # The step compiles.
    with pytest.raises(interrupts.Interrupted) as caught:
      run.train(two_stages, str(workdir))
  assert caught.value.exit_code == 143
  assert caught.value.kept == (
    'pretrain is finished, and the same command goes on with double'
  )
  del caught  # Its frames hold the lock of the workdir.
  gc.collect()
  assert (workdir / 'pretrain/model.safetensors').exists()
  assert not (workdir / 'double').exists()
  assert run.train(two_stages, str(workdir)).exists()


@pytest.mark.slow
def test_a_stage_of_a_plugin_runs(two_stages, plugin, tmp_path):
  """After one of the package, whose weights it takes; nothing else changes."""
  config, workdir = two_stages, tmp_path / 'run'
  path = run.train(config, str(workdir))
  assert path == workdir / 'double/model.safetensors'
  assert stage_list.leaves(config) is Kind.POLICY
  before = SafetensorsReader(workdir / 'pretrain/model.safetensors')
  after = SafetensorsReader(path)
  assert after.metadata['seed'] == config.seed
  assert after.shapes == before.shapes
  for name in before.shapes:
    np.testing.assert_array_equal(
      after.read(name), 2 * before.read(name).astype(np.float32)
    )
  record = lineage.read(workdir)
  assert record['stages'] == ['pretrain', 'double']
  assert record['inputs']['plugins']['path'] == str(plugin)
