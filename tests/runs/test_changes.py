"""Runs that go on with another config: what may change, and what is recorded."""

import dataclasses
import json

import pytest

from r1jax import registry
from r1jax.config.keys import record
from r1jax.config.load import replace
from r1jax.errors import UserError
from r1jax.runs import changes, lineage, run, workdir
from r1jax.stages import run_record
from tests.configs import small, small_pipeline
from tests.conftest import run_config
from tests.runs import toy
from tests.stages.conftest import SMALL
from tests.stages.conftest import run as run_command

_CONSTANT = {'rl.optimizer.lr_scheduler_type': 'constant'}


def _begun(place, config, step=4, stage='rl', finished=False):
  """A folder as a run leaves it that has saved a checkpoint of a step."""
  (place / stage / 'checkpoints' / str(step)).mkdir(parents=True)
  if finished:
    (place / stage / 'model.safetensors').write_bytes(b'weights')
  (place / 'config.json').write_text(json.dumps(record(config)))
  return config


def _small(**dotted):
  return replace(run_config(small.get_config()), _CONSTANT | dotted)


@pytest.mark.parametrize(
  'dotted',
  [
    {'rl.max_steps': 9},
    {'rl.max_steps': 4},
    {'rl.save_steps': 1, 'rl.save_total_limit': 5, 'rl.eval_steps': 2},
    {'eval.num_problems': 4, 'eval.temperature': 1.0},
    # The sampler is as wide as before: 16 of an evaluation, 20 of a step.
    {'eval.num_problems': 4, 'eval.num_samples': 4},
    {'pretrain.logging_steps': 3},
  ],
)
def test_a_run_may_go_on_with(dotted, tmp_path):
  config = _begun(tmp_path, _small())
  workdir.check(tmp_path, replace(config, dotted))


@pytest.mark.parametrize(
  'before, dotted, text',
  [
    ({}, {'rl.kl_coef': 0.5}, 'rl.kl_coef is 0.001 there and 0.5 here; use'),
    ({}, {'rl.max_steps': 3}, 'here: so many steps of rl were made: 4'),
    (
      {'rl.optimizer.lr_scheduler_type': 'cosine'},
      {'rl.max_steps': 9},
      'rl.max_steps is 6 there and 9 here: rl.optimizer.lr_scheduler_type = '
      "'cosine' ends with the last step",
    ),
    (
      {'rl.one_step_off_policy': True, 'rl.max_steps': 4},
      {'rl.max_steps': 9},
      'step 4 was the last one, which sampled nothing for a next one',
    ),
    ({}, {'pretrain.max_steps': 9}, 'rl has begun with the weights'),
    (
      {'init': 'random'},
      {'pretrain.max_steps': 9},
      'pretrain.max_steps is 4 there and 9 here; use',
    ),
    (
      {},
      {'eval.num_problems': 64},
      'it makes the sampler 128 sequences wide in place of 20',
    ),
  ],
)
def test_a_run_may_not_go_on_with(before, dotted, text, tmp_path):
  pretrain = {'pretrain.optimizer.lr_scheduler_type': 'constant'}
  config = _begun(tmp_path, _small(**(pretrain | before)))
  with pytest.raises(UserError) as error:
    workdir.check(tmp_path, replace(config, dotted))
  assert text in str(error.value) and '\n' not in str(error.value)


def test_epochs_grow_until_the_last_one_ends(tmp_path):
  """The last batch is filled up where the next epoch would have begun."""
  sft = {'stages': ('sft',), 'sft.data': ('arithmetic:8',)}
  config = _begun(tmp_path, _small(**sft), stage='sft')
  more = replace(config, {'sft.num_train_epochs': 3})
  workdir.check(tmp_path, more)
  with pytest.raises(UserError, match='1 here: it may only grow'):
    workdir.check(tmp_path, replace(config, {'sft.num_train_epochs': 1}))
  (tmp_path / 'sft/model.safetensors').write_bytes(b'weights')
  with pytest.raises(UserError, match='sft is finished, and its last batch'):
    workdir.check(tmp_path, more)


def test_a_schedule_of_the_mtp_loss_depends_on_the_number_of_steps(tmp_path):
  """V3 lowers the weight after 68 % of the steps."""
  dotted = {
    'stages': ('pretrain',),
    'model.num_nextn_predict_layers': 1,
    'pretrain.optimizer.lr_scheduler_type': 'constant',
  }
  config = _begun(tmp_path, _small(**dotted), stage='pretrain')
  with pytest.raises(UserError, match='pretrain.mtp.switch_fraction counts'):
    workdir.check(tmp_path, replace(config, {'pretrain.max_steps': 9}))
  whole = replace(config, {'pretrain.mtp.switch_fraction': 1.0})
  (tmp_path / 'config.json').write_text(json.dumps(record(whole)))
  workdir.check(tmp_path, replace(whole, {'pretrain.max_steps': 9}))


def test_changes_are_recorded_once_and_reopen_a_finished_stage(tmp_path):
  config = _begun(tmp_path, _small(), 6, finished=True)
  digest = run_record.config_digests(tmp_path)
  more = replace(config, {'rl.max_steps': 9, 'rl.save_steps': 1})
  before = (tmp_path / 'config.json').read_bytes()
  changes.apply(tmp_path, more)
  assert not (tmp_path / 'rl/model.safetensors').exists()
  after = (tmp_path / 'config.json').read_bytes()
  (tmp_path / 'config.json').write_bytes(before)  # As a kill would leave it.
  changes.apply(tmp_path, more)
  assert (tmp_path / 'config.json').read_bytes() == after
  assert run_record.changes(tmp_path) == [
    {
      'stage': 'rl',
      'after_step': 6,
      'config_sha256': digest[0],
      'changed': {'rl.max_steps': [6, 9], 'rl.save_steps': [2, 1]},
    }
  ]
  assert run_record.config_digests(tmp_path)[1:] == digest
  changes.apply(tmp_path, more)
  assert len(run_record.changes(tmp_path)) == 1


def test_a_free_key_that_an_older_record_lacks_is_as_its_default(tmp_path):
  config = _small()
  _begun(tmp_path, config)
  theirs = record(config)
  del theirs['rl']['num_logged_completions']
  (tmp_path / 'config.json').write_text(json.dumps(theirs))
  default = replace(config, {'rl.num_logged_completions': 8})
  assert changes.found(tmp_path, default, '') == {}
  other = replace(config, {'rl.num_logged_completions': 3})
  assert changes.found(tmp_path, other, '') == {
    'rl.num_logged_completions': (None, 3)
  }


def test_a_broken_record_of_changes_is_one_line(tmp_path):
  _begun(tmp_path, _small())
  (tmp_path / 'changes.jsonl').write_text('{"stage": "rl"}\n')
  with pytest.raises(UserError, match='changes.jsonl is broken'):
    run_record.config_digests(tmp_path)


@pytest.fixture(scope='module')
def toy_config():
  registry.load_plugins(tuple(toy.get_config().plugins))
  return replace(run_config(toy.get_config()), {'toy.step_secs': 0.0})


def _train(config, place):
  return run.train(config, str(place)).read_bytes()


def test_a_grown_run_is_the_one_that_had_all_steps_from_the_start(
  toy_config, tmp_path, monkeypatch
):
  """Ten steps, and then ten more, with other checkpoints: twenty steps."""
  # The toy has a weight of its own.
  monkeypatch.setattr(run, 'base_params', lambda config, parts: None)
  ten, twenty = (
    replace(toy_config, {'toy.num_steps': n, 'toy.save_steps': save})
    for n, save in ((10, 5), (20, 4))
  )
  whole = _train(twenty, tmp_path / 'whole')
  first = _train(ten, tmp_path / 'grown')
  assert first != whole and _train(twenty, tmp_path / 'grown') == whole
  lines = [
    (tmp_path / name / 'toy/metrics.jsonl').read_bytes()
    for name in ('whole', 'grown')
  ]
  assert lines[0] == lines[1]
  shown = lineage.tree(tmp_path / 'grown')
  assert (
    '~ after step 10 of toy: toy.num_steps 10 → 20, toy.save_steps 5 → 4'
    in shown
  )
  with pytest.raises(UserError, match='so many steps of toy were made: 20'):
    _train(ten, tmp_path / 'grown')


def test_a_pipeline_does_not_skip_a_stage_that_grew(tmp_path):
  """Its children began with what it left, and are named."""
  from r1jax.runs import validate
  from r1jax.runs.pipeline_config import load_pipeline

  loaded = load_pipeline(small_pipeline.get_config())
  parent, child = loaded.stages[:2]
  config = loaded.runs[parent]
  stage = config.stages[-1]
  _begun(tmp_path / parent, config, stage=stage, finished=True)
  grown = replace(
    config, {f'{stage}.max_steps': getattr(config, stage).max_steps + 1}
  )
  bigger = dataclasses.replace(loaded, runs=loaded.runs | {parent: grown})
  (tmp_path / child).mkdir()
  (tmp_path / child / 'inputs.json').write_text('{}')
  parents = {child: {'init': parent}}
  validate._check_grown(loaded, tmp_path, parents)
  with pytest.raises(UserError, match=f'{child} began with what it left'):
    validate._check_grown(bigger, tmp_path, parents)


@pytest.mark.slow
def test_a_grown_rl_run_equals_one_that_was_never_shorter(
  environment, tmp_path
):
  """Four steps and two more are six, with the same lines at the same steps."""
  args = (
    SMALL,
    '--config.rl.optimizer.lr_scheduler_type=constant',
    '--config.rl.eval_steps=2',
  )
  for name, steps in (('whole', 6), ('grown', 4), ('grown', 6)):
    run_command(
      environment,
      'train',
      *args,
      f'--config.rl.max_steps={steps}',
      f'--workdir={tmp_path / name}',
    )
  for file in ('rl/metrics.jsonl', 'rl/model.safetensors'):
    whole, grown = (tmp_path / name / file for name in ('whole', 'grown'))
    assert whole.read_bytes() == grown.read_bytes()
