"""Graders of plugins: verdicts, and what a bad one costs."""

import logging

import pytest

from r1jax.errors import UserError
from r1jax.graders import dispatch, plugin_grader
from r1jax.graders.verdict import Grade, Verdict


def test_what_a_grader_returns_becomes_a_verdict(plugin):
  plugin("""
    @registry.grader('mine')
    def mine(answer, gold):
      return {'a': True, 'b': False, 'c': 0.25, 'd': 1.0, 'e': None}[answer]
  """)
  answers = ['a', 'b', 'c', 'd', 'e', '', None, ' a ']
  items = [(answer, 'gold', 'mine') for answer in answers]
  assert dispatch.grade([*items, ('7', '7', 'arithmetic')]) == [
    Grade(Verdict.CORRECT, 1.0),
    Grade(Verdict.WRONG, 0.0),
    Grade(Verdict.WRONG, 0.25),
    Grade(Verdict.CORRECT, 1.0),
    *[Grade(Verdict.UNPARSABLE, 0.0)] * 3,
    Grade(Verdict.CORRECT, 1.0),
    Grade(Verdict.CORRECT, 1.0),
  ]


@pytest.mark.parametrize(
  'body, verdict, message',
  [
    ("raise KeyError('no')", Verdict.CRASH, "KeyError: 'no' at line"),
    ('return 1.5', Verdict.CRASH, 'returned 1.5, outside of'),
    ("return float('nan')", Verdict.CRASH, 'returned nan'),
    ("return 'yes'", Verdict.CRASH, "returned 'yes', of type str"),
    ('import os; os._exit(1)', Verdict.CRASH, 'the worker died'),
    ('while True: pass', Verdict.TIMEOUT, 'took more than 2 s'),
  ],
)
def test_a_grader_that_fails_costs_that_answer(
  plugin, monkeypatch, caplog, body, verdict, message
):
  hangs = verdict is Verdict.TIMEOUT
  monkeypatch.setattr(plugin_grader, '_DEADLINE_SECS', 2.0 if hangs else 20.0)
  path = plugin(f"""
    @registry.grader('mine')
    def mine(answer, gold):
      if answer == gold:
        return True
      {body}
  """)
  with caplog.at_level(logging.WARNING):
    grades = dispatch.grade([(a, 'x', 'mine') for a in ('x', 'y', 'x', 'z')])
  good = Grade(Verdict.CORRECT, 1.0)
  assert grades == [good, Grade(verdict, None), good, Grade(verdict, None)]
  [record] = caplog.records
  assert record.getMessage().startswith(f'grader: {path}: mine ')
  assert message in record.getMessage()
  assert any(path in text for text in plugin_grader.first_errors())


def test_names_of_graders_are_checked(plugin):
  with pytest.raises(
    UserError, match="the grader 'math' is already registered"
  ):
    plugin("""
      @registry.grader('math')
      def mine(answer, gold):
        return True
    """)
  with pytest.raises(UserError, match="unknown 'mth'; did you mean 'math'"):
    dispatch.grade([('1', '1', 'mth')])
