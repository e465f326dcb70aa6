"""Every example of docs/extending.md is a plugin that does what it says."""

import re

import pytest

from r1jax import registry
from r1jax.data.text.response_formats import ResponseParser
from r1jax.episode import Episode, Turn
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict
from r1jax.records import Message, Prompt
from r1jax.rewards import environment
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.reward_manager import RewardManager
from r1jax.workers import plugin_pool
from tests.conftest import ROOT

_FORM = '<think>a</think><answer>{}</answer>'
_TEXT = (ROOT / 'docs/extending.md').read_text()
EXAMPLES = dict(
  re.findall(
    r'^<!-- plugin: (\S+\.py) -->\n```python\n(.*?)^```$', _TEXT, re.M | re.S
  )
)


def test_every_python_block_is_an_example():
  assert len(EXAMPLES) == len(re.findall(r'^```python$', _TEXT, re.M))


@pytest.mark.parametrize('name', EXAMPLES)
def test_an_example_registers_names(name, tmp_path):
  path = tmp_path / name
  path.write_text(EXAMPLES[name])
  try:
    registry.load_plugins([str(path)])
    registered = [
      (kind.kind, key)
      for kind in registry.KINDS
      for key in kind
      if kind.origin(key).file == str(path.resolve())
    ]
    assert registered
    for _, key in registered:
      assert f"'{key}'" in EXAMPLES[name]
  finally:
    for kind in registry.KINDS:
      kind.forget(str(path.resolve()))


@pytest.fixture
def example(tmp_path, monkeypatch):
  """Returns load(name), which imports an example as a plugin."""
  monkeypatch.chdir(tmp_path)

  def load(name: str):
    (tmp_path / name).write_text(EXAMPLES[name])
    registry.load_plugins([name])

  yield load
  plugin_pool.shutdown()
  for kind in registry.KINDS:
    for name in EXAMPLES:
      kind.forget(str((tmp_path / name).resolve()))


def _manager(**weights) -> RewardManager:
  options = RewardOptions(100, 20, 2, 0.2)
  return RewardManager(weights, {}, ResponseParser(), options)


def _prompt(source: str = 'arithmetic') -> Prompt:
  return Prompt(
    id='p',
    text='',
    question='2+3',
    answer='5',
    source=source,
    fields={'budget': 100},
  )


def test_the_reward(example):
  example('brevity.py')
  texts = [_FORM.format(5), _FORM.format(6)]
  scored = _manager(brevity=0.5).score(texts, [_prompt()], [20, 20])
  assert scored.reward_B.tolist() == pytest.approx([0.4, 0])


def test_the_reward_of_a_batch(example):
  example('diversity.py')
  texts = [_FORM.format(answer) for answer in (5, 5, 7, 8)]
  scored = _manager(diversity=1.0).score(texts, [_prompt()], [9] * 4)
  assert scored.reward_B.tolist() == [0.5, 0.5, 1, 1]


def test_the_grader(example):
  example('caseless.py')
  items = [(a, 'New York', 'caseless') for a in ('new  york', 'york', 'a\tb')]
  assert dispatch.verdicts(items) == [
    Verdict.CORRECT,
    Verdict.WRONG,
    Verdict.UNPARSABLE,
  ]


def test_the_environment(example):
  example('polite.py')
  polite = environment.make('polite', _manager())
  assert polite.start(_prompt())[0] == Message('system', 'Be polite.')
  episodes = [
    Episode(_prompt(), (Turn([1], True, text),), 'stop')
    for text in ('yes, please', 'no')
  ]
  scored = environment.score('polite', polite, episodes)
  assert scored.reward_B.tolist() == [1, 0]
