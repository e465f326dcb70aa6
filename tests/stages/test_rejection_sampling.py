"""Rejection sampling of pairs: a correct completion preferred to a wrong one."""

import json

import pytest

from r1jax.data import preferences
from r1jax.errors import UserError
from r1jax.rollout.replicas import Replicas
from r1jax.rollout.scheduler import Completion
from r1jax.runs import compatibility, run, validate
from r1jax.runs.pipeline_config import load_pipeline
from r1jax.stages.build import parts as build
from r1jax.stages.dpo import DPO
from r1jax.stages.rejection_sampling import RejectionSampler
from tests.configs import small, small_judged
from tests.conftest import one_device, run_config

RIGHT, WRONG, MALFORMED, TRUNCATED = 'right', 'wrong', 'malformed', 'truncated'


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  """One device, in this process."""
  monkeypatch.setattr(
    build.replicas, 'training_layout', lambda *_: one_device()
  )


def _config(**changes):
  config = small.get_config()
  config.stages, config.init = ('rejection_sampling',), 'random'
  config.rl.max_new_tokens = 64
  config.rejection_sampling.update(
    dict(
      num_prompts=3,
      num_samples=4,
      prompts_per_chunk=2,
      max_per_prompt=2,
      pairs=True,
    )
    | changes
  )
  return config


class _Engine:
  """Completes prompts with given answers."""

  def __init__(self, tokenizer, answers, kinds):
    self._tokenizer, self._answers = tokenizer, iter(answers)
    self._kinds = kinds

  @property
  def replicas(self):
    return Replicas((one_device(),), ((0,),), one_device())

  def prepare_params(self, params):
    return params

  def session(self, params):
    return _Session(self)

  def complete(self, requests):
    kinds = self._kinds
    self._kinds = kinds[len(requests) :]
    return [
      self._completion(request, kind, i)
      for i, (request, kind) in enumerate(zip(requests, kinds))
    ]

  def _completion(self, request, kind, i):
    if request.name[1] == 0:
      self._answer = next(self._answers)
    answer = self._answer if kind == RIGHT else f'{self._answer}{i % 4}'
    text = f'<think>{"+" * (i % 4 + 1)}</think> <answer>{answer}</answer>'
    if kind == MALFORMED:
      text = text.replace('</answer>', '')
    return Completion(
      request=request,
      finish_reason='length' if kind == TRUNCATED else 'stop',
      tokens=[*self._tokenizer.encode(text), self._tokenizer.stop_ids[0]],
    )


class _Session:
  """Completes all requests once they are submitted."""

  def __init__(self, engine):
    self._engine, self._submitted = engine, []

  def submit(self, request):
    self._submitted.append(Completion(request=request))
    return self._submitted[-1]

  def __iter__(self):
    done = self._engine.complete([c.request for c in self._submitted])
    for completion, each in zip(self._submitted, done, strict=True):
      vars(completion).update(vars(each))
    yield self._submitted


def _rejection_sampling(tmp_path, kinds, **changes):
  """The pairs, read as DPO reads them; the answers; the report."""
  config = run_config(_config(**changes))
  parts = build.parts(config)
  stage = RejectionSampler(config, parts)
  prompts = [stage.prompts[i] for i in range(3)]
  stage.engine = _Engine(
    parts.tokenizer, [prompt.answer for prompt in prompts], sum(kinds, [])
  )
  path = stage.run(tmp_path, None, {})
  report = json.loads((tmp_path / 'report.json').read_text())
  return preferences.read(str(path), parts.template), prompts, report


def test_each_right_one_is_set_against_a_wrong_one(tmp_path):
  """Of the same prompt; two at most; neither of truncated ones; every
  completion is kept or counted."""
  pairs, prompts, report = _rejection_sampling(
    tmp_path,
    [
      [RIGHT, RIGHT, WRONG, MALFORMED],
      [RIGHT, RIGHT, RIGHT, WRONG],
      [RIGHT, TRUNCATED, TRUNCATED, TRUNCATED],
    ],
  )
  assert [pair.prompt.id.rpartition('-')[0] for pair in pairs] == [
    prompts[0].id,
    prompts[0].id,
    prompts[1].id,
  ]
  for pair, prompt in zip(pairs, [prompts[0], prompts[0], prompts[1]]):
    assert pair.prompt.text == prompt.text
    assert f'<answer>{prompt.answer}</answer>' in pair.chosen
    assert f'<answer>{prompt.answer}</answer>' not in pair.rejected
    assert pair.group == 'arithmetic'
  assert pairs[0].rejected.endswith('2</answer>')
  assert pairs[1].rejected.endswith('3')  # Malformed.
  # What has no answer is not correct either.
  assert report['dropped'] == {
    'require_correct': 3,
    'truncated': 3,
    'unpaired': 3,
  }
  assert report['accepted'] == 3


def test_a_report_is_left_where_nothing_is_accepted(tmp_path):
  with pytest.raises(
    UserError,
    match='the filters accept none of 12 completions: '
    'require_correct dropped 12; loosen one',
  ):
    _rejection_sampling(tmp_path, [[WRONG] * 4] * 3)
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['accepted'] == 0
  assert report['dropped'] == {'require_correct': 12}
  assert not (tmp_path / 'accepted.jsonl').exists()


def test_pairs_are_what_dpo_learns_from(tmp_path):
  _rejection_sampling(tmp_path, [[RIGHT, WRONG, WRONG, RIGHT]] * 3)
  config = small.get_config()
  config.stages, config.init = ('dpo',), 'random'
  config.dpo.update(
    data=(str(tmp_path / 'accepted.jsonl'),),
    batch_size=2,
    max_tokens=128,
    eval_share=0.5,
  )
  config = run_config(config)
  datasets = DPO(config, build.parts(config))._datasets
  assert datasets.names == ('arithmetic',)
  assert len(datasets.train) and len(datasets.eval)


def test_a_prompt_in_pairs_goes_on_after_a_kill(tmp_path):
  """The first chunk was finished: its pairs stay, and are not made again."""
  kinds = [[RIGHT, WRONG, WRONG, RIGHT]] * 3
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  _rejection_sampling(whole, kinds)
  lines = (whole / 'accepted.jsonl').read_text().splitlines(keepends=True)
  cut.mkdir()
  (cut / 'partial.jsonl').write_text(
    ''.join(lines[:4]) + '{"done": 2, "counts": {}}\n'
  )
  config = run_config(_config())
  parts = build.parts(config)
  stage = RejectionSampler(config, parts)
  stage.engine = _Engine(parts.tokenizer, [stage.prompts[2].answer], kinds[2])
  stage.run(cut, None, {})
  assert (cut / 'accepted.jsonl').read_text() == (
    whole / 'accepted.jsonl'
  ).read_text()


@pytest.mark.parametrize(
  'changes,match',
  [
    (
      dict(require_correct=False, require_format=False),
      'rejection_sampling.pairs = True needs require_correct or require_format',
    ),
    (
      dict(extra_data=('manners:3',)),
      r'extra_data = .* must be left out with pairs, which are no demonst',
    ),
    (dict(top_logprobs=2), 'top_logprobs = 2 must be left out with pairs'),
  ],
)
def test_what_is_no_pair_is_refused(changes, match):
  with pytest.raises(UserError, match=match):
    run.check(run_config(_config(**changes)))


def test_a_pipeline_keeps_pairs_and_rows_apart(tmp_path):
  config = small_judged.get_config()
  config.stages = ('base', 'pairs', 'liked')
  config.pairs = _config()
  config.pairs.model, config.pairs.init = config.base.model, '@base'
  config.liked.dpo.data = ('@pairs',)
  runs = load_pipeline(config).runs
  compatibility.check_fit(
    'liked', runs['liked'], 'dpo.data[0]', 'pairs', runs['pairs']
  )
  config.pairs.rejection_sampling.pairs = False
  with pytest.raises(
    UserError,
    match='liked.dpo.data.* needs preference pairs, but '
    'pairs leaves demonstrations; set pairs.rejection_sampling.pairs = '
    'True',
  ):
    validate.check(load_pipeline(config), tmp_path, config.stages)
  config.pairs.rejection_sampling.pairs = True
  config.liked.stages, config.liked.dpo.data = ('sft',), ()
  config.liked.sft.data = ('@pairs',)
  with pytest.raises(
    UserError,
    match='liked.sft.data.* needs demonstrations, but pairs leaves '
    'preference pairs; set pairs.rejection_sampling.pairs = False',
  ):
    validate.check(load_pipeline(config), tmp_path, config.stages)
