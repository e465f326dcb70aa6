"""Which lists of stages a run may have, and which of them it runs."""

import pytest

from r1jax.config.load import replace
from r1jax.errors import UserError
from r1jax.runs import stage_list
from r1jax.stages.stage import Kind
from tests.configs import small
from tests.conftest import run_config


def _run(*stages: str, **changes):
  run = run_config(small.get_config())
  return replace(run, {'stages': stages} | changes)


@pytest.mark.parametrize(
  'stages',
  [
    ('pretrain', 'rl'),
    ('rl', 'sft'),
    ('sft', 'dpo', 'rl', 'reward_model'),
    ('pretrain', 'rl', 'rejection_sampling'),
  ],
)
def test_stages_follow_in_any_order_that_hands_on_a_policy(stages):
  stage_list.check_names(_run(*stages))


@pytest.mark.parametrize(
  'stages, message',
  [
    ((), 'is empty'),
    (('rl', 'rl'), 'names a stage twice'),
    (('pretrain', 'reward_modl'), "did you mean 'reward_model'"),
    (('rl', 'pretrain'), 'pretrain begins with random parameters: put it'),
    (('label_steps', 'sft', 'rl'), 'label_steps leaves no policy for sft'),
    (('pretrain', 'prm', 'rl'), 'prm leaves no policy for rl'),
  ],
)
def test_other_lists_are_refused(stages, message):
  with pytest.raises(UserError, match=f'^stages.*{message}'):
    stage_list.check_names(_run(*stages))


def test_the_base_is_made_where_init_names_it():
  assert stage_list.running(_run('pretrain', 'rl')) == ('pretrain', 'rl')
  assert stage_list.running(_run('pretrain', 'rl', init='shipped')) == ('rl',)
  assert stage_list.running(_run('pretrain', init='random')) == ('pretrain',)


def test_a_run_leaves_what_its_last_stage_does(tmp_path):
  run = _run('pretrain', 'rejection_sampling')
  assert stage_list.leaves(run) is Kind.SFT_DATA
  assert stage_list.output(run, tmp_path) == (
    tmp_path / 'rejection_sampling/accepted.jsonl'
  )
  pairs = replace(run, {'rejection_sampling.pairs': True})
  assert stage_list.leaves(pairs) is Kind.PREFERENCE_DATA
  assert stage_list.leaves(_run('prm')) is Kind.PRM
