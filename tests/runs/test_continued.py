"""Runs that begin with the checkpoint of another one: init = 'runs/a@40'."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.checkpoints import weights
from r1jax.config import effects
from r1jax.config.keys import record
from r1jax.config.load import replace
from r1jax.errors import UserError
from r1jax.runs import continued, inputs, run
from r1jax.stages import initial
from r1jax.stages.build import parts as build
from r1jax.stages.rl_learner import RLState
from r1jax.train import optimizer
from r1jax.train import state as train_state
from r1jax.train.checkpoint import Checkpointer
from r1jax.train.retention import Retention
from tests.configs import small
from tests.conftest import run_config
from tests.stages.conftest import SMALL
from tests.stages.conftest import run as run_command

_CONFIG = run_config(small.get_config())


def _state(parts, first=0, c=_CONFIG.rl.optimizer):
  """A state in the middle of a training: numbers from `first` on, counts of 7.

  It is made of NumPy arrays, for which nothing is compiled.
  """
  tx = optimizer.make(c, 10)
  abstract = jax.eval_shape(
    lambda p: train_state.create(p, tx), weights.abstract(parts.model)
  )

  def middle(x):
    if jnp.issubdtype(x.dtype, jnp.integer):
      return jax.device_put(np.full(x.shape, 7, x.dtype))
    numbers = np.arange(first, first + x.size, dtype=x.dtype)
    return jax.device_put(numbers.reshape(x.shape))

  return jax.tree.map(middle, abstract)


@pytest.fixture(scope='module')
def parts():
  return build.parts(_CONFIG)


@pytest.fixture(scope='module')
def runs(parts, tmp_path_factory):
  """A run of two stages with checkpoints, the second one of RL."""
  place = tmp_path_factory.mktemp('runs') / 'a'
  for stage, state in (
    ('pretrain', _state(parts)),
    ('rl', RLState(train=_state(parts), reference=None, critic=None)),
  ):
    folder = place / stage / 'checkpoints'
    with Checkpointer(folder, Retention(3), 0) as checkpoints:
      checkpoints.restore(state)
      for step in (20, 40):
        checkpoints.save(step, state, {'data': {}})
  (place / 'config.json').write_text(json.dumps(record(_CONFIG)))
  return place


@pytest.mark.parametrize('folder', ['', '/rl', '/pretrain'])
@pytest.mark.slow
def test_it_has_the_weights_of_the_checkpoint(folder, runs, parts):
  saved = initial.saved_step(f'{runs}{folder}@40')
  assert saved.stage.name == (folder.strip('/') or 'rl')
  params = continued.load_params(saved, parts.model)
  jax.tree.map(np.testing.assert_array_equal, params, _state(parts).params)


@pytest.mark.parametrize('stage', ['rl', 'pretrain'])
@pytest.mark.slow
def test_it_takes_the_moments_and_begins_the_schedule_anew(stage, runs, parts):
  saved = initial.saved_step(f'{runs}/{stage}@20')
  fresh = _state(parts, first=100)
  schedule = optax.ScaleByScheduleState
  fresh = dataclasses.replace(
    fresh,
    opt_state=tuple(
      each._replace(count=jnp.int32(0)) if isinstance(each, schedule) else each
      for each in fresh.opt_state
    ),
  )
  state = continued.with_optimizer(
    saved, RLState(train=fresh, reference=1, critic=2)
  )
  assert (state.reference, state.critic) == (1, 2)
  found, want = state.train.opt_state, _state(parts).opt_state
  kinds = [type(each) for each in found]
  at = kinds.index(schedule)
  assert (found[at].count, want[at].count) == (0, 7)
  others = lambda each: [x for i, x in enumerate(each) if i != at]
  jax.tree.map(np.testing.assert_array_equal, others(found), others(want))
  jax.tree.map(np.testing.assert_array_equal, state.train.params, fresh.params)


def test_another_optimizer_is_refused(runs, parts):
  saved = initial.saved_step(f'{runs}@20')
  muon = replace(_CONFIG.rl.optimizer, {'name': 'muon'})
  state = _state(parts, c=muon)
  with pytest.raises(UserError, match='does not fit: .*opt_state.* is missing'):
    continued.with_optimizer(saved, state)


@pytest.mark.parametrize(
  'init, text',
  [
    ('{}@45', 'rl has no checkpoint of step 45; there are those of 20, 40'),
    ('{}/pretrain@1', 'pretrain has no checkpoint of step 1'),
    ('{}/nothing@40', 'there is no folder'),
    ('{}/rl/checkpoints@40', 'holds no checkpoint'),
    ('gs://bucket/a@40', 'checkpoints are not read from a bucket'),
  ],
)
def test_a_step_that_is_not_there_is_one_line(init, text, runs):
  with pytest.raises(UserError) as error:
    run.check(replace(_CONFIG, {'init': init.format(runs)}))
  assert text in str(error.value) and '\n' not in str(error.value)


def test_another_model_is_refused_before_anything_is_read(runs):
  config = replace(
    _CONFIG, {'init': f'{runs}@40', 'model.intermediate_size': 48}
  )
  with pytest.raises(
    UserError,
    match='is of another model: model.intermediate_size is 32 there and 48',
  ):
    run.check(config)


def test_a_broken_checkpoint_is_refused(runs, parts, tmp_path):
  copy = shutil.copytree(runs, tmp_path / 'copy')
  path = next((copy / 'rl/checkpoints/40/state').rglob('d/*'))
  path.write_bytes(path.read_bytes()[:-1] + b'\0')
  saved = initial.saved_step(f'{copy}@40')
  with pytest.raises(UserError, match='@40. is broken: state/'):
    continued.load_params(saved, parts.model)


def test_other_names_with_an_at_sign_stay_what_they_are(tmp_path):
  assert initial.saved_step('hf://owner/name@1') is None
  assert initial.saved_step('weights.safetensors') is None
  (tmp_path / 'model@3').mkdir()
  assert initial.saved_step(f'{tmp_path}/model@3') is None


def test_one_file_stands_for_the_checkpoint_in_the_record_of_inputs(runs):
  config = replace(_CONFIG, {'init': f'{runs}@40', 'stages': ('rl',)})
  path = inputs.files_of(config)['init']
  assert path == runs / 'rl/checkpoints/40/files.json'


def test_an_optimizer_needs_a_checkpoint(runs):
  config = replace(_CONFIG, {'init_optimizer': True})
  with pytest.raises(UserError, match='init_optimizer = True has no effect'):
    effects.check(config, ())
  effects.check(replace(config, {'init': f'{runs}@40', 'stages': ('rl',)}), ())


@pytest.mark.slow
def test_a_run_from_a_checkpoint_goes_on_with_its_moments(
  environment, tmp_path
):
  """Moments make its first step another one, and its lineage names both."""
  train = lambda name, *args: run_command(
    environment, 'train', SMALL, f'--workdir={tmp_path / name}', *args
  )
  train('a')
  norms = {}
  for name, moments in (('fresh', 'False'), ('moments', 'True')):
    train(
      name,
      "--config.stages=('rl',)",
      f'--config.init={tmp_path}/a@4',
      f'--config.init_optimizer={moments}',
      '--config.rl.max_steps=2',
    )
    norms[name] = weights.load(
      tmp_path / name / 'rl/model.safetensors', build.parts(_CONFIG).model
    )['embedding']
  assert not np.array_equal(norms['fresh'], norms['moments'])
  shown = run_command(environment, 'lineage', str(tmp_path / 'fresh')).stdout
  assert 'init (step 4) ← a (pretrain + rl' in shown and '!' not in shown
