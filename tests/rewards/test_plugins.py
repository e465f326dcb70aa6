"""Rewards of plugins: what they see, and what a bad one costs."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from r1jax import registry
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.records import Message, Prompt, ScoredRollout
from r1jax.rewards import plugin_reward
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.plugin_reward import RewardError
from r1jax.rewards.reward_manager import RewardManager
from r1jax.rewards.sample import Sample, SamplePrompt

_OPTIONS = RewardOptions(
  max_tokens=100,
  overlong_buffer_tokens=20,
  repetition_n=2,
  max_unscorable_share=0.5,
  timeout_secs=20.0,
)
_FORM = '<think>a</think><answer>{}</answer>'


def _prompt(**changes) -> Prompt:
  fields = dict(
    id='row 1',
    text='2+3=',
    question='2+3',
    answer='5',
    source='arithmetic',
    messages=(Message('user', '2+3'),),
    fields={'level': 3, 'tags': ['sum']},
  )
  return Prompt(**fields | changes)


def _manager(timeout_secs=20.0, share=0.5, general=None, **weights):
  options = dataclasses.replace(
    _OPTIONS, timeout_secs=timeout_secs, max_unscorable_share=share
  )
  return RewardManager(weights, general or {}, ResponseParser(), options)


def _score(manager, texts, prompts=None) -> ScoredRollout:
  return manager.score(
    texts,
    prompts or [_prompt()],
    [len(t) for t in texts],
    ['stop'] * len(texts),
  )


def test_a_reward_sees_all_of_its_sample(plugin):
  plugin("""
    import dataclasses, json

    @registry.reward('mine')
    def mine(sample):
      with open('seen.json', 'w') as file:  # In the run's current folder.
        json.dump(dataclasses.asdict(sample), file)
      return sample.prompt.fields['level'] + sample.accuracy / 2
  """)
  scored = _score(_manager(mine=2.0), [_FORM.format(5)])
  assert scored.reward_B.tolist() == [7.0]
  with open('seen.json') as file:
    seen = json.load(file)
  assert seen == {
    'completion': _FORM.format(5),
    'reasoning': 'a',
    'answer': '5',
    'gold': '5',
    'prompt': {
      'id': 'row 1',
      'text': '2+3=',
      'question': '2+3',
      'source': 'arithmetic',
      'language': 'en',
      'messages': [['user', '2+3', None]],
      'fields': {'level': 3, 'tags': ['sum']},
    },
    'num_tokens': len(_FORM.format(5)),
    'finish_reason': 'stop',
    'format_errors': 0,
    'accuracy': 1.0,
    'verdict': 'correct',
  }


def test_a_sample_survives_json():
  sample = Sample(
    completion='é',
    reasoning=None,
    answer='7',
    gold='7',
    prompt=SamplePrompt(
      'i', 't', 'q', 'math', 'en', (Message('user', 'q'),), {'a': [1, None]}
    ),
    num_tokens=3,
  )
  assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


def test_numbers_none_and_parts_are_scores(plugin):
  plugin("""
    @registry.reward('mine')
    def mine(sample):
      return {
        '1': True, '2': None, '3': {'a': 0.5, 'b': -2}, '4': {'a': 1.5},
      }[sample.answer]
  """)
  scored = _score(_manager(mine=2.0), [_FORM.format(i) for i in (1, 2, 3, 4)])
  assert scored.scorable_B.tolist() == [True, False, True, True]
  assert scored.reward_B.tolist() == [2.0, 0.0, -3.0, 3.0]
  nan = np.nan
  np.testing.assert_array_equal(scored.parts['mine'], [1, nan, -1.5, 1.5])
  np.testing.assert_array_equal(scored.parts['mine/a'], [nan, nan, 0.5, 1.5])
  np.testing.assert_array_equal(scored.parts['mine/b'], [nan, nan, -2, nan])
  other = _score(_manager(accuracy=1.0), ['x'])
  joined = ScoredRollout.concatenate([other, scored])
  np.testing.assert_array_equal(joined.parts['mine/b'][:4], [nan] * 3 + [-2])


def test_an_async_reward_is_awaited(plugin):
  plugin("""
    import asyncio

    @registry.reward('mine')
    async def mine(sample):
      await asyncio.sleep(0.01)
      return len(sample.completion)

    @registry.reward('all', batch=True)
    async def all_(samples):
      return [await mine(sample) for sample in samples]
  """)
  scored = _score(_manager(**{'mine': 1.0, 'all': 1.0}), ['a', 'bb'])
  assert scored.reward_B.tolist() == [2.0, 4.0]


def test_a_batch_reward_sees_the_samples_that_count(plugin):
  plugin("""
    import numpy as np

    @registry.reward('mine', batch=True)
    def mine(samples):
      return np.arange(len(samples)) - np.float32(0.5)
  """)
  general = _prompt(source='general')
  manager = _manager(general={'mine': 1.0})
  scored = _score(manager, list('abcd'), [_prompt(), general])
  np.testing.assert_array_equal(
    scored.parts['mine'], [np.nan, np.nan, -0.5, 0.5]
  )
  assert scored.scorable_B.all()


@pytest.mark.parametrize(
  'body, message',
  [
    ("raise ValueError('no')", 'ValueError: no at line 7'),
    ("return float('nan')", 'returned nan'),
    ("return {'part': float('-inf')}", 'returned -inf'),
    ("return '1'", "returned '1', of type str"),
    ('raise SystemExit(3)', 'SystemExit: 3'),
    ('import os; os._exit(3)', 'the worker died'),
    ('while True: pass', 'took more than 2 s'),
    ('import time; time.sleep(60)', 'took more than 2 s'),
  ],
)
def test_a_sample_that_fails_costs_itself_alone(plugin, caplog, body, message):
  path = plugin(f"""
    @registry.reward('mine')
    def mine(sample):
      if sample.completion == 'good':
        return 1
      {body}
  """)
  timeout_secs = 2.0 if message.startswith('took') else 20.0
  manager = _manager(timeout_secs, mine=1.0)
  with caplog.at_level(logging.WARNING):
    scored = _score(manager, ['good', 'bad', 'bad', 'good'])
  assert scored.scorable_B.tolist() == [True, False, False, True]
  assert scored.reward_B.tolist() == [1, 0, 0, 1]
  [record] = caplog.records  # One line, whatever fails.
  text = record.getMessage()
  assert text.startswith(f'reward: {path}: mine ') and '\n' not in text
  assert message in text
  manager.check(scored)
  with pytest.raises(RewardError) as raised:
    manager.check(_score(manager, ['bad', 'bad', 'bad', 'good']))
  text = str(raised.value)
  assert '75% of the samples have no mine' in text and path in text
  assert '\n' not in text and 'its checkpoints stand' in text


@pytest.mark.parametrize(
  'value, message',
  [
    ('[1.0]', 'returned 1 values for 3 samples'),
    ('1.0', 'returned float instead of a list of 3 values'),
    ('[1.0, 2.0, "3"]', "returned '3', of type str"),
  ],
)
def test_a_batch_of_the_wrong_length_costs_the_call(
  plugin, caplog, value, message
):
  plugin(f"""
    @registry.reward('mine', batch=True)
    def mine(samples):
      return {value}
  """)
  scored = _score(_manager(mine=1.0), ['a', 'b', 'c'])
  assert not scored.scorable_B.any()
  assert message in caplog.text


def test_calls_that_only_hang_stop_the_run_early(plugin, monkeypatch):
  monkeypatch.setattr(plugin_reward, '_MAX_TIMEOUTS_IN_A_ROW', 3)
  path = plugin("""
    import time

    @registry.reward('mine')
    def mine(sample):
      time.sleep(60)
  """)
  with pytest.raises(RewardError, match='mine took more than 0.1 s 3 times'):
    _score(_manager(timeout_secs=0.1, mine=1.0), ['a'] * 4)
  tolerant = _manager(timeout_secs=0.1, share=1.0, mine=1.0)
  assert not _score(tolerant, ['a'] * 4).scorable_B.any()
  assert path


def test_a_plugin_that_fails_in_workers_alone_is_named(plugin, monkeypatch):
  path = plugin("""
    import os

    if os.environ.get('JAX_PLATFORMS') == 'cpu' and os.environ.get('BROKEN'):
      raise RuntimeError('only here')

    @registry.reward('mine')
    def mine(sample):
      return 1
  """)
  monkeypatch.setenv('BROKEN', '1')
  with pytest.raises(RewardError, match=f'{path}: mine: .*only here'):
    _score(_manager(mine=1.0), ['a'])


@pytest.mark.parametrize(
  'options, message',
  [
    ('bach=True', "option: unknown 'bach'; did you mean 'batch'"),
    ('needs_rule=True', 'mine needs a rule'),
  ],
)
def test_options_that_mean_nothing_are_refused(plugin, options, message):
  plugin(f"""
    @registry.reward('mine', {options})
    def mine(sample):
      return 1
  """)
  with pytest.raises(UserError, match=message):
    _manager(general={'mine': 1.0})


def test_names_of_the_package_are_taken(plugin):
  for name in ('accuracy', 'helpful'):
    with pytest.raises(UserError, match=f"mine.py: the reward '{name}' is alr"):
      plugin(f"""
        @registry.reward('{name}')
        def mine(sample):
          return 1
      """)
  assert registry.reward.origin('accuracy').plugin == ''
  with pytest.raises(UserError, match="unknown 'brevty'; did you mean 'brevi"):
    plugin("""
      @registry.reward('brevity')
      def mine(sample):
        return 1
    """)
    _manager(brevty=1.0)
