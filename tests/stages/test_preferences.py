"""Reward models and DPO as stages: outputs, resumed runs, refused configs."""

import json

import numpy as np
import pytest

from r1jax.checkpoints import weights
from r1jax.config.load import load, to_config_dict
from r1jax.config.schema.preferences import SyntheticPreferencesConfig
from r1jax.data import preferences, splits
from r1jax.errors import UserError
from r1jax.model import model_flops
from r1jax.runs import inputs, lineage, run, stage_list, validate
from r1jax.runs.pipeline_config import load_pipeline
from r1jax.stages.build import parts as build
from r1jax.stages.build import reward_models
from r1jax.stages.dpo import DPO
from r1jax.train import metrics
from r1jax.train.metrics import MetricsWriter
from tests.configs import small, small_judged
from tests.conftest import one_device, run_config
from tests.stages.conftest import rows
from tests.stages.conftest import run as process


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  """One device, in this process."""
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )


def _config(stage: str, **changes):
  config = small.get_config()
  config.stages = (stage,)
  config.init = 'random'
  config.model.update(scalar_head=stage == 'reward_model', num_hidden_layers=1)
  section = config[stage]
  section.update(
    dict(
      data=('manners:24',),
      batch_size=4,
      max_tokens=96,
      eval_steps=3,
      max_eval_rows=10,
      save_steps=2,
      logging_steps=1,
    )
  )
  section.synthetic_preferences.error_rate = 0.2
  section.optimizer.update(learning_rate=1e-2, warmup_steps=0)
  section.update(changes)
  return config


def _trained(config, workdir):
  return run.train(run_config(config), str(workdir))


@pytest.mark.parametrize('stage, passes', [('dpo', 4), ('reward_model', 3)])
def test_the_work_of_an_update(stage, passes):
  """DPO: a reference beside the update; a reward model has no output head."""
  config = run_config(_config(stage))
  parts = build.parts(config)
  params = run.base_params(config, parts)
  made = stage_list.stage_class(stage)(config, parts)
  made._base_params = params
  work = made.train_step(made.init_state(params), 1, made.data()).work['update']
  rows = made.rows(next(made.data()))
  used_BT = rows.segment_BT > 0
  lengths = [
    int((rows.segment_BT[b] == segment).sum())
    for b in range(len(used_BT))
    for segment in range(1, rows.segment_BT[b].max() + 1)
  ]
  info = model_flops.count(config.model)
  head_tokens = int(rows.mask_BT.sum()) if stage == 'dpo' else 0
  assert work.tokens == sum(lengths)
  assert work.flops == passes * (
    2 * (info.active - info.head) * sum(lengths)
    + 2 * info.head * head_tokens
    + info.attention_flops * sum(n * (n + 1) // 2 for n in lengths)
  )


@pytest.fixture(scope='module')
def reward_model(tmp_path_factory):
  """A trained reward model: its config, workdir and file."""
  patch = pytest.MonkeyPatch()
  patch.setattr(build.replicas, 'training_layout', lambda *_: one_device())
  config = _config('reward_model')
  workdir = tmp_path_factory.mktemp('runs') / 'helpful'
  weights_file = _trained(config, workdir)
  patch.undo()
  return run_config(config), workdir, weights_file


def test_a_reward_model_leaves_weights_that_score(reward_model):
  """Its metrics, and the mean and deviation that normalize its scores."""
  config, workdir, weights_file = reward_model
  lines = rows(workdir, 'reward_model')
  assert [line['step'] for line in lines] == list(range(7))
  assert lines[0]['eval/accuracy'] == 0.5  # A fresh head knows nothing.
  evaluated = [line for line in lines if 'eval/accuracy' in line]
  assert [line['step'] for line in evaluated] == [0, 3, 6]
  groups = {'greet', 'thank', 'bid'}
  for line in evaluated:
    assert line['eval/worst_group'] == min(
      line[f'eval/accuracy/{group}']
      for group in groups
      if f'eval/accuracy/{group}' in line
    )
  assert (workdir / 'reward_model' / 'curves.png').stat().st_size > 10000
  parts = build.parts(config)
  scorer = reward_models.load_reward_model(
    'key', str(weights_file), config, parts, 'helpful'
  )
  held_out = preferences.synthetic_pairs(
    SyntheticPreferencesConfig(0.2, 8.0), parts.template, splits.HELD_OUT, 0, 10
  )
  scores = np.array(
    [
      scorer.score([row.prompt] * 2, [row.chosen, row.rejected])
      for row in held_out
    ]
  )
  np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-3)
  accuracy = ((1 + np.sign(scores[:, 0] - scores[:, 1])) / 2).mean()
  np.testing.assert_allclose(accuracy, evaluated[-1]['eval/accuracy'])
  with pytest.raises(UserError, match="scores what is 'helpful', not what is "):
    reward_models.load_reward_model(
      'rl.reward_models.safe', str(weights_file), config, parts, 'safe'
    )


class _Killed(Exception):
  pass


@pytest.mark.slow
@pytest.mark.parametrize(
  'stage,changes',
  [
    ('reward_model', dict(kind='safe', row_tokens=96, microbatch_tokens=96)),
    ('dpo', dict(group_robust=True, group_dro_step_size=0.5)),
  ],
)
def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch, stage, changes):
  """Cut after step 3, of which step 2 was saved."""
  config = _config(stage, **changes)
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  _trained(config, whole)
  write = MetricsWriter.write

  def dies(self, step, values):
    write(self, step, values)
    if step == 3:
      raise _Killed

  monkeypatch.setattr(MetricsWriter, 'write', dies)
  with pytest.raises(_Killed):
    _trained(config, cut)
  monkeypatch.setattr(MetricsWriter, 'write', write)
  _trained(config, cut)
  assert rows(cut, stage) == rows(whole, stage)
  for name in ('metrics.jsonl', 'model.safetensors'):
    assert (cut / stage / name).read_bytes() == (
      whole / stage / name
    ).read_bytes()
  for line in metrics.read(whole / stage / 'performance.jsonl'):
    assert line['perf/update_tokens_per_sec_per_chip'] > 0
    assert 0 <= line['time/data'] and 0 < line['time/update']
  last = rows(whole, stage)[-1]
  assert last['skipped_updates'] == 0
  assert 0.2 < last['packing/efficiency'] <= 1
  if stage == 'dpo':
    alpha = {
      name: value
      for name, value in last.items()
      if name.startswith('group_weights/')
    }
    assert alpha.keys() == {
      'group_weights/bid',
      'group_weights/greet',
      'group_weights/thank',
    }
    np.testing.assert_allclose(sum(alpha.values()), 1, rtol=1e-5)
    assert len(set(alpha.values())) == 3
    # In the first step the policy is the reference still.
    np.testing.assert_allclose(
      rows(whole, stage)[1]['rewards/margins'], 0, atol=1e-5
    )
    # And is a policy: what evaluations and the next stage read.
    typed = run_config(config)
    run.trained_params(typed, build.parts(typed), str(whole))
  else:
    assert (
      weights.metadata(whole / stage / 'model.safetensors')['scoring']['kind']
      == 'safe'
    )
    typed = run_config(config)
    with pytest.raises(UserError, match='which is no policy'):
      run.trained_params(typed, build.parts(typed), str(whole))


def test_keys_of_padded_batches_are_unknown():
  for name in ('length_buckets', 'gradient_accumulation_steps'):
    values = run_config(_config('dpo'))
    config = to_config_dict(values).to_dict()
    config['dpo'][name] = 1
    with pytest.raises(UserError, match=f'dpo.{name} is unknown'):
      load(config, type(values))


def _rows_file(tmp_path, groups, name='rows.jsonl'):
  path = tmp_path / name
  path.write_text(
    ''.join(
      json.dumps(
        {'id': f'r{i}', 'question': f'{i}+1', 'chosen': 'a', 'rejected': 'b'}
        | ({'group': group} if group else {})
      )
      + '\n'
      for i, group in enumerate(groups)
    )
  )
  return str(path)


def _refused(config, match):
  with pytest.raises(UserError, match=match) as caught:
    run.check(run_config(config))
  assert '\n' not in str(caught.value)


def test_a_file_is_split_by_its_ids_and_is_in_the_lineage(tmp_path):
  path = _rows_file(tmp_path, ['x', 'y'] * 20)
  config = _config('dpo', data=(path,), eval_share=0.3, max_eval_rows=0)

  def datasets():
    typed = run_config(config)
    return DPO(typed, build.parts(typed))._datasets

  count = lambda batches: int(
    sum(batches[i].weight_P.sum() for i in range(len(batches)))
  )
  found = datasets()
  train, held_out = count(found.train), count(found.eval)
  assert train + held_out == 40 and 4 < held_out < 20
  assert sum(found.groups.values()) == train
  assert str(inputs.files_of(run_config(config))['dpo.data']) == path
  other = _rows_file(tmp_path, ['z'] * 6, 'other.jsonl')
  config.dpo.eval_data = (other,)
  found = datasets()
  assert count(found.train) == 40 and count(found.eval) == 6
  assert found.names == ('x', 'y', 'z')
  assert str(inputs.files_of(run_config(config))['dpo.eval_data']) == other


@pytest.mark.parametrize(
  'stage,changes,match',
  [
    ('reward_model', dict(kind='nice'), "kind = 'nice' must be one of"),
    (
      'reward_model',
      dict(kind='safe', margin=0.1),
      r'reward_model.margin = 0.1 is of pairs; kind = .safe. learns from',
    ),
    ('reward_model', dict(data=('manners',)), 'how many of manners, as in'),
    ('reward_model', dict(data=('arithmetic:9',)), 'has no preferences'),
    ('reward_model', dict(data=()), 'nothing to learn from'),
    ('reward_model', dict(data=('gsm8k',)), 'has answers, not preferences'),
    ('reward_model', dict(max_tokens=1), 'max_tokens = 1 must be at least 2'),
    (
      'reward_model',
      dict(max_tokens=256),
      'reward_model.max_tokens = 256 exceeds model.max_position_embeddings = 128',
    ),
    (
      'reward_model',
      dict(row_tokens=191),
      r'row_tokens = 191 is less than the longest pair, 2 × '
      r'reward_model.max_tokens = 192 tokens; raise it, or leave it at 0',
    ),
    (
      'reward_model',
      dict(kind='safe', row_tokens=95),
      'is less than the longest example, reward_model.max_tokens = 96',
    ),
    ('reward_model', dict(max_tokens=16), 'has .* tokens, more than 16'),
    ('reward_model', dict(eval_share=1.5), 'eval_share = 1.5 must be'),
    (
      'reward_model',
      dict(eval_steps=0),
      'reward_model.eval_steps = 0 must be at least 1',
    ),
    ('reward_model', dict(max_eval_rows=-1), 'max_eval_rows = -1 must be at'),
    ('dpo', dict(beta=0.0), 'dpo.beta = 0.0 must be above 0'),
    (
      'dpo',
      dict(row_tokens=200, microbatch_tokens=300),
      'dpo.microbatch_tokens = 300 is no multiple of 200 tokens',
    ),
    ('dpo', dict(max_tokens=60), 'has .* tokens, more than 60'),
  ],
)
def test_bad_numbers_and_data_are_refused(stage, changes, match):
  _refused(_config(stage, **changes), match)


def test_what_cannot_be_trained_on_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  config = _config('reward_model')
  config.model.scalar_head = False
  _refused(config, 'model.scalar_head is False')
  _refused(
    _config('reward_model', data=('hh_helpful',)),
    'hh_helpful_base_train.*evaluate on a share of its rows',
  )
  some = _rows_file(tmp_path, ['x', '', 'x', 'x'] * 9)
  _refused(
    _config('dpo', data=(some,), group_robust=True, eval_share=0.3),
    r"needs a 'group' in every row; .*rows.jsonl:\d+ has none",
  )
  one = _rows_file(tmp_path, ['x'] * 36)
  _refused(
    _config('dpo', data=(one,), group_robust=True, eval_share=0.3),
    'needs several groups, and there is 1',
  )
  _refused(_config('dpo', data=(one,), eval_share=0.0), 'no row is held out')
  config = _config('dpo')
  config.stages = ('reward_model', 'dpo')
  _refused(config, 'reward_model leaves no policy for dpo')


@pytest.mark.slow
def test_reward_models_score_rl_and_rejection_sampling(environment, tmp_path):
  """A base, two reward models, a policy by DPO, trained by RL on their scores
  and on rules, and its best responses: every run finds its input."""
  config = '--config=tests/configs/small_judged.py'
  process(environment, 'pipeline', config, f'--workdir={tmp_path}')
  for line in rows(tmp_path / 'reasoning')[1:]:
    assert np.isfinite([line['rewards/helpful/mean'], line['reward']]).all()
    assert 0 < line['rewards/safe/mean'] < 1
    assert 0 < line['verdict/unparsable'] <= 0.5  # Half the rows are general.
    assert line['skipped_updates'] == 0
  kept = [
    json.loads(line)
    for line in (tmp_path / 'kept/rejection_sampling/accepted.jsonl')
    .read_text()
    .splitlines()
  ]
  assert all('model' in row['provenance']['scores'] for row in kept)
  inputs = lineage.read(tmp_path / 'reasoning')['inputs']
  assert inputs['rl.reward_models.helpful']['run'] == '../helpful'
  assert inputs['rl.reward_models.safe']['run'] == '../safe'
  assert lineage.read(tmp_path / 'kept')['inputs'][
    'rejection_sampling.reward_model'
  ]['sha256']


def test_a_pipeline_checks_the_kind_that_a_key_takes(tmp_path):
  def refused(stage, key, value, match):
    config = small_judged.get_config()
    config[stage].update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=match):
      pipeline = load_pipeline(config)
      validate.check(pipeline, tmp_path, pipeline.stages)

  refused(
    'reasoning',
    'rl.reward_models.helpful',
    '@base',
    'needs a reward model, but base leaves a policy',
  )
  refused(
    'kept',
    'rejection_sampling.reward_model',
    '@liked',
    'needs a reward model, but liked',
  )
  refused(
    'liked',
    'dpo.data',
    ('@base',),
    'dpo.data.* needs preference pairs, but base leaves a policy',
  )
  refused(
    'liked',
    'dpo.eval_data',
    ('@safe',),
    'needs preference pairs, but safe leaves a reward model',
  )
  refused(
    'reasoning',
    'rl.reward_models.helpful',
    '@safe',
    "needs what scores 'helpful', but safe scores 'safe'",
  )
  refused(
    'reasoning',
    'init',
    '@helpful',
    'init needs a policy, but helpful leaves a reward model',
  )
  refused(
    'reasoning',
    'rl.ppo.critic_init',
    '@base',
    'needs a scalar head; set base.model.scalar_head',
  )
