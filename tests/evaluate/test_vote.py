"""Votes over final answers that the grader finds equal."""

import itertools

import pytest

from r1jax import registry
from r1jax.data.tasks.countdown import countdown_answer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.evaluate import vote
from r1jax.graders import dispatch

pytestmark = pytest.mark.usefixtures('graders')
_THINK = ResponseParser(registry.response_format.get('think'))


def _records(gold: str, *answers: str | None, source: str = 'math'):
  """Sample records of summaries after a thought, graded by their grader."""
  verdicts = dispatch.verdicts([(answer, gold, source) for answer in answers])
  return [
    {
      'completion': '<think>a</think>' + (answer or ''),
      'source': source,
      'gold': gold,
      'verdict': str(verdict),
    }
    for answer, verdict in zip(answers, verdicts)
  ]


def _elects(*groups) -> list[bool]:
  return vote.majority_correct(list(groups), _THINK)


_SUMMARIES = (
  'The total is \\boxed{42}.',
  'She has \\boxed{42} apples.',
  '**Answer**\n\n$$\\boxed{42}$$',
  'So x = 42.\n\n\\boxed{42}',
  'First 40, then 2 more: $\\boxed{42}$',
  '\\[ \\boxed{ 42 } \\]',
  'Not \\boxed{7} but \\boxed{42}',
)


def test_the_wording_of_a_summary_splits_no_candidate():
  records = _records('42', 'I get \\boxed{7}.', *_SUMMARIES)
  for turn in range(len(records)):
    assert _elects(records[turn:] + records[:turn]) == [True]
  wrong = _records('42', '\\boxed{42}', *(['\\boxed{7}', 'so 7', '7'] * 2))
  assert _elects(wrong) == [False]


def test_a_sentence_without_a_box_votes_for_what_it_states():
  answers = (
    'The answer is 7.',
    'So the answer is 42.',
    'She has 42 apples in the end.',
    'First there were 40 of them.\n\n**Answer:** 42',
  )
  (candidates,) = vote.candidates_of([_votes('math', '42', *answers)])
  assert candidates[0] != candidates[1] == candidates[2] == candidates[3]


@pytest.mark.parametrize(
  'gold,equal,other',
  [
    ('\\frac{1}{2}', ('\\frac12', '0.5', '1/2', '\\boxed{\\frac12}'), '2'),
    ('1000', ('1,000', '1000', '1{,}000', '10^3'), '100'),
    ('x^2+2x+1', ('(x+1)^2', '1+2x+x^2', 'x^2+2x+1'), 'x^2+1'),
    ('\\sqrt{8}', ('2\\sqrt{2}', '\\sqrt{8}', '\\sqrt8'), '2'),
    ('3', ('x=3', '3', '\\boxed{3}', '3.'), '4'),
    ('(1,2)', ('(1,2)', '(1, 2)', '\\left(1,2\\right)'), '(2,1)'),
    ('7', ('07', '7', '7.0'), '8'),
    ('25', ('25\\text{ cm}', '25', '5^2'), '24'),
  ],
)
def test_forms_of_one_value_are_one_candidate(gold, equal, other):
  """The other answer has as many votes as each form, and comes first."""
  records = _records(gold, other, other, *equal)
  assert _elects(records, records[::-1]) == [True, True]
  candidates = vote.candidates_of(
    [_votes('math', gold, *equal, other, *equal[::-1])]
  )[0]
  assert len(set(candidates)) == 2
  assert candidates[0] == candidates[-1] != candidates[len(equal)]


def _votes(source, gold, *answers):
  n = len(answers)
  return vote.votes_of(answers, [source] * n, [gold] * n, [None] * n)


@pytest.mark.parametrize(
  'answers,right',
  [
    (('7', '7', '8'), True),
    (('8', '8', '7'), False),
    (('7', None, None), True),
    ((None, None), False),
    (('7', '8'), True),  # A tie goes to the first.
    (('8', '7'), False),
    (('8', '7', '7.0', '8', '9'), False),
    (('', '7'), True),
  ],
)
def test_the_first_of_equals_is_elected(answers, right):
  assert _elects(_records('7', *answers)) == [right]


def test_an_order_changes_nothing_where_there_is_no_tie():
  answers = ('0.5', '\\frac12', '1/2', '2', '2', '3')
  for order in itertools.islice(itertools.permutations(answers), 0, 720, 60):
    assert _elects(_records('0.5', *order)) == [True]


def test_samples_that_the_grader_failed_on_vote_by_their_text():
  records = _records('7', '8', '7', '7')
  for record in records[1:]:
    record['verdict'] = 'timeout'
  assert _elects(records) == [False]  # Elected, but no grade says it is right.
  records.append(records[1] | {'verdict': 'correct'})
  assert _elects(records) == [True]
  bomb = _records('7', *['9^{9^{9^9}}'] * 3, '7', '7')
  assert bomb[0]['verdict'] == 'refused' and _elects(bomb) == [False]


def test_what_holds_nothing_to_grade_does_not_vote():
  gold = countdown_answer([2, 3], 6)
  records = _records(gold, 'none', 'none', '2*3', source='countdown')
  assert [record['verdict'] for record in records] == [
    'unparsable',
    'unparsable',
    'correct',
  ]
  assert _elects(records) == [True]


@pytest.mark.parametrize('source', ['countdown', 'arithmetic', 'code'])
def test_graders_whose_gold_is_no_answer_compare_texts(source):
  votes = _votes(source, '{}', '2*3', '2*3 ', '3*2', None)
  assert vote.candidates_of([votes]) == [[0, 0, 1, None]]


def test_the_grader_of_a_plugin_says_what_is_equal(plugin):
  plugin("""
    @registry.grader('caseless')
    def caseless(answer, gold):
      return answer.casefold() == gold.casefold()
    @registry.grader('length')
    def length(answer, gold):
      return len(answer) == int(gold)
  """)
  assert vote.candidates_of(
    [
      _votes('caseless', 'Paris', 'Rome', 'paris', 'PARIS', 'rome'),
      _votes('length', '5', 'Rome', 'paris', 'PARIS'),
    ]
  ) == [[0, 1, 1, 0], [0, 1, 2]]


def test_comparisons_are_bounded(monkeypatch):
  """Rare answers are left to their texts once the budget is spent."""
  calls = []

  def verdicts(items):
    calls.extend(items)
    return [dispatch.Verdict.WRONG for _ in items]

  monkeypatch.setattr(dispatch, 'verdicts', verdicts)
  answers = [f'x+{i}' for i in range(64)] + ['x+0'] * 3
  (candidates,) = vote.candidates_of([_votes('math', '1', *answers)])
  assert candidates[0] == candidates[-1] and len(set(candidates)) == 64
  assert len(calls) <= 2 * vote.MAX_COMPARISONS
  calls.clear()
  vote.candidates_of([_votes('math', '1', *map(str, range(64)))])
  assert not calls  # Integers need no grader.
