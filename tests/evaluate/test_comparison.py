"""Paired comparison of two evaluations."""

import dataclasses

import numpy as np
import pytest

from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.evaluate import comparison, suite_report
from r1jax.evaluate.intervals import mcnemar_p
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
  # Of one right and one wrong answer the first is elected.
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
