"""Graders and the combined reward."""

import math
import random
import threading

import numpy as np
import pytest

from r1jax.data.datasets import countdown_answer, read_jsonl
from r1jax.errors import UserError
from r1jax.records import Prompt
from r1jax.rewards import answers, magnitude
from r1jax.rewards.combine import RuleReward, completion_texts


@pytest.mark.parametrize('answer,right', [
    ('12', True), (' 12 ', True), ('', False), (None, False), ('112', False),
    ('12.0', False), ('+12', False), ('1 2', False), ('twelve', False)])
def test_integers_are_exact(answer, right):
  assert answers.is_right(answer, '12', 'arithmetic') == right


@pytest.mark.parametrize('answer,right', [
    ('(44+19)+35', True), ('44 + 19 + 35', True), ('35+19+44', True),
    ('98', False), ('44+19', False), ('44+19+35+0', False),
    ('44+44+10', False), ('44+19+35=98', False), ('44+19+-35', False),
    ('44**19*35', False), ('44//19+35', False), ('4419+35', False),
    ('(' * 100 + '44' + ')' * 100 + '+19+35', True), ('44+19+35)', False),
    ('__import__("os")', False), ('44/0+19+35', False), ('', False)])
def test_countdown_is_exact(answer, right):
  gold = countdown_answer([44, 19, 35], 98)
  assert answers.is_right(answer, gold, 'countdown') == right


def test_countdown_divides_exactly():
  gold = countdown_answer([1, 3, 3], 1)
  assert answers.is_right('1/3*3', gold, 'countdown')
  assert answers.is_right('3/(1/3)', countdown_answer([3, 1, 3], 9),
                          'countdown')


def test_every_given_countdown_solution_is_right(shared):
  rows = read_jsonl(str(shared / 'data/countdown/countdown_test.jsonl'), {})
  assert all(
      answers.is_right(row['solution'],
                       countdown_answer(row['nums'], row['target']),
                       'countdown') for row in rows)


@pytest.mark.parametrize('answer,gold,right', [
    ('72', '72', True), ('72.0', '72', True), ('\\frac{1}{2}', '0.5', True),
    ('x^2+2x+1', '(x+1)^2', True), ('73', '72', False), ('', '72', False),
    ('I do not know', '72', False),
    ('9^9^9^9', '72', False), ('10000000!', '72', False),
    ('2^{100000000}', '72', False), ('((' * 15 + '72' + '))' * 15, '72', False),
    ('7' * 5000, '72', False)])
def test_math_is_graded_by_equivalence_and_bombs_are_wrong(
    answer, gold, right):
  assert answers.is_right(answer, gold, 'math') == right


def _golds(shared) -> list[str]:
  names = ('gsm8k_train', 'gsm8k_test', 'math_train12k', 'math500', 'aime24',
           'amc23')
  return [row['answer'] for name in names for row in read_jsonl(
      str(shared / f'data/math/{name}.jsonl'), {'answer': str})]


def test_the_guard_lets_every_gold_answer_pass(shared):
  golds = _golds(shared)
  assert len(golds) == 21360
  assert [gold for gold in golds if answers.is_bomb(gold)] == []


@pytest.mark.parametrize('answer', [
    '9^9^9', '9**9**9', '9^{9^{9}}', '10^{10^{10}}', '10^{99}^{99}',
    '(10^{999})^{999}', '\\left(10^{999}\\right)^{999}', '|10|^{99999}',
    '10000000!', '(10!)!', '10^{10!}', '\\frac{1}{100000!}', '2^{100000000}',
    '2^(-(10^6))', '2^{1{,}000{,}000}', '2^{1\\,000\\,000}',
    '2^\\frac{9999999}{1}', '10_{2}^{99999}', '\\binom{99999}{50000}',
    '\\prod_{k=1}^{99999} k', '(' * 30 + '1' + ')' * 30])
def test_the_guard_refuses_what_would_explode(answer):
  assert answers.is_bomb(answer)


@pytest.mark.parametrize('answer,gold', [
    ('2 \\cdot 2^{4949}', '2^{4950}'), ('4^{2475}', '2^{4950}'),
    ('\\frac{1}{2003! \\cdot 2004}', '\\frac{1}{2004!}'),
    ('2^{2^{3}}', '256'), ('(2^3)^4', '4096')])
def test_large_numbers_within_the_bound_are_graded(answer, gold):
  assert answers.is_right(answer, gold, 'math')


def test_no_number_has_more_digits_than_its_bound():
  """Random expressions, in plain and in LaTeX notation, and their values."""
  rng = random.Random(0)

  def draw(depth):
    if not depth:
      number = rng.choice([0, 1, 2, 3, 7, 10, 12])
      return str(number), number
    (left, a), (right, b) = draw(depth - 1), draw(rng.randrange(depth))
    kind = rng.choice('+*^!')
    if kind == '^' and abs(b) * math.log10(abs(a) + 2) < 1000:
      return f'({left})^{{{right}}}', a ** b
    if kind == '!' and a <= 200:
      return f'({left})!', math.factorial(a)
    if kind == '*':
      return f'({left})\\cdot({right})', a * b
    return f'{left}+{right}', a + b

  for _ in range(3000):
    text, value = draw(rng.randrange(5))
    assert math.log10(value or 1) <= magnitude.digits(text), text


def test_gold_answers_of_gsm8k_are_graded_by_value(shared):
  rows = read_jsonl(str(shared / 'data/math/gsm8k_test.jsonl'), {'answer': str})
  assert sum(answers.is_right(row['answer'] + '.0', row['answer'], 'math')
             for row in rows[:50]) >= 48


def test_math_off_the_main_thread_refuses_rather_than_scores_zero():
  caught = []

  def grade():
    try:
      answers.is_right('73', '72', 'math')
    except RuntimeError as error:
      caught.append(error)

  thread = threading.Thread(target=grade)
  thread.start()
  thread.join()
  assert 'main thread' in str(caught[0])


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


def test_an_unknown_part_is_named():
  with pytest.raises(UserError, match="unknown part 'style'"):
    RuleReward({'style': 1.0}, False)


def test_texts_end_before_the_stop_token_only_if_there_is_one():
  tokens = np.array([[9, 1, 2, 3], [9, 1, 2, 3]])
  mask = np.array([[0, 1, 1, 1], [0, 1, 1, 1]], bool)
  rows = completion_texts(tokens, mask, np.array([1, 0]),
                          lambda ids: [list(map(int, r)) for r in ids])
  assert rows == [[1, 2], [1, 2, 3]]
