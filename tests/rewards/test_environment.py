"""Environments: one verified answer, and those of plugins."""

import numpy as np
import pytest

from r1jax import registry
from r1jax.data.text.response_formats import ResponseParser
from r1jax.episode import Episode, Turn
from r1jax.errors import UserError
from r1jax.records import Message, Prompt
from r1jax.rewards import environment
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.plugin_reward import RewardError
from r1jax.rewards.reward_manager import RewardManager

_PROMPT = Prompt(
  id='p', text='', question='2+3', answer='5', source='arithmetic'
)


def _manager() -> RewardManager:
  options = RewardOptions(100, 20, 2, 0.2)
  return RewardManager(
    {'accuracy': 1.0, 'format': 0.5}, {}, ResponseParser(), options
  )


def _episodes(*texts: str) -> list[Episode]:
  return [
    Episode(_PROMPT, (Turn([1] * len(text), True, text),), 'stop')
    for text in texts
  ]


def test_verifying_an_answer_is_the_reward_of_the_group():
  texts = ['<think>a</think><answer>5</answer>', '<answer>5</answer>', '5', '']
  manager = _manager()
  scored = environment.score(
    'answer', environment.make('answer', manager), _episodes(*texts)
  )
  want = manager.score(texts, [_PROMPT], list(map(len, texts)))
  np.testing.assert_array_equal(scored.reward_B, want.reward_B)
  np.testing.assert_array_equal(scored.scorable_B, want.scorable_B)
  assert scored.verdicts == want.verdicts and scored.texts == want.texts
  assert list(scored.parts) == list(want.parts)
  for name, part_B in want.parts.items():
    np.testing.assert_array_equal(scored.parts[name], part_B)


def test_an_episode_begins_with_the_prompts_conversation():
  answer = environment.make('answer', _manager())
  assert answer.start(_PROMPT) == (Message('user', '2+3'),)


_CLASS = """
from r1jax.rewards.environment import End, Environment, NextTurn

@registry.environment('mine')
class Mine(Environment):
  def respond(self, episodes):
    {body}
"""


def _score(*texts: str):
  mine = environment.make('mine', _manager())
  return environment.score('mine', mine, _episodes(*texts))


def test_an_environment_gives_rewards_of_its_own(plugin):
  plugin(
    _CLASS.format(
      body="return [End.of(e, float(e.text) if e.text else None, {'n': 2})"
      ' for e in episodes]'
    )
  )
  scored = _score('1.5', '', '-2', 'nan')
  assert scored.reward_B.tolist() == [1.5, 0, -2, 0]
  assert scored.scorable_B.tolist() == [True, False, True, False]
  assert scored.parts['n'].tolist() == [2] * 4
  assert np.isnan(scored.parts['accuracy']).all()


@pytest.mark.parametrize(
  'body, error, message',
  [
    ('return [NextTurn([])] * 2', UserError, 'multi-turn episodes are not sam'),
    ('return []', RewardError, 'mine returned 0 responses to 2 episodes'),
    ('return [1, 2]', RewardError, 'mine returned int instead of an End'),
    ("raise KeyError('x')", RewardError, "mine.py: mine: KeyError: 'x'"),
  ],
)
def test_an_environment_that_fails_is_one_line(plugin, body, error, message):
  plugin(_CLASS.format(body=body))
  with pytest.raises(error, match=message):
    _score('a', 'b')


def test_an_unknown_environment_suggests_the_nearest():
  with pytest.raises(
    UserError, match="rl.environment: .*unknown 'answr'; did you mean 'answer'"
  ):
    environment.make('answr', _manager())
  assert registry.environment.origin('answer').plugin == ''
