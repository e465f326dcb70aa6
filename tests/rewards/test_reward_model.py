"""Reward models: what they read, alone and in a batch."""

import jax
import numpy as np
import pytest

from r1jax.data.text import tokenizer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.records import Prompt
from r1jax.rewards.reward_model import RewardModel, ScoringConfig
from tests.conftest import make, small_config

_FORM = '<think>{}</think><answer>{}</answer>'
_PROMPTS = [
  Prompt(
    id=str(n),
    text=f'User:{"9+" * n}1Assistant:',
    question='',
    answer='',
    source='general',
  )
  for n in range(5)
]
_TEXTS = [_FORM.format('9' * n, n) for n in range(5)]


@pytest.fixture(scope='module')
def model():
  made, params = make(small_config(scalar_head=True, vocab_size=112))
  params['scalar'] = jax.random.normal(jax.random.key(0), (16, 1))
  return made, params, tokenizer.load('character')


def _reward_model(model, kind, **changes) -> RewardModel:
  return RewardModel(
    *model,
    ResponseParser(),
    ScoringConfig(**dict(kind=kind, max_tokens=64, batch_size=4) | changes),
  )


def test_a_score_is_that_of_the_full_forward_alone(model):
  """In a batch of other lengths: the scalar of the row's own last token."""
  made, params, text = model
  got = _reward_model(model, 'safe').score(_PROMPTS, _TEXTS)
  rows = [
    [*text.encode_prompt(prompt.text), *text.encode(response), text.stop_ids[0]]
    for prompt, response in zip(_PROMPTS, _TEXTS)
  ]
  tokens = np.zeros((5, 64), np.int32)
  for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids
  position = np.broadcast_to(np.arange(64), tokens.shape)

  @jax.jit
  def scalars(params):
    out = made.apply({'params': params}, tokens, position, tokens * 0 + 1)
    return out.hidden_BTD @ params['scalar'][:, 0]

  raw = np.array([row[len(ids) - 1] for row, ids in zip(scalars(params), rows)])
  np.testing.assert_allclose(got, 1 / (1 + np.exp(-raw)), atol=1e-5)


def test_helpfulness_reads_the_summary_and_safety_all(model):
  changed = [_FORM.format('7' * 9, n) for n in range(5)]
  helpful, safe = _reward_model(model, 'helpful'), _reward_model(model, 'safe')
  np.testing.assert_allclose(
    helpful.score(_PROMPTS, _TEXTS), helpful.score(_PROMPTS, changed), atol=1e-6
  )
  assert (
    np.abs(safe.score(_PROMPTS, _TEXTS) - safe.score(_PROMPTS, changed)) > 1e-4
  ).all()
  other = [_FORM.format('9' * n, 9 - n) for n in range(5)]
  assert (
    np.abs(helpful.score(_PROMPTS, _TEXTS) - helpful.score(_PROMPTS, other))
    > 1e-4
  ).all()


def test_helpful_scores_are_normalised(model):
  plain = _reward_model(model, 'helpful').score(_PROMPTS, _TEXTS)
  normalised = _reward_model(model, 'helpful', mean=0.5, std=2.0).score(
    _PROMPTS, _TEXTS
  )
  np.testing.assert_allclose(normalised, (plain - 0.5) / 2, atol=1e-6)


def test_a_long_pair_loses_its_beginning(model):
  prompt = Prompt(
    id='p', text='User:' + '8' * 300, question='', answer='', source='general'
  )
  other = Prompt(
    id='q', text='User:7' + '8' * 300, question='', answer='', source='general'
  )
  reward_model = _reward_model(model, 'safe')
  assert reward_model.score([prompt], ['a']) == reward_model.score(
    [other], ['a']
  )
  assert reward_model.score([prompt], ['a']) != reward_model.score(
    [prompt], ['b']
  )


def test_what_the_tokenizer_lacks_has_no_score(model):
  reward_model = _reward_model(model, 'safe')
  plain = reward_model.score(_PROMPTS, _TEXTS)
  got = reward_model.score(_PROMPTS, [*_TEXTS[:2], 'a\ufffd', *_TEXTS[3:]])
  assert np.isnan(got[2])
  np.testing.assert_allclose(np.delete(got, 2), np.delete(plain, 2), atol=1e-6)


def test_what_is_no_reward_model_is_refused(model):
  made, params = make(small_config())
  with pytest.raises(UserError, match='model.scalar_head is False'):
    RewardModel(
      made, params, model[2], ResponseParser(), ScoringConfig('safe', 64)
    )
  with pytest.raises(UserError, match="kind must be one of .* got 'nice'"):
    ScoringConfig('nice', 64)
  with pytest.raises(UserError, match='std must be above 0'):
    ScoringConfig('safe', 64, std=0)
