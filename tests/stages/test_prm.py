"""From labels of steps to a process reward model, and its uses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax import files, registry
from r1jax.algos import prm as prm_algos
from r1jax.checkpoints import weights
from r1jax.data import step_labels
from r1jax.data.quarantine import Quarantine
from r1jax.data.text import response_formats, steps, tokenizer
from r1jax.errors import UserError
from r1jax.model.parameters import init_params
from r1jax.model.transformer import Transformer
from r1jax.records import Prompt
from r1jax.runs import lineage, pipeline, run
from r1jax.runs.pipeline_config import load_pipeline
from r1jax.stages import dataset_stage, label_steps, prm
from r1jax.stages.build import evaluation, reward_models, sampler
from r1jax.stages.build import parts as build
from tests.configs import small_process
from tests.conftest import one_device, run_config
from tests.stages.conftest import rows
from tests.stages.conftest import run as run_command

PIPELINE = '--config=tests/configs/small_process.py'
_TEXT = tokenizer.load('character')


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
  """A run of the pipeline: base, labels, prm and a policy that it rewards."""
  place = tmp_path_factory.mktemp('process')
  run_command(environment, 'pipeline', PIPELINE, f'--workdir={place}')
  return place


def _config(stage: str, **changes):
  """The config of a stage of the pipeline without the names of others."""
  config = small_process.get_config()[stage]
  with config.unlocked():
    config.init = 'random'
    config.prm.data = ()
    config.rl.reward_models.prm = ''
    config.update_from_flattened_dict(changes)
  return run_config(config)


def _parts(config) -> build.Parts:
  """On one device."""
  prompt_template = registry.template.get(config.data.template)
  return build.Parts(
    Transformer(config.model, one_device()),
    _TEXT,
    prompt_template,
    response_formats.ResponseParser(
      registry.response_format.get(config.data.response_format),
      prompt_template.prompt_opens_think,
    ),
  )


def _labelled(place: Path) -> list[dict]:
  text = (place / 'labels/label_steps/steps.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _judge(place: Path) -> Path:
  return place / 'prm/prm/model.safetensors'


@pytest.mark.slow
def test_rows_hold_the_counts_of_every_step(finished):
  found = _labelled(finished)
  report = json.loads((finished / 'labels/label_steps/report.json').read_text())
  assert len(found) == report['thoughts'] - report['empty'] == 36
  assert report['steps'] == sum(len(row['ends']) for row in found)
  assert report['tokens'] > sum(len(row['tokens']) for row in found)
  splitter = steps.make_splitter(' ', response_formats.ResponseParser(), _TEXT)
  for row in found:
    assert row['ends'] == splitter.step_ends(row['tokens'])
    assert row['completion'] == _TEXT.decode(row['tokens'])
    assert len(row['right']) == len(row['ends'])
    assert row['right'][-1] == row['continuations'] * row['correct']
    assert row['provenance']['checkpoint'] == files.digest(
      finished / 'base/pretrain/model.safetensors'
    )
  assert max(len(row['ends']) for row in found) > 1


@pytest.mark.slow
def test_a_process_reward_model_learns_and_records_how_it_scores(finished):
  first, *_, last = [
    line for line in rows(finished / 'prm', 'prm') if 'eval/accuracy' in line
  ]
  assert {
    'eval/auc',
    'eval/calibration',
    'eval/nll',
    'eval/entropy',
  } <= last.keys()
  assert last['eval/nll'] < first['eval/nll']
  assert weights.metadata(_judge(finished))['scoring'] == {
    'kind': 'prm',
    'delimiter': ' ',
    'max_tokens': 52,
    'batch_size': 8,
  }


@pytest.mark.slow
def test_a_policy_is_rewarded_by_it(finished):
  line = rows(finished / 'policy')[-1]
  assert 0 < line['rewards/prm/mean'] < 1
  assert line['reward'] == pytest.approx(
    line['rewards/prm/mean'] + line['rewards/format/mean'], abs=1e-5
  )
  record = lineage.read(finished / 'policy')
  assert record['inputs']['rl.reward_models.prm']['run'] == '../prm'
  assert lineage.read(finished / 'prm')['inputs']['prm.data']['run'] == (
    '../labels'
  )


@pytest.mark.slow
def test_scores_are_those_of_the_full_forward(finished):
  config = _config('prm')
  made = _parts(config)
  prm = reward_models.load_process_reward_model(
    'key', str(_judge(finished)), config, made
  )
  texts = ['<think>1+1=2 2+1=3</think><answer>3</answer>', '7', '']
  prompts = [
    Prompt(
      id='p',
      text='User:1+1+1Assistant:',
      question='',
      answer='3',
      source='arithmetic',
    )
  ] * 3
  params = weights.load(_judge(finished), made.model)
  ids = [*_TEXT.encode_prompt(prompts[0].text), *_TEXT.encode(texts[0])]
  hidden = jax.jit(
    lambda: (
      made.model.apply(
        {'params': params},
        np.array([ids]),
        np.arange(len(ids))[None],
        np.ones((1, len(ids)), np.int32),
      ).hidden_BTD
    )
  )()
  chance_T = 1 / (
    1 + np.exp(-np.asarray(hidden[0] @ params['scalar'][:, 0], np.float64))
  )
  prompt = len(ids) - len(_TEXT.encode(texts[0]))
  last = [prompt + end - 1 for end in prm.splitter.step_ends(ids[prompt:])]
  assert len(last) == 3
  for aggregation in prm_algos.AGGREGATES:
    got = prm.scorer(aggregation)(prompts, texts)
    assert got[0] == pytest.approx(
      prm_algos.aggregate(chance_T[last], aggregation), abs=1e-4
    )
    assert got[2] == 0.0  # No step, no chance.
  assert prm.scorer('min')(prompts[:1], ['\ufffd']) == [0.0]


@pytest.mark.slow
def test_a_torn_run_labels_the_same_rows(tmp_path, monkeypatch):
  config = _config('labels')
  made = _parts(config)
  params = init_params(made.model, jax.random.key(1))
  stage = label_steps.LabelSteps(config, made)
  whole = stage.run(tmp_path / 'whole', params, {})
  kept = dataset_stage.append

  def torn(file, found, done, counts):
    kept(file, found, done, counts)
    if done == 4:
      file.write('{"id": "half')
      raise KeyboardInterrupt

  monkeypatch.setattr(dataset_stage, 'append', torn)
  with pytest.raises(KeyboardInterrupt):
    stage.run(tmp_path / 'torn', params, {})
  monkeypatch.setattr(dataset_stage, 'append', kept)
  again = stage.run(tmp_path / 'torn', params, {})
  assert again.read_bytes() == whole.read_bytes()
  reports = [path.parent / 'report.json' for path in (again, whole)]
  assert reports[0].read_bytes() == reports[1].read_bytes()
  # What samples share is finished once.
  report = json.loads((whole.parent / 'report.json').read_text())
  assert report['continued'] <= report['steps'] - 36


def test_a_pipeline_checks_that_a_process_reward_model_scores_steps(tmp_path):
  config = small_process.get_config()
  with config.unlocked():
    config.policy.rl.reward_models.prm = '@base'
  with pytest.raises(
    UserError,
    match='reward_models.prm needs a process '
    'reward model, but base leaves a '
    'policy',
  ):
    pipeline.train(load_pipeline(config), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind,value',
  [
    ('vote', 'step'),
    ('best_of_n', 'step'),
    ('mcts', 'step'),
    ('mcts', 'rollout'),
    ('mcts', 'rule'),
  ],
)
def test_every_kind_of_evaluation_runs_and_counts_its_tokens(
  finished, kind, value
):
  config = _config(
    'policy',
    **{
      'eval.search.kind': kind,
      'eval.search.leaf_value': value,
      'eval.search.process_reward_model': str(_judge(finished)),
      'eval.search.budget_tokens': 80,
      'eval.search.answer_reserve_tokens': 16,
      'eval.num_samples': 4,
      'eval.num_problems': 3,
    },
  )
  made = _parts(config)
  params = weights.load(
    finished / 'base/pretrain/model.safetensors', made.model
  )
  engine = sampler.engine(config, made)
  found = evaluation.evaluator(config, made, engine).run(
    params, jax.random.key(0)
  )
  metrics = found.metrics
  if kind == 'mcts':
    assert 0 < metrics['eval/tokens'] <= metrics['eval/tokens_max'] <= 80
    assert len(found.samples) == 3
    return
  assert len(found.samples) == 12
  assert (
    metrics['eval/tokens@4']
    == pytest.approx(4 * metrics['eval/tokens@1'])
    == pytest.approx(sum(row['tokens'] for row in found.samples) / 3)
  )
  assert ('eval/best@4/min' in metrics) == (kind == 'best_of_n')
  for name in ('cons@4', *(['best@4/last'] if kind == 'best_of_n' else [])):
    assert metrics[f'eval/{name}'] <= metrics['eval/pass@4']


def _prm(tmp_path, change=lambda row: row, **changes):
  """The stage on rows that are changed."""
  ids = _TEXT.encode('<think>1+1=2 2</think><answer>2</answer>')
  found = [
    change(
      {
        'id': str(n),
        'question': str(n),
        'prompt': 'User:1+1Assistant:',
        'completion': _TEXT.decode(ids),
        'tokens': ids,
        'ends': [7, 9, 12],
        'right': [2, 1, 0],
        'continuations': 2,
        'provenance': {'delimiter': ' '},
      }
    )
    for n in range(8)
  ]
  file = tmp_path / 'rows.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in found))
  config = _config('prm', **{'prm.data': (str(file),)} | changes)
  return prm.PRM(config, _parts(config))


def test_batches_have_their_labels_where_steps_end(tmp_path):
  stage = _prm(tmp_path)
  rows = stage._datasets.eval[0]
  prompt = len(_TEXT.encode_prompt('User:1+1Assistant:'))
  last = [prompt + 6, prompt + 8, prompt + 11]
  first = (rows.sample_BT == 0) & rows.mask_BT
  assert rows.position_BT[first].tolist() == last
  assert rows.label_BT[first].tolist() == [1.0, 0.5, 0.0]
  assert not rows.label_BT[~rows.mask_BT].any()
  hard = step_labels.read(
    str(tmp_path / 'rows.jsonl'), _TEXT, 'hard', 52, Quarantine()
  )
  assert hard[0].labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
  'change,message',
  [
    (dict(ends=[], right=[]), 'rows.jsonl:1 has no steps'),
    (dict(right=[2, 1]), 'a count within 0 and continuations = 2 for each of'),
    (dict(right=[3, 1, 0]), 'a count within 0 and continuations = 2'),
    (dict(continuations=0), 'continuations = 0'),
    (dict(ends=[7, 7, 12]), "needs 'ends' that rise"),
    (dict(completion='1'), 'they are of another tokenizer'),
    (dict(provenance={}), "name one delimiter; they have \\[''\\]"),
  ],
)
def test_rows_without_usable_labels_are_named(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    _prm(tmp_path, lambda row: row | change)


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'prm.data': ()}, 'prm: data names no labelled steps'),
    ({'prm.labels': 'firm'}, "prm.labels = 'firm' must be one of 'soft'"),
    ({'prm.eval_share': 0.0}, 'prm.eval_share = 0.0 must be above 0'),
    ({'prm.max_tokens': 16}, 'more than 16; raise max_tokens'),
    ({'prm.num_train_epochs': 0}, 'prm.num_train_epochs = 0 must be at least'),
    ({'model.scalar_head': False}, 'prm: model.scalar_head is False'),
  ],
)
def test_a_config_that_cannot_train_is_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    _prm(tmp_path, **changes)


@pytest.mark.parametrize(
  'changes,message',
  [
    (
      {'label_steps.num_continuations': 0},
      'label_steps.num_continuations = 0 must be at least 1',
    ),
    (
      {'label_steps.num_samples': 0},
      'label_steps.num_samples = 0 must be at least 1',
    ),
    (
      {'label_steps.num_prompts': 0},
      'label_steps: num_prompts = 0 takes all of a dataset, but these have no end',
    ),
    ({'data.step_delimiter': ''}, 'step_delimiter is empty'),
  ],
)
def test_labels_that_cannot_be_made_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    run.check(_config('labels', **changes))


@pytest.mark.slow
def test_a_delimiter_that_never_occurs_is_refused_at_once(tmp_path):
  config = _config('labels', **{'data.step_delimiter': '~~~~'})
  made = _parts(config)
  with pytest.raises(
    UserError,
    match="data.step_delimiter = '~~~~' occurs in none of 12 completions",
  ):
    label_steps.LabelSteps(config, made).run(
      tmp_path, init_params(made.model, jax.random.key(0)), {}
    )


@pytest.mark.slow
def test_a_file_that_scores_something_else_is_refused(finished, tmp_path):
  config = _config('prm')
  made = _parts(config)
  with pytest.raises(UserError, match='key: no file .* the stage prm leaves'):
    reward_models.load_process_reward_model('key', 'none', config, made)
  base = finished / 'base/pretrain/model.safetensors'
  with pytest.raises(UserError, match='is no reward model'):
    reward_models.load_process_reward_model('key', str(base), config, made)
  with pytest.raises(UserError, match='scores the steps of thoughts'):
    reward_models.load_reward_model(
      'rejection_sampling.reward_model', str(_judge(finished)), config, made
    )
  with pytest.raises(UserError, match="scores what is 'prm', not"):
    reward_models.load_reward_model(
      'key', str(_judge(finished)), config, made, 'safe'
    )
  params = init_params(made.model, jax.random.key(0))
  metadata = weights.metadata(_judge(finished))
  other = tmp_path / 'other.safetensors'
  for kind, headless, message in (
    ('safe', False, "scores what is 'safe', not what is 'prm'"),
    ('prm', True, 'has no scalar head'),
  ):
    weights.save(
      other,
      params,
      'float32',
      {
        'scoring': metadata['scoring'] | {'kind': kind},
        'config': metadata['config'] | {'model.scalar_head': not headless},
      },
    )
    with pytest.raises(UserError, match=message):
      reward_models.load_process_reward_model('key', str(other), config, made)
  with pytest.raises(UserError, match='reads 52 tokens, fewer than the 62'):
    reward_models.load_process_reward_model(
      'key',
      str(_judge(finished)),
      _config('prm', **{'rl.max_new_tokens': 50}),
      made,
    )


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'eval.search.kind': 'beam'}, "eval.search.kind = 'beam' must be one of"),
    (
      {'eval.search.kind': 'best_of_n'},
      'process_reward_model: best_of_n needs what the stage prm leaves',
    ),
    (
      {
        'eval.search.kind': 'mcts',
        'eval.search.leaf_value': 'rule',
        'eval.search.budget_tokens': 20,
      },
      'budget_tokens = 20 is below one step',
    ),
    (
      {
        'eval.search.kind': 'vote',
        'data.task': 'manners',
        'data.max_prompt_tokens': 20,
      },
      'general problems have no right answer',
    ),
    (
      {
        'eval.search.kind': 'mcts',
        'eval.search.expansion_width': 0,
        'eval.search.leaf_value': 'rule',
      },
      'eval.search.expansion_width = 0 must be at least 1',
    ),
    (
      {'eval.search.kind': 'mcts', 'eval.search.leaf_value': 'leaf'},
      "eval.search.leaf_value = 'leaf' must be one of",
    ),
  ],
)
def test_a_search_that_cannot_run_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    config = _config('policy', **changes)
    parts = _parts(config)
    evaluation.evaluator(config, parts, sampler.engine(config, parts))
