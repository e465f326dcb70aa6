"""Paired comparison of two evaluations."""

import dataclasses
import json

import numpy as np
import pytest

from r1jax import registry
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.evaluate import comparison, suite_report
from r1jax.evaluate.intervals import mcnemar_p
from r1jax.graders import dispatch
from tests.evaluate.test_stored import record


def _result(rights, k=2):
  """A suite in which problem p has rights[p] right completions of k."""
  records = [
    record(
      p,
      g,
      completion=f'<think></think><answer>{"2" if g < right else 3 + g}</answer>',
      verdict='correct' if g < right else 'wrong',
      source='arithmetic',
    )
    for p, right in enumerate(rights)
    for g in range(k)
  ]
  return suite_report.result('s', records, ResponseParser(), k)


def test_the_numbers_of_a_suite():
  found = _result([2, 1, 0, 0])
  assert found.pass_at_1.mean == pytest.approx(3 / 8)
  assert found.pass_at_k == {1: pytest.approx(3 / 8), 2: pytest.approx(1 / 2)}
  # Where a right and a wrong answer have one vote each, the first is elected.
  assert found.consensus.mean == 0.5
  assert [p['correct'] for p in found.problems] == [2, 1, 0, 0]
  again = suite_report.SuiteResult.from_json(found.to_json())
  assert again == found
  head, row = suite_report.table([found])
  assert dict(zip(head, row))['pass@1'] == '0.375'
  part = dataclasses.replace(found, available=9)
  assert suite_report.table([part])[1][1] == 'first 4 of 9'


def test_problems_that_flip_are_paired():
  before, after = _result([2, 0, 0, 0, 2]), _result([0, 2, 2, 1, 2])
  found = comparison.compare(before, after)
  assert [f.id for f in found.lost] == ['p0']
  assert [f.id for f in found.won] == ['p1', 'p2', 'p3']
  assert found.won[0] == comparison.Flip('p1', 0.0, 1.0)
  assert found.difference.mean == pytest.approx((-1 + 1 + 1 + 0.5 + 0) / 5)
  assert found.difference.low < 0 < found.difference.high
  assert found.p == mcnemar_p(1, 3)


def test_pairing_is_sharper_than_two_intervals():
  """The same gain on problems of very different difficulty is seen."""
  rng = np.random.default_rng(0)
  rights = rng.integers(0, 9, 80)
  found = comparison.compare(_result(rights, 10), _result(rights + 1, 10))
  assert found.difference.low == pytest.approx(0.1)
  assert found.before.high > found.after.low


def test_other_problems_are_refused():
  one, other = _result([1, 1]), _result([1, 1, 1])
  with pytest.raises(UserError, match='has 2 problems and the second 3.*p2'):
    comparison.compare(one, other)


@pytest.mark.parametrize(
  'source,gold,texts,want',
  [
    # Two completions name C in different words, and one names B.
    ('choice', 'C', ('It is (C).', 'B', 'C. Paris, as said'), True),
    ('choice', 'C', ('It is (B).', 'B', 'C. Paris, as said'), False),
    (
      'zebra',
      '{"House 1": {"name": "Ann"}}',
      (
        '{"House 1": {"name": "Bob"}}',
        'So: {"house 1": {"Name": "ann"}}',
        '{"solution": {"House 1": {"name": "Ann"}}}',
      ),
      True,
    ),
  ],
)
def test_votes_are_for_what_an_answer_says_not_for_its_words(
  source, gold, texts, want
):
  parser = ResponseParser(registry.response_format.get('think'))
  records = [
    record(0, g, completion=f'<think></think>{text}', source=source, gold=gold)
    | {'verdict': str(dispatch.verdicts([(text, gold, source)])[0])}
    for g, text in enumerate(texts)
  ]
  found = suite_report.result('s', records, parser, 3)
  assert found.problems[0]['consensus'] is want


def test_instructions_have_four_accuracies_and_no_votes():
  gold = json.dumps(
    {
      'instruction_id_list': [
        'punctuation:no_comma',
        'detectable_format:title',
      ],
      'kwargs': [{}, {}],
    }
  )
  records = [
    record(0, g, completion=text, answer=text, source='ifeval', gold=gold)
    for g, text in enumerate(['<<A title>> so', 'one, two', '', 'Capital'])
  ]
  with dispatch.shutdown_on_exit():
    found = suite_report.result('ifeval', records, ResponseParser(), 4)
  assert found.consensus is None
  assert found.more['prompt_strict'] == 1 / 4
  assert found.more['instruction_strict'] == (2 + 0 + 0 + 1) / 8
  assert 'prompt_strict 0.250' in suite_report.notes([found])[0]
