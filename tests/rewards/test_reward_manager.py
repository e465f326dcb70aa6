"""Graders and the combined reward."""

import dataclasses
import json
import types

import numpy as np
import pytest

from r1jax import registry
from r1jax.config import base
from r1jax.config.load import load
from r1jax.config.schema.run import RunConfig
from r1jax.data.datasets import read_jsonl
from r1jax.data.tasks.countdown import countdown_answer
from r1jax.data.text import tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.data.text.tokenizer import UNKNOWN
from r1jax.errors import UserError
from r1jax.graders import code_grader, code_runner, dispatch, math_grader
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt, ScoredRollout
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.plugin_reward import RewardError
from r1jax.rewards.reward_manager import RewardManager
from r1jax.stages.build import sampler
from r1jax.workers import pool as workers


def is_right(answer, gold, source):
  return dispatch.verdicts([(answer, gold, source)]) == [Verdict.CORRECT]


@pytest.mark.parametrize(
  'answer,right',
  [
    ('12', True),
    (' 12 ', True),
    ('', False),
    (None, False),
    ('112', False),
    ('12.0', False),
    ('+12', False),
    ('1 2', False),
    ('twelve', False),
  ],
)
def test_integers_are_exact(answer, right):
  assert is_right(answer, '12', 'arithmetic') == right


@pytest.mark.parametrize(
  'answer,right',
  [
    ('(44+19)+35', True),
    ('44 + 19 + 35', True),
    ('35+19+44', True),
    ('98', False),
    ('44+19', False),
    ('44+19+35+0', False),
    ('44+44+10', False),
    ('44+19+35=98', False),
    ('44+19+-35', False),
    ('44**19*35', False),
    ('44//19+35', False),
    ('4419+35', False),
    ('(' * 100 + '44' + ')' * 100 + '+19+35', True),
    ('44+19+35)', False),
    ('__import__("os")', False),
    ('44/0+19+35', False),
    ('', False),
  ],
)
def test_countdown_is_exact(answer, right):
  gold = countdown_answer([44, 19, 35], 98)
  assert is_right(answer, gold, 'countdown') == right


def test_countdown_divides_exactly():
  gold = countdown_answer([1, 3, 3], 1)
  assert is_right('1/3*3', gold, 'countdown')
  assert is_right('3/(1/3)', countdown_answer([3, 1, 3], 9), 'countdown')


def test_every_given_countdown_solution_is_right(shared):
  rows = read_jsonl(str(shared / 'data/countdown/countdown_test.jsonl'), {})
  assert all(
    is_right(
      row['solution'], countdown_answer(row['nums'], row['target']), 'countdown'
    )
    for row in rows
  )


_OPTIONS = RewardOptions(
  max_tokens=100,
  overlong_buffer_tokens=20,
  repetition_n=2,
  max_unscorable_share=0.2,
)


def _reward(max_unscorable_share=0.2, **weights) -> RewardManager:
  return RewardManager(
    weights,
    {},
    ResponseParser(),
    dataclasses.replace(_OPTIONS, max_unscorable_share=max_unscorable_share),
  )


def _prompts():
  return [
    Prompt(id=str(i), text='', question='', answer=str(i), source='arithmetic')
    for i in range(2)
  ]


def test_reward_is_the_weighted_sum_of_its_parts():
  form = '<think>a</think><answer>{}</answer>'
  texts = [form.format(0), form.format(1), '<answer>1</answer>', '1']
  scored = _reward(accuracy=1.0, format=0.5).score(texts, _prompts(), [9] * 4)
  assert scored.parts['accuracy'].tolist() == [1, 0, 1, 0]
  assert scored.parts['format'].tolist() == [1, 1, 0, 0]
  np.testing.assert_allclose(scored.reward_B, [1.5, 0.5, 1.0, 0.0])


def test_sources_may_be_mixed_and_verdicts_keep_their_order():
  gold = countdown_answer([1, 2], 3)
  assert dispatch.verdicts(
    [
      ('7', '7', 'arithmetic'),
      ('1/2', '0.5', 'math'),
      ('1+1', gold, 'countdown'),
      (None, '7', 'math'),
      ('8', '7', 'arithmetic'),
      ('x', gold, 'countdown'),
      ('1' * 301, '7', 'arithmetic'),
      ('9^9^9', '7', 'math'),
    ]
  ) == [
    'correct',
    'correct',
    'wrong',
    'unparsable',
    'wrong',
    'unparsable',
    'refused',
    'refused',
  ]
  with pytest.raises(UserError, match="grader: unknown 'chess'"):
    dispatch.verdicts([('e4', 'e4', 'chess')])


def test_what_no_grader_could_grade_has_no_reward(monkeypatch):
  class Broken:
    def map(self, jobs, total_secs):
      return [
        workers.JobFailure('timeout', ''),
        'wrong',
        workers.JobFailure('crash', ''),
      ]

  monkeypatch.setattr(math_grader, '_worker_pool', Broken)
  prompts = [_prompts()[0].replace(source='math')]
  texts = [f'<think>a</think><answer>{i}</answer>' for i in (1, 2, 3, 0)]
  reward = _reward(accuracy=1.0, format=0.5)
  scored = reward.score(texts, prompts, [9] * 4)
  assert scored.verdicts == ['timeout', 'wrong', 'crash', 'correct']
  assert scored.scorable_B.tolist() == [False, True, False, True]
  np.testing.assert_array_equal(
    scored.parts['accuracy'], [np.nan, 0, np.nan, 1]
  )
  np.testing.assert_array_equal(scored.reward_B, [0, 0.5, 0, 1.5])
  with pytest.raises(
    RewardError,
    match='50% of the samples have no accuracy, '
    'more than rl.max_unscorable_share = 20%',
  ):
    reward.check(scored)
  _reward(accuracy=1.0, max_unscorable_share=0.5).check(scored)


def test_general_rows_have_weights_of_their_own():
  """A batch of both kinds: options on the one, a model and the form on the
  other, whose language is counted too."""
  prompts = [_prompts()[1], _prompts()[0].replace(source='general')]
  form = '<think>we add</think><answer>{}</answer>'
  reward_models = {'helpful': lambda prompts, texts: np.arange(len(texts)) / 4}
  reward = RewardManager(
    {'accuracy': 1.0},
    {'helpful': 2.0, 'format': 1.0},
    ResponseParser(),
    _OPTIONS,
    reward_models,
  )
  scored = reward.score(
    [form.format(1), '7', form.format(0), '0'], prompts, [9] * 4
  )
  np.testing.assert_allclose(scored.reward_B, [1, 0, 2 * 2 / 4 + 1, 2 * 3 / 4])
  assert scored.verdicts == ['correct', 'unparsable', 'general', 'general']
  assert (
    np.isnan(scored.parts['accuracy'][2:]).all() and scored.scorable_B.all()
  )
  reward.check(scored)


def test_a_model_that_says_nothing_leaves_its_rows_unscored():
  prompts = [_prompts()[0].replace(source='general')]
  for value in (np.nan, np.inf):
    reward = RewardManager(
      {},
      {'safe': 1.0},
      ResponseParser(),
      _OPTIONS,
      {'safe': lambda prompts, texts: np.array([1, value, 0])},
    )
    scored = reward.score(['a', 'b', 'c'], prompts, [1] * 3)
    assert scored.scorable_B.tolist() == [True, False, True]
    np.testing.assert_array_equal(scored.reward_B, [1, 0, 0])
  short = RewardManager(
    {},
    {'safe': 1.0},
    ResponseParser(),
    _OPTIONS,
    {'safe': lambda prompts, texts: np.ones(2)},
  )
  with pytest.raises(RewardError, match=r'safe returned \(2,\) numbers for 3'):
    short.score(['a', 'b', 'c'], prompts, [1] * 3)


def test_parts_of_style_length_and_form():
  texts = [
    '<think>we add three and four</think><answer>0</answer>',
    '<think>wir addieren drei und vier zusammen</think><answer>1</answer>',
    'a b a b a b',
  ]
  scored = _reward(
    language=1.0, format_errors=1.0, overlong=1.0, cosine=1.0, repetition=1.0
  ).score(texts, _prompts()[:1], [0, 90, 100])
  np.testing.assert_allclose(scored.parts['language'], [1, 0, 1])
  np.testing.assert_allclose(scored.parts['format_errors'], [0, 0, -0.4])
  np.testing.assert_allclose(scored.parts['overlong'], [0, -0.5, -1])
  np.testing.assert_allclose(scored.parts['repetition'], [0, 0, -0.6])
  np.testing.assert_allclose(scored.parts['cosine'], [1, -0.512, -1], atol=1e-3)
  np.testing.assert_allclose(
    scored.reward_B,
    sum(
      scored.parts[name]
      for name in (
        'language',
        'format_errors',
        'overlong',
        'cosine',
        'repetition',
      )
    ),
    atol=1e-6,
  )


def test_batches_are_put_together_as_they_were():
  reward, texts = _reward(accuracy=1.0, format=1.0), ['0', '1', '2', '3']
  whole = reward.score(texts, _prompts(), [1] * 4)
  parts = [
    reward.score(texts[:2], _prompts()[:1], [1] * 2),
    reward.score(texts[2:], _prompts()[1:], [1] * 2),
  ]
  again = ScoredRollout.concatenate(parts)
  np.testing.assert_array_equal(again.reward_B, whole.reward_B)
  np.testing.assert_array_equal(again.scorable_B, whole.scorable_B)
  assert again.verdicts == whole.verdicts and again.texts == whole.texts
  for name, part in whole.parts.items():
    np.testing.assert_array_equal(again.parts[name], part)


def test_an_id_that_is_no_token_is_never_read_as_an_answer():
  """Wherever it was drawn in the answer: not as 42, and not as 4 or 2."""
  text = tokenizer.load('character')
  junk = text.vocab_size + 3
  for answer in ('42', '\\boxed{42}', '\\frac{4}{2}', '4 2', '-42', '4.2'):
    ids = text.encode(answer)
    spans = [i for i in range(len(ids) + 1) if '{' not in answer or 0 < i]
    got = [text.decode([*ids[:i], junk, *ids[i:]]) for i in spans]
    for source in ('math', 'arithmetic'):
      for gold in ('42', '4', '2', '-42', '4.2'):
        verdicts = dispatch.verdicts([(each, gold, source) for each in got])
        inside = [
          verdict
          for each, verdict in zip(got, verdicts)
          if UNKNOWN in math_grader.extract_answer(each)
        ]
        assert inside and Verdict.CORRECT not in inside


def test_a_form_without_tags_is_rewarded():
  """R1's distills and plain models: a box, or words, after a thought or not."""
  texts = [
    'So it is $\\boxed{42}$.',
    'The answer is 42.',
    '<think>7?</think>#### 42',
    '<think>The answer is 42.',
    'The answer is 7.',
    'I see\nnothing',
  ]
  want = {
    'plain': [1, 1, 1, 0, 0, 0],
    'boxed': [1, 0, 0, 0, 0, 0],
    'think_answer': [0] * 6,
  }
  prompt = _prompts()[0].replace(source='math', answer='42')
  for name, right in want.items():
    parser = ResponseParser(registry.response_format.get(name))
    reward = RewardManager({'accuracy': 1.0}, {}, parser, _OPTIONS)
    scored = reward.score(texts, [prompt], [9] * 6)
    assert scored.parts['accuracy'].tolist() == right, name
  parser = ResponseParser(registry.response_format.get('plain'))
  scored = RewardManager({'format': 1.0}, {}, parser, _OPTIONS).score(
    texts, [prompt], [9] * 6
  )
  assert scored.reward_B.tolist() == [1, 1, 1, 0, 1, 0]


@pytest.mark.parametrize('partial,want', [(False, 0), (True, 0.5)])
def test_a_config_says_what_half_a_program_is_worth(monkeypatch, partial, want):
  """A program that passes half of its tests, scored as a run would."""

  def run_tests_batch(programs, tests, sandbox, options, total_secs):
    return [
      code_runner.ProgramResult(
        code_runner.CodeVerdict.WRONG, 1, 2, 0.5 if options.partial else 0.0
      )
    ]

  monkeypatch.setattr(code_runner, 'run_tests_batch', run_tests_batch)
  monkeypatch.setattr(code_grader, 'sandbox', lambda: ['slot'])
  config = base.get_config()
  config.rl.code_partial_credit = partial
  parts = types.SimpleNamespace(parser=ResponseParser())
  reward = sampler.reward(load(config, RunConfig), parts)
  prompt = _prompts()[0].replace(
    source='code',
    answer=json.dumps(
      {'id': 'p', 'cases': [{'stdin': '1', 'stdout': '2'}] * 2}
    ),
  )
  text = '<think>a</think><answer>print(2)</answer>'
  scored = reward.score([text], [prompt], [9])
  assert scored.parts['accuracy'] == [want] and scored.verdicts == ['wrong']


@pytest.mark.parametrize(
  'weights,general,message',
  [
    ({'acuracy': 1.0}, {}, "unknown 'acuracy'; did you mean 'accuracy'"),
    ({}, {'accuracy': 1.0}, 'accuracy needs a rule, which general rows'),
    ({}, {'helpful': 1.0}, 'helpful has a weight, but no model'),
  ],
)
def test_weights_that_mean_nothing_are_refused(weights, general, message):
  with pytest.raises(UserError, match=message):
    RewardManager(weights, general, ResponseParser(), _OPTIONS)
