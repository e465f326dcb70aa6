"""What a pipeline refuses before anything runs."""

import json
from pathlib import Path

from ml_collections import ConfigDict
import pytest

from r1jax.errors import UserError
from r1jax.runs import (
  compatibility,
  lineage,
  pipeline,
  stage_list,
  validate,
  workdir,
)
from r1jax.runs.pipeline_config import load_pipeline, resolved
from tests.configs import small_judged, small_pipeline, small_process


def _number(config):
  del config['cold_start']
  config.cold_start = 3


def _validate(config, place, names=None):
  loaded = load_pipeline(config)
  validate.check(loaded, place, names or loaded.stages)


def _check(tmp_path, change, names=None):
  config = small_pipeline.get_config()
  with config.unlocked():
    change(config)
  _validate(config, tmp_path, names)


def _set(path, value):
  def change(config):
    *keys, last = path.split('.')
    for key in keys:
      config = config[key]
    with config.unlocked():
      config[last] = value

  return change


@pytest.mark.parametrize(
  'change, message',
  [
    (_set('stages', ()), 'is empty, or names one twice'),
    (_set('stages', ('base', 'bass')), "unknown 'bass'; did you mean 'base'"),
    (
      _set('evaluations', ('arithmetics',)),
      "evaluations: task: unknown 'arithmetics'; did you mean 'arithmetic'",
    ),
    (
      _set('reasoning.init', '@warm'),
      "reasoning.init names 'warm', which is no stage",
    ),
    (
      _set('cold_start.init', '@reasoning'),
      'wait for each other: cold_start ← reasoning ← cold_start',
    ),
    (
      _set('stages', ('base', 'reasoning', 'cold_start', 'kept', 'student')),
      'reasoning.init needs cold_start, which comes after',
    ),
    (_set('reasoning.init', '@kept'), 'wait for each other'),
    (
      _set('student.init', '@kept'),
      'student.init needs a policy, but kept leaves demonstrations',
    ),
    (
      _set('student.sft.data', ('@base',)),
      'student.sft.data[0] needs demonstrations, but base leaves a policy',
    ),
    (
      _set('reasoning.model.hidden_size', 32),
      'model.hidden_size is 16 in cold_start and 32 in reasoning',
    ),
    (
      _set('reasoning.tokenizer.source', 'character'),
      "cold_start has the tokenizer 'bilingual', reasoning 'character'",
    ),
    (
      _set('cold_start.sft.data', ('arithmetics:3',)),
      'cold_start: sft: data: '
      'arithmetics is no task, of which there are arithmetic, ',
    ),
    (_set('cold_start.sft.data', ('rows.jsonl',)), 'cold_start: data: no rows'),
    (
      _set('reasoning.rl.group_size', 1),
      'reasoning: rl.group_size = 1 must be',
    ),
    (
      _set('kept.stages', ('rejection_sampling', 'rl')),
      'kept: stages: rejection_sampling leaves no policy for rl',
    ),
    (_set('evaluations', None), 'the config needs evaluations, tasks that'),
    (_set('stages', ('base', 3)), 'pipeline: stage: unknown 3'),
    (
      _number,
      'cold_start must be the config of a run, with all keys of '
      'r1jax.config.base; it is int',
    ),
    (
      _set('cold_start.init', '@base:3'),
      "cold_start.init = '@base:3': only data have a weight",
    ),
    (_set('cold_start.init', ''), "cold_start: init: '' is neither 'shipped'"),
    (_set('cold_start.init', 'rl'), "cold_start: init: 'rl' is neither"),
    (
      _set('cold_start.data.system', '@base'),
      'cold_start.data.system takes nothing from another stage',
    ),
    # Of stages whose own inputs are still to come.
    (
      _set('student.sft.distillation_alpha', 1.5),
      'student: sft.distillation_alpha = 1.5 must be',
    ),
    (
      _set('student.sft.batch_size', 7),
      'student: sft.batch_size = 7 does not divide',
    ),
    (
      _set('student.sft.length_tokens', 4096),
      'student: sft.length_tokens = 4096 exceeds',
    ),
    (
      _set('student.sft.data', ('@kept', 'rows.jsonl')),
      'student: data: no rows.jsonl',
    ),
    (_set('student.sft.data', ('@kept', 'gsm8k')), 'student: data: no gsm8k'),
    (
      _set('student.sft.data', ('@kept', 'manners')),
      'student: sft: data: say how many of manners',
    ),
    (_set('student.sft.data', ()), 'student: sft: data names nothing'),
    (
      _set('student.sft.optimizer.lr_scheduler_type', 'lin'),
      "student: sft.optimizer.lr_scheduler_type = 'lin' must be one of",
    ),
    (
      _set('student.sft.optimizer.max_grad_norm', -1.0),
      'student: sft.optimizer.max_grad_norm = -1.0 must be above 0',
    ),
    (
      _set('student.sft.teacher_model', 'stored'),
      'student.sft.data[0]: sft.teacher_model = '
      "'stored', but kept.rejection_sampling.extra_data brings rows without a teacher",
    ),
    (
      _set('student.sft.data', (3,)),
      'student: sft.data = (3,) must be of type tuple of str',
    ),
    (
      _set('kept.rejection_sampling.num_prompts', -1),
      'kept: rejection_sampling.num_prompts = -1 must be at least 0',
    ),
    (
      _set('kept.rejection_sampling.num_prompts', 0),
      'kept: rejection_sampling: num_prompts = 0 takes all of a dataset, but these have no end',
    ),
    (
      _set('kept.rejection_sampling.max_reasoning_rows', -2),
      'kept: rejection_sampling.max_reasoning_rows = -2 must be',
    ),
  ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
  tmp_path, change, message
):
  with pytest.raises(UserError) as caught:
    _check(tmp_path, change)
  assert message in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'path, value, message',
  [
    (
      'reasoning.rl.reward_models.helpful',
      '',
      'reasoning: reward: helpful has a weight, but no model',
    ),
    ('reasoning.rl.group_size', 1, 'reasoning: rl.group_size = 1 must be'),
    ('reasoning.data.task', 'gsm', "reasoning: data.task: unknown 'gsm'"),
    (
      'reasoning.rl.optimizer.lr_scheduler_type',
      'lin',
      "reasoning: rl.optimizer.lr_scheduler_type = 'lin' must be one of",
    ),
    (
      'reasoning.rl.reward.accuracy',
      float('nan'),
      'reasoning: rl.reward.accuracy = nan must be a number',
    ),
    (
      'kept.rejection_sampling.min_language',
      2.0,
      'kept: rejection_sampling.min_language = 2.0 must be',
    ),
    (
      'kept.rejection_sampling.extra_data',
      ('rows.jsonl',),
      'kept: data: no rows.jsonl',
    ),
    (
      'reasoning.rl.reward_models.safe',
      'rows.safetensors',
      'reasoning: rl.reward_models.safe: no file rows.safetensors',
    ),
    ('helpful.model.scalar_head', False, 'helpful: reward_model: model.scalar'),
    ('liked.dpo.beta', 0.0, 'liked: dpo.beta = 0.0 must be above 0'),
  ],
)
def test_numbers_are_checked_though_a_reward_model_is_still_to_come(
  tmp_path, path, value, message
):
  with pytest.raises(UserError) as caught:
    config = small_judged.get_config()
    _set(path, value)(config)
    _validate(config, tmp_path)
  assert message in str(caught.value)


def test_a_process_reward_model_reads_as_far_as_a_run_may_write(tmp_path):
  config = small_process.get_config()
  config.policy.rl.reward_models.prm = '@prm'
  reads = config.prm.prm.max_tokens
  config.policy.rl.max_new_tokens = reads
  _refused(config, tmp_path, f'prm: prm reads {reads} tokens, fewer than')
  config.policy.stages = ('sft',)
  config.policy.sft.data = ('arithmetic:8',)
  config.policy.rl.reward_models.prm = ''
  config.policy.eval.search.process_reward_model = '@prm'
  _refused(config, tmp_path, f'model: prm reads {reads} tokens, fewer than')


@pytest.mark.parametrize(
  'path, value, message',
  [
    (
      'cold_start.rl.max_new_tokens',
      4000,
      'pipeline: cold_start: data.max_'
      'prompt_tokens = 16 and rl.max_new_tokens = 4000 exceed',
    ),
    (
      'base.eval.temperature',
      -1.0,
      'pipeline: base: eval.temperature = -1.0 must be',
    ),
    (
      'student.rollout.block_size',
      0,
      'pipeline: student: rollout.block_size = 0 must be',
    ),
    ('evaluations', ('math500',), 'pipeline: base: data: no math/math500'),
  ],
)
def test_what_measures_a_policy_is_checked_before_it_is_made(
  tmp_path, monkeypatch, path, value, message
):
  monkeypatch.delenv('R1JAX_DATA', raising=False)
  config = small_pipeline.get_config()
  _set(path, value)(config)
  with pytest.raises(UserError) as caught:
    pipeline.train(load_pipeline(config), str(tmp_path))
  assert message in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_an_old_evaluation_hides_no_error(tmp_path):
  """Of a stage whose output is gone."""
  config = small_pipeline.get_config()
  config.base.rl.max_new_tokens = 4000
  _claim(config, tmp_path, 'base')
  old = tmp_path / 'base/evaluation.json'
  old.write_text('{"arithmetic/pass@1": 0.5, "manners/quality": 0.5}')
  with pytest.raises(
    UserError, match='base: .* rl.max_new_tokens = 4000 exceed'
  ):
    pipeline.train(load_pipeline(config), str(tmp_path))
  assert old.exists()


def test_a_reward_model_may_begin_a_critic_whatever_it_reads(tmp_path):
  config = small_process.get_config()
  config.policy.rl.adv_estimator = 'gae'
  config.policy.rl.ppo.critic_init = '@prm'
  config.prm.prm.max_tokens = 16
  runs = load_pipeline(config).runs
  compatibility.check_fit(
    'policy', runs['policy'], 'rl.ppo.critic_init', 'prm', runs['prm']
  )


def test_accepted_rows_are_no_policy_to_start_from(tmp_path):
  config = small_pipeline.get_config()
  config.stages = ('base', 'cold_start', 'reasoning', 'kept', 'more')
  with config.unlocked():
    config.more = config.kept.copy_and_resolve_references()
  config.more.init = '@kept'
  _refused(config, tmp_path, 'more.init needs a policy, but kept leaves demons')


def test_a_reward_model_may_go_on_where_another_one_ended(tmp_path):
  config = small_judged.get_config()
  config.stages = ('base', 'helpful', 'safe')
  config.safe.init = '@helpful'
  _validate(config, tmp_path)


def test_a_base_may_be_that_of_an_earlier_stage(tmp_path, monkeypatch):
  """Both have one config, so the second finds what the first has kept."""
  monkeypatch.setenv('R1JAX_CACHE', str(tmp_path / 'cache'))
  config = small_pipeline.get_config()
  config.stages = ('base', 'reasoning')
  config.reasoning.init = 'pretrain'
  _validate(config, tmp_path / 'runs')


def _finished(place: Path, *names: str) -> ConfigDict:
  """A pipeline of which some stages have left something, and its record."""
  config = small_pipeline.get_config()
  for name in names:
    _make(config, place, name, name.encode())
  return config


def _claim(config: ConfigDict, place: Path, name: str):
  run = load_pipeline(config).runs[name]
  workdir.Workdir(str(place / name), run)


def _make(config: ConfigDict, place: Path, name: str, content: bytes):
  loaded = load_pipeline(config)
  run = loaded.runs[name]
  _claim(config, place, name)
  output = stage_list.output(run, place / name)
  output.parent.mkdir(exist_ok=True)
  output.write_bytes(content)
  (place / name / lineage.FILE).unlink(missing_ok=True)
  lineage.write(place / name, resolved(run, loaded, place), output)


def _refused(config, place: Path, message: str):
  with pytest.raises(UserError) as caught:
    _validate(config, place)
  assert message in str(caught.value)


def test_what_finished_stages_left_is_looked_at_again(tmp_path):
  config = _finished(tmp_path, 'base', 'cold_start', 'reasoning')
  config.stages = config.stages[:3]
  _validate(config, tmp_path)
  output = tmp_path / 'cold_start/sft/model.safetensors'
  output.write_bytes(b'something else')
  _refused(
    config,
    tmp_path,
    f'{output} is not what cold_start left, by its '
    'lineage.json; put that back, or remove',
  )
  _make(config, tmp_path, 'cold_start', b'made again')
  _refused(
    config,
    tmp_path,
    'reasoning was made from another cold_start '
    f'(init) than the one that is there now; remove {tmp_path}',
  )


def test_data_that_were_made_again_are_found_out(tmp_path):
  config = _finished(
    tmp_path, 'base', 'cold_start', 'reasoning', 'kept', 'student'
  )
  _make(config, tmp_path, 'kept', b'{}')
  with pytest.raises(
    UserError,
    match=r'student was made from another kept \('
    r'sft.data\)',
  ):
    validate.check_sources(load_pipeline(config), tmp_path)


def test_what_a_run_does_not_come_from_may_be_broken(tmp_path):
  config = _finished(
    tmp_path, 'base', 'cold_start', 'reasoning', 'kept', 'student'
  )
  (tmp_path / 'reasoning/rl/model.safetensors').unlink()
  (tmp_path / 'student/sft/model.safetensors').write_bytes(b'torn')
  _validate(config, tmp_path, ('reasoning',))


@pytest.mark.parametrize(
  'text',
  [
    '{"stages": [',
    '[]',
    '{"stages": ["rl"], "inputs": {}}',
    '{"stages": [], "config_sha256": "", "commit": "", "inputs": {"init": 3}, '
    '"output": {"path": "", "sha256": ""}}',
  ],
)
def test_a_broken_record_is_named(tmp_path, text):
  config = _finished(tmp_path, 'base')
  (tmp_path / 'base/lineage.json').write_text(text)
  _refused(config, tmp_path, f'lineage: {tmp_path}/base/lineage.json is broken')


def test_a_broken_evaluation_is_named(tmp_path):
  config = _finished(tmp_path, 'base')
  (tmp_path / 'base/evaluation.json').write_text('[0.5')
  with pytest.raises(UserError, match='evaluation.json is broken .* remove it'):
    pipeline.train(load_pipeline(config), str(tmp_path))


def test_folders_of_later_stages_are_looked_at_first(tmp_path):
  config = _finished(tmp_path, 'base')
  (tmp_path / 'kept').mkdir()
  (tmp_path / 'kept/notes.txt').write_text('mine')
  _refused(config, tmp_path, f'{tmp_path}/kept is not empty and holds no run')
  (tmp_path / 'kept/notes.txt').unlink()
  _claim(config, tmp_path, 'kept')
  (tmp_path / 'kept/rejection_sampling').write_text('mine')
  _refused(
    config, tmp_path, f'{tmp_path}/kept/rejection_sampling is a file; remove'
  )
  _refused(
    config,
    tmp_path / 'kept/rejection_sampling',
    'rejection_sampling is a file; use another',
  )
  (tmp_path / 'kept/rejection_sampling').unlink()
  config.base.pretrain.max_steps += 1
  _refused(
    config,
    tmp_path,
    f'remove {tmp_path}/base to make it again, or use another --workdir',
  )


def test_a_key_that_is_newer_than_a_run_changes_nothing_while_it_is_off(
  tmp_path,
):
  config = _finished(tmp_path, 'base')
  record = tmp_path / 'base/config.json'
  fields = json.loads(record.read_text())
  del fields['rejection_sampling']['pairs']
  record.write_text(json.dumps(fields))
  _validate(config, tmp_path)
  config.base.rejection_sampling.pairs = True
  _refused(
    config, tmp_path, 'rejection_sampling.pairs is absent there and True here'
  )


def test_a_stage_alone_waits_for_its_parents(tmp_path):
  with pytest.raises(
    UserError, match='cold_start.init needs base, which has not been run'
  ):
    _check(tmp_path, lambda config: None, ('cold_start',))
  config = small_pipeline.get_config()
  loaded = load_pipeline(config)
  assert pipeline.chosen(loaded, '', 'kept') == ('kept', 'student')
  assert pipeline.chosen(loaded, 'kept', '') == ('kept',)
  with pytest.raises(UserError, match="unknown 'keep'; did you mean 'kept'"):
    pipeline.chosen(loaded, 'keep', '')
