"""Graders and the combined reward."""

import numpy as np
import pytest

from r1jax.data.datasets import countdown_answer, read_jsonl
from r1jax.errors import UserError
from r1jax.records import Prompt
from r1jax.rewards import answers, math_answer, workers
from r1jax.rewards.combine import RuleReward, completion_texts
from r1jax.rewards.verdict import Verdict


def is_right(answer, gold, source):
  return answers.grade([(answer, gold, source)]) == [Verdict.CORRECT]


@pytest.mark.parametrize('answer,right', [
    ('12', True), (' 12 ', True), ('', False), (None, False), ('112', False),
    ('12.0', False), ('+12', False), ('1 2', False), ('twelve', False)])
def test_integers_are_exact(answer, right):
  assert is_right(answer, '12', 'arithmetic') == right


@pytest.mark.parametrize('answer,right', [
    ('(44+19)+35', True), ('44 + 19 + 35', True), ('35+19+44', True),
    ('98', False), ('44+19', False), ('44+19+35+0', False),
    ('44+44+10', False), ('44+19+35=98', False), ('44+19+-35', False),
    ('44**19*35', False), ('44//19+35', False), ('4419+35', False),
    ('(' * 100 + '44' + ')' * 100 + '+19+35', True), ('44+19+35)', False),
    ('__import__("os")', False), ('44/0+19+35', False), ('', False)])
def test_countdown_is_exact(answer, right):
  gold = countdown_answer([44, 19, 35], 98)
  assert is_right(answer, gold, 'countdown') == right


def test_countdown_divides_exactly():
  gold = countdown_answer([1, 3, 3], 1)
  assert is_right('1/3*3', gold, 'countdown')
  assert is_right('3/(1/3)', countdown_answer([3, 1, 3], 9), 'countdown')


def test_every_given_countdown_solution_is_right(shared):
  rows = read_jsonl(str(shared / 'data/countdown/countdown_test.jsonl'), {})
  assert all(
      is_right(row['solution'], countdown_answer(row['nums'], row['target']),
               'countdown') for row in rows)


def _prompts():
  return [Prompt(id=str(i), text='', question='', answer=str(i),
                 source='arithmetic') for i in range(2)]


def test_reward_is_the_weighted_sum_of_its_parts():
  form = '<think>a</think><answer>{}</answer>'
  texts = [form.format(0), form.format(1), '<answer>1</answer>', '1']
  scored = RuleReward({'accuracy': 1.0, 'format': 0.5}, False).score(
      texts, _prompts())
  assert scored.parts['accuracy'].tolist() == [1, 0, 1, 0]
  assert scored.parts['format'].tolist() == [1, 1, 0, 0]
  np.testing.assert_allclose(scored.reward_B, [1.5, 0.5, 1.0, 0.0])


def test_sources_may_be_mixed_and_verdicts_keep_their_order():
  gold = countdown_answer([1, 2], 3)
  assert answers.grade([
      ('7', '7', 'arithmetic'), ('1/2', '0.5', 'math'), ('1+1', gold,
                                                         'countdown'),
      (None, '7', 'math'), ('8', '7', 'arithmetic'), ('x', gold, 'countdown'),
      ('1' * 301, '7', 'arithmetic'), ('9^9^9', '7', 'math')]) == [
          'correct', 'correct', 'wrong', 'unparsable', 'wrong', 'unparsable',
          'refused', 'refused']
  with pytest.raises(KeyError, match='chess'):
    answers.grade([('e4', 'e4', 'chess')])


def test_what_no_grader_could_grade_has_no_reward(monkeypatch):
  class Broken:
    def map(self, jobs, total_secs):
      return [workers.Failure('timeout', ''), 'wrong',
              workers.Failure('crash', '')]

  monkeypatch.setattr(math_answer, '_processes', Broken)
  prompts = [_prompts()[0].replace(source='math')]
  texts = [f'<think>a</think><answer>{i}</answer>' for i in (1, 2, 3, 0)]
  scored = RuleReward({'accuracy': 1.0, 'format': 0.5}, False).score(
      texts, prompts)
  assert scored.verdicts == ['timeout', 'wrong', 'crash', 'correct']
  assert scored.scorable_B.tolist() == [False, True, False, True]
  np.testing.assert_array_equal(
      scored.parts['accuracy'], [np.nan, 0, np.nan, 1])
  np.testing.assert_array_equal(scored.reward_B, [0, 0.5, 0, 1.5])


def test_an_unknown_part_is_named():
  with pytest.raises(UserError, match="unknown part 'style'"):
    RuleReward({'style': 1.0}, False)


def test_texts_end_before_the_stop_token_only_if_there_is_one():
  tokens = np.array([[9, 1, 2, 3], [9, 1, 2, 3]])
  mask = np.array([[0, 1, 1, 1], [0, 1, 1, 1]], bool)
  rows = completion_texts(tokens, mask, np.array([1, 0]),
                          lambda ids: [list(map(int, r)) for r in ids])
  assert rows == [[1, 2], [1, 2, 3]]
