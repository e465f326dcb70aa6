"""Preferences: rows and their faults, synthetic labels, batches."""

import json

import numpy as np
import pytest

from r1jax import registry
from r1jax.config.schema.preferences import SyntheticPreferencesConfig
from r1jax.data import (
  batching,
  preference_batches,
  preferences,
  scored_text,
  splits,
)
from r1jax.data.quarantine import Quarantine
from r1jax.data.sample_packing import RowShape
from r1jax.data.tasks import manners
from r1jax.data.text import response_formats, tokenizer
from r1jax.errors import UserError
from r1jax.rewards.reward_model import RewardModel, ScoringConfig
from r1jax.train import reward_model_step
from tests.conftest import make, small_config

_BRIEF = registry.template.get('r1_zero_brief')
_TEXT = tokenizer.load('character')
_PARSER = response_formats.ResponseParser()
_HOW = SyntheticPreferencesConfig(error_rate=0.4, sharpness=8.0)
_GOOD = {'id': 'a', 'question': '1+1', 'chosen': '2', 'rejected': '3'}
_FORM = '<think>t</think><answer>{}</answer>'


def _file(tmp_path, *rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(
    ''.join(
      (row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows
    )
  )
  return str(path)


def _encoder(kind='helpful', max_tokens=64):
  return scored_text.ScoredTextEncoder(kind, max_tokens, _TEXT, _PARSER)


def _shape(num_examples: int, max_tokens: int) -> RowShape:
  """Rows of a pair at least, two in a microbatch."""
  return RowShape(
    row_tokens=2 * max_tokens,
    microbatch_rows=2,
    num_updates=1,
    num_samples=num_examples,
    max_sample_tokens=2 * max_tokens,
  )


def _of(rows, sample: int):
  """Where the tokens of a sequence are."""
  return (rows.sample_BT == sample) & (rows.segment_BT > 0)


def _judged(
  found, kind='helpful', max_tokens=64, cut_long=False, quarantine=None
):
  return preference_batches.reward_model_examples(
    found, _encoder(kind, max_tokens), cut_long, quarantine or Quarantine()
  )


def test_rows_of_all_three_kinds_of_prompt_are_read(tmp_path):
  found = preferences.read(
    _file(
      tmp_path,
      _GOOD | {'group': 'x'},
      {
        'id': 'b',
        'messages': [{'role': 'user', 'content': 'hi'}],
        'chosen': 'yes',
        'rejected': 'no',
      },
      {
        'id': 'c',
        'prompt': '\n\nHuman: hi\n\nAssistant:',
        'chosen': 'yes',
        'rejected': 'no',
      },
      {'id': 'd', 'question': 'hi', 'response': 'yes', 'safe': False},
    ),
    _BRIEF,
  )
  assert [row.prompt.text for row in found[:2]] == [
    'User:1+1Assistant:',
    'User:hiAssistant:',
  ]
  assert found[2].prompt.messages[0].content == 'hi'
  assert [row.group for row in found] == ['x', '', '', '']
  assert found[0].prompt.where.endswith('rows.jsonl:1')
  each = preferences.to_labelled_responses(found)
  assert [row.safe for row in each] == [True, False] * 3 + [False]
  assert {row.prompt.id for row in each[:2]} == {'a'}


@pytest.mark.parametrize(
  'row,message',
  [
    ('{', 'rows.jsonl:2 is not JSON'),
    (_GOOD | {'id': ''}, "rows.jsonl:2 needs a non-empty str 'id'"),
    (_GOOD | {'chosen': ' '}, "non-empty str 'chosen', got ' '"),
    (_GOOD | {'rejected': 3}, "non-empty str 'rejected', got 3"),
    (_GOOD | {'rejected': '2 '}, "same text in 'chosen' and 'rejected'"),
    (_GOOD | {'id': 'z'}, "repeats the id 'z'"),
    (_GOOD | {'group': 3}, "needs a str 'group'"),
    ({'id': 'b', 'chosen': '2', 'rejected': '3'}, "str 'question', got None"),
    (_GOOD | {'prompt': 'hi'}, "needs a dialogue in 'prompt'"),
    (_GOOD | {'messages': [{'role': 'user'}]}, "needs 'messages' of 'role'"),
    (
      _GOOD | {'messages': [{'role': 'assistant', 'content': 'a'}]},
      "end with the user's",
    ),
    (
      _GOOD
      | {
        'messages': [
          {'role': role, 'content': 'a'}
          for role in ('user', 'assistant', 'user')
        ]
      },
      'only a chat template can hold',
    ),
    (
      {'id': 'b', 'question': 'q', 'response': 'r', 'safe': 1},
      "needs true or false in 'safe', got 1",
    ),
  ],
)
def test_a_bad_row_is_named_or_quarantined(tmp_path, row, message):
  path = _file(tmp_path, _GOOD | {'id': 'z'}, row, _GOOD | {'id': 'y'})
  with pytest.raises(UserError, match=message):
    preferences.read(path, _BRIEF)
  dropped = Quarantine(0.5)
  found = preferences.read(path, _BRIEF, quarantine=dropped)
  assert [row.prompt.id for row in found] == ['z', 'y']
  assert '1 of 3 rows' in dropped.finish('x', 3)


@pytest.mark.parametrize(
  'row,kind,message',
  [
    (
      _GOOD | {'chosen': _FORM.format('2'), 'rejected': '<answer>2</answer>'},
      'helpful',
      'equals the rejected one in what is read',
    ),
    (_GOOD | {'chosen': '<think>2</think>'}, 'helpful', 'without an answer'),
    (
      _GOOD | {'chosen': '9' * 60},
      'safe',
      '66 tokens, more than 64; raise max_tokens',
    ),
    (_GOOD | {'chosen': 'é'}, 'safe', "tokenizer has no 'é'"),
    (
      {'id': 'a', 'question': 'q', 'response': 'r', 'safe': True},
      'helpful',
      'has one response',
    ),
  ],
)
def test_what_cannot_be_judged_is_named(tmp_path, row, kind, message):
  found = preferences.read(_file(tmp_path, row), _BRIEF)
  if kind == 'safe':
    found = preferences.to_labelled_responses(found)
  with pytest.raises(UserError, match=f'rows.jsonl:1 .*{message}'):
    _judged(found, kind)


def test_a_policy_s_pair_is_whole(tmp_path):
  found = preferences.read(
    _file(tmp_path, _GOOD | {'chosen': _FORM.format('2')}), _BRIEF
  )
  (example,) = preference_batches.dpo_examples(found, _TEXT, 64, Quarantine())
  assert example.prompt_tokens == len(_TEXT.encode_prompt(found[0].prompt.text))
  own = [row[example.prompt_tokens :] for row in example.rows]
  assert own == [
    [*_TEXT.encode(text), _TEXT.stop_ids[0]]
    for text in (_FORM.format('2'), '3')
  ]
  with pytest.raises(UserError, match='more than 8; raise max_tokens'):
    preference_batches.dpo_examples(found, _TEXT, 8, Quarantine())


def test_a_dataset_s_missing_file_says_what_there_is(monkeypatch, tmp_path):
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  with pytest.raises(
    UserError,
    match='hh_helpful_base_train.*hh-rlhf.*hh_helpful_base_test.*evaluate on a share',
  ):
    preferences.dataset_path('hh_helpful', splits.TRAIN)
  with pytest.raises(UserError, match='gsm8k has answers, not preferences'):
    preferences.dataset_path('gsm8k', splits.TRAIN)


def test_real_rows_are_read(shared):
  """Every row but those whose two responses are the same."""
  path = str(shared / 'data' / 'pref' / 'hh_helpful_base_test.jsonl')
  bad = Quarantine(0.01)
  found = preferences.read(path, _BRIEF, 'hh_helpful', bad)
  assert len(found) + len(bad.dropped) == 2348
  assert all('same text' in why for _, why in bad.dropped)
  assert {row.group for row in found} == {'hh_helpful'}
  held = [preferences.is_eval_row(row.prompt.id, 0.5) for row in found]
  assert abs(np.mean(held) - 0.5) < 0.04
  fewer = [preferences.is_eval_row(row.prompt.id, 0.2) for row in found]
  assert not any(a and not b for a, b in zip(fewer, held))


def test_synthetic_labels_are_bradley_terrys():
  """Of all pairs with one gap of quality, σ(s · gap) are as that says."""
  found = preferences.synthetic_pairs(_HOW, _BRIEF, splits.TRAIN, 0, 3000)
  quality = lambda row, text: manners.quality(
    row.prompt.question, _PARSER.parse(text).answer
  )
  gaps = np.array(
    [quality(row, row.chosen) - quality(row, row.rejected) for row in found]
  )
  assert all(row.chosen != row.rejected for row in found)
  for gap in (1 / 3, 2 / 3, 1.0):
    ahead, behind = (np.isclose(gaps, sign * gap) for sign in (1, -1))
    both = ahead.sum() + behind.sum()
    p = 1 / (1 + np.exp(-8 * gap))
    assert abs(ahead.sum() / both - p) < 4 * np.sqrt(p * (1 - p) / both) + 1e-9
  assert {row.group for row in found} == {'greet', 'thank', 'bid'}
  again = preferences.synthetic_pairs(_HOW, _BRIEF, splits.TRAIN, 0, 3)
  assert again == found[:3]
  held_out = preferences.synthetic_pairs(_HOW, _BRIEF, splits.HELD_OUT, 0, 200)
  assert not (
    {row.prompt.question for row in held_out}
    & {row.prompt.question for row in found}
  )


def test_synthetic_responses_are_unsafe_where_they_insult():
  found = preferences.synthetic_responses(_HOW, _BRIEF, splits.TRAIN, 0, 500)
  for row in found:
    assert row.safe != ('fool' in row.response)
  assert 0.7 < np.mean([row.safe for row in found]) < 0.9
  for field in ('error_rate', 'sharpness'):
    with pytest.raises(UserError, match=field):
      SyntheticPreferencesConfig(
        **dict(error_rate=0.4, sharpness=1.0) | {field: 0.0}
      )


@pytest.fixture(scope='module')
def model():
  made, params = make(small_config(scalar_head=True, vocab_size=112))
  params['scalar'] = np.random.default_rng(0).normal(size=(16, 1)).astype('f')
  return made, params


@pytest.mark.parametrize('kind', scored_text.KINDS)
@pytest.mark.parametrize('max_tokens', [64, 24])  # Cut, at 24.
def test_training_sees_what_a_judge_scores(model, kind, max_tokens):
  """The scores of a training batch are those of the judge, row by row."""
  if kind == 'helpful':
    found = preferences.synthetic_pairs(_HOW, _BRIEF, splits.TRAIN, 1, 3)
    asked = [
      (row.prompt, text) for row in found for text in (row.chosen, row.rejected)
    ]
  else:
    found = preferences.synthetic_responses(_HOW, _BRIEF, splits.TRAIN, 1, 3)
    asked = [(row.prompt, row.response) for row in found]
  examples = _judged(found, kind, max_tokens, cut_long=True)
  groups = preference_batches.group_sizes(examples)
  shape = _shape(3, max_tokens)
  batch = preference_batches.PreferenceBatches(
    examples, list(groups), shape, shuffle=False
  )[0]
  got = np.asarray(reward_model_step.scores(model[0], shape)(model[1], batch))
  want = RewardModel(
    *model, _TEXT, _PARSER, ScoringConfig(kind, max_tokens, batch_size=4)
  ).score(*zip(*asked))
  np.testing.assert_allclose(
    got if kind == 'helpful' else 1 / (1 + np.exp(-got)), want, atol=1e-5
  )


def test_batches_hold_every_pair_once_an_epoch():
  found = preferences.synthetic_pairs(_HOW, _BRIEF, splits.TRAIN, 0, 10)
  examples = preference_batches.dpo_examples(found, _TEXT, 128, Quarantine())
  groups = list(preference_batches.group_sizes(examples))
  corpus = preference_batches.PreferenceBatches(
    examples, groups, _shape(4, 128), seed=3, epochs=2
  )
  assert len(corpus) == 5
  seen = []
  for batch in (corpus[i] for i in range(5)):
    rows = batch.rows
    for p in np.flatnonzero(batch.weight_P):
      chosen, rejected = (
        tuple(rows.tokens_BT[_of(rows, sample)])
        for sample in (2 * p, 2 * p + 1)
      )
      example = next(e for e in examples if tuple(e.rows[0]) == chosen)
      assert rejected == tuple(example.rows[1])
      assert groups[batch.group_P[p]] == example.group
      for sample in (2 * p, 2 * p + 1):
        read = rows.mask_BT[_of(rows, sample)]
        assert not read[: example.prompt_tokens].any()
        assert read[example.prompt_tokens :].all()
      seen.append(example.id)
    assert (rows.segment_BT > 0).sum() == sum(
      map(len, [ids for e in examples if e.id in seen[-4:] for ids in e.rows])
    )
  # Every pair once an epoch, in another order.
  assert sorted(seen[:10]) == sorted(seen[10:]) and seen[:10] != seen[10:]


def test_an_iterator_goes_on_where_it_was():
  found = preferences.synthetic_pairs(_HOW, _BRIEF, splits.TRAIN, 0, 12)
  corpus = preference_batches.PreferenceBatches(
    _judged(found), ['bid', 'greet', 'thank'], _shape(4, 64), seed=1
  )
  whole = batching.token_batches(corpus)
  next(whole)
  state = whole.get_state()
  rest = [batch.rows.tokens_BT for batch in whole]
  again = batching.token_batches(corpus)
  again.set_state(state)
  np.testing.assert_array_equal([b.rows.tokens_BT for b in again], rest)
