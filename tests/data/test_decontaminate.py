"""Ten words in common: on small examples, and on the real files."""

import json

import pytest

from r1jax import registry
from r1jax.data import datasets, decontaminate, splits
from r1jax.records import Prompt


def _prompts(*questions: str) -> list[Prompt]:
  return [
    Prompt(id=str(i), text='', question=question, answer='', source='')
    for i, question in enumerate(questions)
  ]


_TEN = 'one two three four five six seven eight nine ten'


def test_words_are_compared_without_case_signs_and_forms():
  assert decontaminate.words('Let $x^2=4$, \\frac{1}{2}: the ﬁrst_Straße') == [
    'let',
    'x',
    '2',
    '4',
    'frac',
    '1',
    '2',
    'the',
    'first',
    'strasse',
  ]


@pytest.mark.parametrize(
  'train,evaluation,words',
  [
    (f'zero {_TEN} eleven', f'So: {_TEN.upper()}!', _TEN),
    (_TEN, _TEN, _TEN),
    (_TEN[:-4], _TEN[:-4], _TEN[:-4]),  # Nine words: as a whole.
    ('What is 2+2?', 'what is $2 + 2$', 'what is 2 2'),
    (_TEN[:-4], _TEN, None),  # Nine of the other's ten.
    (_TEN, _TEN[:-4], None),
    (_TEN.replace('five', 'six'), _TEN, None),
    ('?!', '…', None),  # Without a word, nothing is in common.
  ],
)
def test_what_matches(train, evaluation, words):
  found = decontaminate.find_matches(
    _prompts('another', train), {'eval': _prompts('other', evaluation)}
  )
  assert found == (
    []
    if words is None
    else [
      decontaminate.Match(
        train_id='1', evaluation='eval', eval_id='1', words=words
      )
    ]
  )


def test_the_report_counts_a_row_once_and_each_pair_of_sets():
  found = decontaminate.find_matches(
    _prompts(f'{_TEN} a', 'fine', f'b {_TEN}', 'short'),
    {'x': _prompts(_TEN, f'{_TEN} c'), 'y': _prompts('short', _TEN)},
  )
  report = decontaminate.report('mine', 4, found)
  assert (report['removed'], report['by_evaluation']) == (3, {'x': 2, 'y': 3})
  assert report['matches'][0] == {
    'train_id': '0',
    'evaluation': 'x',
    'eval_id': '0',
    'words': _TEN,
  }
  assert json.loads(json.dumps(report)) == report
  assert decontaminate.summary(report) == (
    'data: mine: 3 of 4 rows share 10 words with an evaluation and are not '
    'trained on (x 2, y 3)'
  )


def _has(found, pair: dict) -> bool:
  return any(
    match.train_id == pair['train_id'] and match.evaluation == pair['eval_set']
    for match in found
  )


@pytest.mark.slow
def test_every_known_duplicate_in_the_real_files_is_found(shared, monkeypatch):
  """The list was made otherwise: by whole texts without signs and blanks."""
  monkeypatch.setenv('R1JAX_DATA', str(shared / 'data'))
  known = json.loads(
    (shared / 'data/math/contamination_exact.json').read_text()
  )['pairs']
  evaluations = {
    name: datasets.read(registry.dataset.get(name), splits.HELD_OUT)
    for name in ('math500', 'aime24', 'amc23', 'gsm8k')
  }
  counts = {}
  for name in ('math', 'gsm8k'):
    train = datasets.read(registry.dataset.get(name), splits.TRAIN)
    found = decontaminate.find_matches(train, evaluations)
    ids = {prompt.id for prompt in train}
    here = [
      pair
      for pair in known
      if pair['train_id'] in ids and pair['eval_set'] in evaluations
    ]
    assert all(_has(found, pair) for pair in here)
    assert len(here) == (name == 'math')  # The others' files are not here.
    counts[name] = decontaminate.report(name, len(train), found)
  assert counts['gsm8k']['by_evaluation'] == {'gsm8k': 11}
  assert counts['math']['by_evaluation'] == {
    'math500': 580,
    'aime24': 108,
    'amc23': 66,
    'gsm8k': 1,
  }
  assert counts['math']['removed'] == 626


@pytest.mark.slow
def test_every_exact_duplicate_by_another_rule_is_found(shared, monkeypatch):
  """An oracle over whole texts, letters and digits alone, against matches."""
  monkeypatch.setenv('R1JAX_DATA', str(shared / 'data'))
  squeeze = lambda text: ''.join(c for c in text.lower() if c.isalnum())
  evaluation = datasets.read(registry.dataset.get('math'), splits.HELD_OUT)
  train = datasets.read(registry.dataset.get('math'), splits.TRAIN)
  # Known duplicates are few: every evaluation question is made one.
  planted = [
    prompt.replace(id=f'planted-{i}', question=f'  {prompt.question.upper()} ')
    for i, prompt in enumerate(evaluation)
  ]
  have = {squeeze(prompt.question) for prompt in evaluation}
  wanted = {
    prompt.id for prompt in train + planted if squeeze(prompt.question) in have
  }
  found = decontaminate.find_matches(train + planted, {'math500': evaluation})
  assert wanted <= {match.train_id for match in found}
  assert len(wanted) >= 501
