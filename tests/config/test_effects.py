"""Keys that a config sets in vain are refused, or warned of, by name."""

import logging

import pytest

from r1jax.cli import config_file
from r1jax.config import algorithms, base, effects, models
from r1jax.config.conditions import Severity
from r1jax.config.field import walk
from r1jax.config.load import load, replace
from r1jax.config.schema.run import RunConfig
from r1jax.configs import pipeline_algorithms_tiny, pipeline_r1_tiny
from r1jax.errors import UserError
from r1jax.runs.pipeline_config import load_pipeline


def _run(changes: dict) -> RunConfig:
  """A run of the stage rl with some keys changed."""
  return replace(RunConfig(), {'stages': ('rl',)} | changes)


def _idle(changes: dict) -> dict[str, Severity]:
  return {each.key: each.severity for each in effects.idle_keys(_run(changes))}


# Each: keys, and those among them that have no effect.
@pytest.mark.parametrize(
  'changes, idle',
  [
    # Data beside a task or a stage that does not read them.
    ({'data.path': 'mine.jsonl'}, 'data.path'),
    ({'data.eval_path': 'mine.jsonl'}, 'data.eval_path'),
    ({'data.path': 'a.jsonl', 'data.task': 'countdown'}, 'data.path'),
    ({'stages': ('sft',), 'data.path': 'a', 'data.task': 'math'}, 'data.path'),
    ({'stages': ('dpo',), 'data.mixture': ('math',)}, 'data.mixture'),
    ({'stages': ('sft',), 'data.decontaminate': ('math500',)}, 'decontaminate'),
    ({'data.mixture_temperature': 2.0}, 'data.mixture_temperature'),
    ({'data.min_pass_rate': 0.2}, 'data.min_pass_rate'),
    ({'stages': ('pretrain',), 'init': 'base.safetensors'}, 'init'),
    ({'dpo.eval_share': 0.2, 'dpo.eval_data': ('a',)}, 'dpo.eval_share'),
    ({'dpo.eval_share': 0.2, 'dpo.data': ('manners:9',)}, 'dpo.eval_share'),
    ({'data.max_bad_row_share': 0.1}, 'data.max_bad_row_share'),
    (
      {
        'stages': ('pretrain', 'rl'),
        'init': 'shipped',
        'pretrain.max_steps': 9,
      },
      'pretrain.max_steps',
    ),
    # Keys of another algorithm.
    ({'rl.ppo.lam': 0.95}, 'rl.ppo.lam'),
    ({'rl.adv_estimator': 'rloo', 'rl.ppo.gamma': 0.9}, 'rl.ppo.gamma'),
    ({'rl.ppo.critic_init': 'critic'}, 'rl.ppo.critic_init'),
    ({'rl.adv_estimator': 'gae', 'rl.ppo.vf_coef': 1.0}, 'rl.ppo.vf_coef'),
    ({'rl.policy_loss': 'cispo', 'rl.delta': 4.0}, 'rl.delta'),
    ({'rl.policy_loss': 'cispo', 'rl.clip_ratio_low': 0.1}, 'clip_ratio_low'),
    ({'rl.rollout_is_threshold': 4.0}, 'rl.rollout_is_threshold'),
    ({'rl.rollout_is_level': 'sequence'}, 'rl.rollout_is_level'),
    ({'rl.max_staleness': 3}, 'rl.max_staleness'),
    ({'rl.dynamic_sampling_max_rounds': 8}, 'dynamic_sampling_max_rounds'),
    ({'rl.kl_in_reward': True, 'rl.kl_importance_weighted': True}, 'weighted'),
    ({'rl.optimizer.min_lr_ratio': 0.5}, 'rl.optimizer.min_lr_ratio'),
    ({'sft.distillation_temperature': 2.0}, 'sft.distillation_temperature'),
    ({'dpo.group_dro_step_size': 0.1}, 'dpo.group_dro_step_size'),
    # Rewards without a weight, and prompts that nothing makes.
    ({'rl.reward_models.helpful': 'rm'}, 'rl.reward_models.helpful'),
    ({'rl.reward_models.prm': 'prm'}, 'rl.reward_models.prm'),
    ({'rl.overlong_buffer_tokens': 100}, 'rl.overlong_buffer_tokens'),
    ({'rl.repetition_n': 3}, 'rl.repetition_n'),
    ({'rl.prm_aggregation': 'mean'}, 'rl.prm_aggregation'),
    ({'rl.general_reward': {'language': 1.0}}, 'rl.general_reward'),
    ({'rl.general_prompts_after_steps': 9}, 'rl.general_prompts_after_steps'),
    (
      {'stages': ('rejection_sampling',), 'rejection_sampling.min_score': 0.5},
      'rejection_sampling.min_score',
    ),
    # A model of another kind.
    ({'model.rope.factor': 40.0}, 'model.rope.factor'),
    ({'model.rope.low_freq_factor': 2.0}, 'model.rope.low_freq_factor'),
    ({'model.num_key_value_heads': 8}, 'model.num_key_value_heads'),
    ({'model.qkv_bias': True}, 'model.qkv_bias'),
    # Nothing to follow, or off.
    ({'rl.kl_coef': 0.0, 'rl.kl_estimator': 'k1'}, 'rl.kl_estimator'),
    ({'rl.kl_coef': 0.0, 'rl.ref_model_sync_steps': 4}, 'ref_model_sync_steps'),
    ({'pretrain.max_steps': 30}, 'pretrain.max_steps'),
    ({'sft.data': ('rows.jsonl',)}, 'sft.data'),
    ({'corpus.slip_rate': 0.2}, 'corpus.slip_rate'),
    ({'eval.search.c_puct': 2.0}, 'eval.search.c_puct'),
    ({'eval.search.kind': 'mcts'}, 'eval.search.kind'),
    # Stages that do not sample, or do not evaluate, or do not split steps.
    ({'stages': ('sft',), 'rl.max_new_tokens': 64}, 'rl.max_new_tokens'),
    ({'stages': ('dpo',), 'data.max_prompt_tokens': 64}, 'max_prompt_tokens'),
    ({'stages': ('prm',), 'rollout.block_size': 8}, 'rollout.block_size'),
    ({'stages': ('pretrain',), 'rollout.speculative': True}, 'speculative'),
    ({'stages': ('label_steps',), 'eval.num_samples': 2}, 'eval.num_samples'),
    ({'stages': ('sft',), 'eval.pass_k': (1,)}, 'eval.pass_k'),
    ({'stages': ('sft',), 'data.task': 'countdown'}, 'data.task'),
    (
      {'stages': ('rejection_sampling',), 'data.mixture': ('countdown',)}
      | {'data.task': 'manners'},
      'data.task',
    ),
    (
      {'stages': ('sft',), 'data.task': 'math', 'data.eval_path': 'a'},
      'data.eval_path',
    ),
    ({'data.step_delimiter': '.'}, 'data.step_delimiter'),
    ({'stages': ('label_steps',), 'model.remat': 'none'}, 'model.remat'),
    ({'init': 'shipped', 'model.initializer_range': 0.1}, 'initializer_range'),
    # Programs that no prompt asks for.
    ({'rl.code_partial_credit': True}, 'rl.code_partial_credit'),
    ({'data.task': 'gsm8k', 'data.code_packages': ('numpy',)}, 'code_packages'),
    # Switches whose other end is off.
    ({'eval.temperature': 0.0, 'eval.top_p': 0.5}, 'eval.top_p'),
    ({'data.template': 'chat', 'tokenizer.add_bos_token': True}, 'bos_token'),
    ({'rl.adv_estimator': 'rloo', 'rl.scale_rewards': False}, 'scale_rewards'),
    (
      {'stages': ('pretrain',), 'corpus.general_error_rate': 0.2},
      'corpus.general_error_rate',
    ),
    (
      {'stages': ('pretrain',), 'corpus.slip_rate': 0.0}
      | {'corpus.corrected_slip_share': 0.2},
      'corpus.corrected_slip_share',
    ),
    (
      {'stages': ('sft',), 'model.num_nextn_predict_layers': 1}
      | {'sft.mtp.final_loss_weight': 0.2},
      'sft.mtp.final_loss_weight',
    ),
    ({'model.first_k_dense_replace': 61, 'model.n_group': 4}, 'model.n_group'),
    (
      {'model.n_group': 1, 'model.topk_group': 1}
      | {'model.group_scoring': 'max'},
      'model.group_scoring',
    ),
    ({'eval.search.process_reward_model': 'p'}, 'process_reward_model'),
  ],
  ids=str,
)
def test_a_key_without_effect_is_found(changes, idle):
  found = effects.idle_keys(_run(changes), given=changes)
  assert [each.key for each in found if each.key.endswith(idle)], found
  assert all(each.severity is Severity.ERROR for each in found)


@pytest.mark.parametrize(
  'changes',
  [
    {'data.task': 'math', 'data.path': 'a', 'data.eval_path': 'b'},
    {'data.mixture': ('math:1', 'mbpp:2'), 'data.mixture_temperature': 2.0},
    {'data.pass_rates': 'rates.jsonl', 'data.max_pass_rate': 0.9},
    {'stages': ('rejection_sampling',), 'data.mixture': ('math',)},
    {
      'stages': ('sft',),
      'sft.data': ('arithmetic:8',),
      'corpus.slip_rate': 0.1,
    },
    {'stages': ('pretrain', 'rl'), 'corpus.slip_rate': 0.1},
    {'stages': ('dpo',), 'dpo.data': ('a.jsonl',), 'dpo.eval_share': 0.2},
    {'stages': ('sft',), 'sft.data': ('a',), 'data.max_bad_row_share': 0.1},
    {'data.task': 'math', 'data.max_bad_row_share': 0.1},
    {'stages': ('pretrain', 'rl'), 'pretrain.max_steps': 900},
    {'rl.adv_estimator': 'gae', 'rl.ppo.lam': 0.9},
    {'rl.adv_estimator': 'of_a_plugin', 'rl.ppo.gamma': 0.9},
    {'rl.policy_loss': 'of_a_plugin', 'rl.clip_ratio_low': 0.1},
    {'rl.oversample': 2.0, 'rl.max_staleness': 1},
    {
      'data.mixture': ('arithmetic:1', 'manners:1'),
      'rl.general_prompts_after_steps': 4,
      'rl.general_reward': {'helpful': 1.0},
      'rl.reward_models.helpful': 'rm',
    },
    {'rl.environment': 'of_a_plugin', 'rl.general_reward': {'format': 1.0}},
    {'rl.general_reward': {'format': 0.0, 'mine': 0.0}},
    {'rl.reward': {'mine': 1.0}, 'rl.reward_timeout_secs': 5.0},
    {'model.rope.rope_type': 'yarn', 'model.rope.factor': 40.0},
    {'stages': ('label_steps',), 'data.step_delimiter': '.'},
    {'data.task': 'mbpp', 'data.code_packages': ('numpy',)},
    {'data.mixture': ('mbpp:1', 'math:1'), 'rl.code_partial_credit': True},
    {'data.task': 'math', 'data.path': 'a', 'rl.code_partial_credit': True},
    {'data.template': 'r1_zero_brief', 'tokenizer.add_bos_token': True},
    {'stages': ('of_a_plugin',), 'rollout.block_size': 8, 'eval.top_p': 0.5},
    {'stages': ('sft',), 'sft.data': ('manners:9',)}
    | {'corpus.general_error_rate': 0.2},
    {'stages': ('of_a_plugin',), 'sft.data': ('a.jsonl',), 'data.path': ''},
  ],
  ids=str,
)
def test_a_key_with_an_effect_is_left_alone(changes):
  assert not _idle(changes)


def test_an_error_names_every_key_and_what_it_needs():
  with pytest.raises(UserError) as caught:
    effects.check(_run({'data.path': 'a.jsonl', 'rl.ppo.lam': 0.9}))
  text = str(caught.value)
  assert '\n' not in text
  assert (
    "data.path = 'a.jsonl' has no effect with data.task = 'arithmetic': it "
    'needs data.task to be a dataset, not a synthetic task; else leave it at '
    "''"
  ) in text
  assert "rl.ppo.lam = 0.9 has no effect with rl.adv_estimator = 'grpo'" in text


def test_a_section_of_another_stage_is_a_warning_and_an_error_if_given(
  caplog, monkeypatch
):
  run = _run({'sft.data': ('a',), 'sft.batch_size': 4, 'sft.length_tokens': 64})
  monkeypatch.setattr(logging.getLogger('r1jax'), 'propagate', True)
  effects.check(run)
  (message,) = [record.getMessage() for record in caplog.records]
  assert 'sft.data' in message and '(they need the stage sft)' in message
  with pytest.raises(UserError, match=r'sft.batch_size = 4 has no effect'):
    effects.check(run, given=('sft.batch_size',))


def test_settings_for_later_are_an_error_only_if_given():
  run = _run({'eval.search.c_puct': 2.0})
  effects.check(run)
  with pytest.raises(UserError, match='eval.search.c_puct = 2.0 has no effect'):
    effects.check_given(run, ('eval.search.c_puct',))
  effects.check_given(_run({'sft.batch_size': 4}), ('sft.batch_size',))


def test_a_search_is_of_eval_alone():
  search = {'eval.search.kind': 'mcts', 'eval.search.leaf_value': 'rule'}
  run = _run(search | {'data.step_delimiter': '.'})
  effects.check(run)  # The same file serves both commands.
  effects.check_given(run, [*search, 'data.step_delimiter'])
  with pytest.raises(UserError, match='it needs the command r1jax eval'):
    effects.check(run, given=['eval.search.kind'])


def test_evaluations_of_a_pipeline_read_keys_of_every_policy():
  changes = {'rollout.block_size': 8, 'eval.top_p': 0.5}
  changes |= {'data.code_packages': ('numpy',), 'data.step_delimiter': '.'}
  runs = {'tuned': _run({'stages': ('sft',)} | changes)}
  given = [f'tuned.{key}' for key in changes]
  with pytest.raises(UserError) as caught:
    effects.check_all(runs, given)
  assert all(f'{key} = ' in str(caught.value) for key in given)
  with pytest.raises(UserError) as caught:
    effects.check_all(runs, given, {'tuned': ('countdown', 'math')})
  assert 'data.code_packages' in str(caught.value)
  assert 'rollout' not in str(caught.value)
  with pytest.raises(UserError) as caught:
    effects.check_all(runs, given, {'tuned': ('math', 'mbpp')})
  assert 'data.step_delimiter' in str(caught.value)
  assert 'data.code_packages' not in str(caught.value)


def test_a_pipeline_may_share_a_key_that_has_an_effect_in_one_of_its_runs():
  config = pipeline_algorithms_tiny.get_config()
  runs = load_pipeline(config).runs
  assert effects.idle_keys(runs['dpo'])  # group_dro_step_size, of dpo_robust.
  effects.check_all(runs)
  config.dpo.dpo.group_dro_step_size = 0.3
  with pytest.raises(UserError) as caught:
    effects.check_all(load_pipeline(config).runs)
  assert 'dpo.dpo.group_dro_step_size = 0.3 has no effect' in str(caught.value)
  config = pipeline_r1_tiny.get_config()
  with pytest.raises(UserError, match='sft.data.mixture = .* has no effect'):
    config.sft.data.mixture = ('arithmetic:0.6', 'countdown:0.4')
    effects.check_all(load_pipeline(config).runs, given=('sft.data.mixture',))


@pytest.mark.parametrize(
  'preset', ['dapo', 'dr_grpo', 'bnpo', 'gspo', 'cispo', 'ppo', 'r1_zero']
)
def test_published_settings_have_an_effect(preset):
  config = base.get_config()
  config.stages = ('rl',)
  config.rl.update(getattr(algorithms, preset)())
  assert not effects.idle_keys(load(config, RunConfig))


@pytest.mark.parametrize(
  'size', ['deepseek_v3_yarn', 'qwen2_5_32b', 'qwen3_8b', 'llama3_1_8b']
)
def test_named_sizes_have_no_key_without_effect(size):
  config = base.get_config()
  config.model = getattr(models, size)()
  assert not effects.idle_keys(load(config, RunConfig))


def test_shipped_experiments_are_not_refused():
  for name, file in config_file.shipped_experiments().items():
    if name == 'imported':  # It needs the folder of a checkpoint.
      continue
    config = config_file.config_of_file(str(file))
    if 'model' in config:
      effects.check(load(config, RunConfig))
    else:
      effects.check_all(load_pipeline(config).runs)


def test_conditions_read_keys_that_exist():
  """Every condition can be asked of the defaults, and says what it needs."""
  run = RunConfig()
  for key, _, spec, _ in walk(run):
    parent = key.rpartition('.')[0]
    section = run
    for name in filter(None, parent.split('.')):
      section = getattr(section, name)
    for condition in spec.only_if:
      assert condition.holds(run, section) in (True, False), key
      assert condition.needs, key
