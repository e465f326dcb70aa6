"""Finding, guarding and grading mathematical answers."""

import os
import signal
import threading
import time

import pytest

from r1jax.data.datasets import read_jsonl
from r1jax.graders import math_grader
from r1jax.graders.verdict import Verdict
from r1jax.records import Prompt


@pytest.fixture(scope='module', autouse=True)
def processes():
  yield
  math_grader.shutdown()


def _golds(shared, *names) -> list[str]:
  names = names or (
    'gsm8k_train',
    'gsm8k_test',
    'math_train12k',
    'math500',
    'aime24',
    'amc23',
  )
  return [
    row['answer']
    for name in names
    for row in read_jsonl(
      str(shared / f'data/math/{name}.jsonl'), {'answer': str}
    )
  ]


_BOMBS = [
  '9^9^9',
  '9**9**9',
  '9^{9^{9}}',
  '10^{10^{10}}',
  '10^{99}^{99}',
  '(10^{999})^{999}',
  '((x+1)^{99})^{99}',
  '\\left(10^{999}\\right)^{999}',
  '|10|^{99999}',
  '10000000!',
  '(10!)!',
  '10^{10!}',
  '\\frac{1}{100000!}',
  '2^{100000000}',
  '2^(-(10^6))',
  '2^{1{,}000{,}000}',
  '2^{1\\,000\\,000}',
  '2^\\frac{9999999}{1}',
  '10_{2}^{99999}',
  '\\binom{99999}{50000}',
  'binom(1e7, 5e6)',
  '\\prod_{k=1}^{99999} k',
  '(' * 30 + '1' + ')' * 30,
  '(' * 10_000 + '1' + ')' * 10_000,
  '1' * 1_000_000,
  '\\boxed{' * 150_000,
  '\\sum_{k=1}^{9} k^2',
  '\\int_0^1 x^x dx',
  '\\lim_{x\\to 0} x',
  '(x+y+z)^{1000}',
  '(a + b + c)^{40}',
  '\\left(1 + i\\right)^{999}',
  '((a+b)+(c+d)+e)^{40}',
  '((a+b)^{9}+c)^{30}',
  '(x+1)^{200}',
  '(\\sqrt{2}+(\\sqrt{3}+\\sqrt{5})+\\sqrt{7})^{50}',
  '(a+b)(b+c)(c+d)(d+e)(e+f)(f+g)(g+h)',
  '\\frac{x^{999}-1}{x-1}',
  '+'.join(f'1/(x+{i})' for i in range(9)),
  '+'.join(f'\\frac{{1}}{{x+{i}}}' for i in range(9)),
  '\\sin(x)^{50}\\cos(x)^{50}',
  '\\tan(\\tan(\\tan(\\tan(1))))',
  '\\begin{pmatrix}a&b\\\\c&d\\end{pmatrix}^{5}',
  '\\sqrt[3]{10^{3000}+1}',
  '\\cup'.join(['(0,1)'] * 20),
  '-' * 290 + '1',
  '\\{' * 20 + '\\}' * 20,
  '\\frac{1}{' * 100 + '1' + '}' * 100,
  '2^' * 1000 + '2',
  '{' * 100_000,
]


@pytest.mark.parametrize('answer', _BOMBS, ids=lambda text: text[:20])
def test_what_would_explode_costs_nothing(answer):
  """None of them equals 72, and none is evaluated beyond the bounds."""
  math_grader.grade([('144/2', '72')])
  began = time.monotonic()
  assert math_grader.grade([(answer, '72')])[0] in (
    Verdict.REFUSED,
    Verdict.WRONG,
    Verdict.UNPARSABLE,
  )
  assert time.monotonic() - began < 30


@pytest.mark.slow
def test_the_guard_lets_every_gold_answer_pass(shared):
  golds = _golds(shared)
  assert len(golds) == 21360
  assert [gold for gold in golds if math_grader.is_too_expensive(gold)] == []


_GRADED = [
  ('72', '72', 'correct'),
  ('72.0', '72', 'correct'),
  ('73', '72', 'wrong'),
  ('\\frac{1}{2}', '0.5', 'correct'),
  ('x^2+2x+1', '(x+1)^2', 'correct'),
  ('The answer is $72$.', '72', 'correct'),
  ('\\boxed{72}', '72', 'correct'),
  ('\\boxed{72} or \\boxed{73}', '72', 'wrong'),
  ('I do not know', '72', 'wrong'),
  ('', '72', 'unparsable'),
  (None, '72', 'unparsable'),
  ('\\boxed{}', '72', 'unparsable'),
  # Large numbers within the bound.
  ('2 \\cdot 2^{4949}', '2^{4950}', 'correct'),
  ('4^{2475}', '2^{4950}', 'correct'),
  ('(2^3)^4', '4096', 'correct'),
  ('\\frac{1}{2003! \\cdot 2004}', '\\frac{1}{2004!}', 'correct'),
  # What is a match, and what only looks like one.
  ('x=3', '3', 'correct'),
  ('y = 3', '3', 'correct'),
  ('3', 'x=3', 'correct'),
  ('3=3', '3', 'correct'),
  ('2+1=3', '3', 'correct'),
  ('5=3', '3', 'wrong'),
  ('x=5=3', '3', 'wrong'),
  ('300\\%', '3', 'correct'),
  ('0.56=56\\%', '56\\%', 'correct'),
  ('0.57=56\\%', '56\\%', 'wrong'),
  ('50', '50\\%', 'correct'),
  ('0.5', '50\\%', 'correct'),
  ('[3,3]', '3', 'wrong'),
  ('3,3', '3', 'wrong'),
  ('3 or 3', '3', 'wrong'),
  ('3 \\pm 0', '3', 'wrong'),
  ('\\{3\\}', '3', 'correct'),
  ('x \\in [3,3]', '3', 'wrong'),
  ('1,000', '1000', 'correct'),
  ('2,1', '1,2', 'correct'),
  ('[1,2)', '[1,2]', 'wrong'),
  ('x \\in (1,2)', '(1,2)', 'correct'),
  # Letters that are units elsewhere.
  ('b+a+c', 'a + b + c', 'correct'),
  ('(\\sin t)^2', '\\sin^2 t', 'correct'),
  ('\\frac{1}{29322216}', '\\dfrac{1}{29,\\!322,\\!216}', 'correct'),
  ('-5/3', '-\\frac{5}{3}.', 'correct'),
  # Broken text.
  ('3\x00', '3', 'correct'),
  ('3\ud800', '3', 'correct'),
  ('\\frac{1}{', '3', 'unparsable'),
  ('}{', '3', 'unparsable'),
  ('\\frac', '3', 'unparsable'),
  ('[3', '3', 'unparsable'),
  ('\\begin{pmatrix}', '3', 'unparsable'),
  ('\x00', '3', 'unparsable'),
]


def test_answers_are_graded_by_equivalence():
  found = math_grader.grade([(answer, gold) for answer, gold, _ in _GRADED])
  assert [
    (*case[:2], str(verdict)) for case, verdict in zip(_GRADED, found)
  ] == _GRADED


@pytest.mark.slow
def test_real_answers_in_other_words(shared):
  golds = [gold for gold in _golds(shared, 'gsm8k_test') if gold.isdigit()]
  found = math_grader.grade([(gold + '.0', gold) for gold in golds[:300]])
  assert found.count(Verdict.CORRECT) >= 299
  golds = sorted(set(_golds(shared, 'math500')))[::3]
  found = math_grader.grade([(f'{gold} .', gold) for gold in golds])
  assert [
    gold
    for gold, verdict in zip(golds, found)
    if verdict is not Verdict.CORRECT
  ] == []
  others = golds[1:] + golds[:1]
  found = math_grader.grade(list(zip(others, golds)))
  assert found.count(Verdict.WRONG) >= 0.97 * len(golds)
  assert found.count(Verdict.TIMEOUT) + found.count(Verdict.CRASH) == 0


def test_any_thread_may_grade():
  """Also where signals, which others use for time-outs, cannot work."""
  found = []
  thread = threading.Thread(
    target=lambda: found.extend(
      math_grader.grade([('144/2', '72'), ('73', '72')])
    )
  )
  thread.start()
  thread.join()
  assert found == ['correct', 'wrong']


@pytest.fixture
def slow_worker(monkeypatch):
  """Workers that an answer which begins with x+7 keeps busy for ever."""
  math_grader.shutdown()
  monkeypatch.setattr(math_grader, '_MODULE', 'tests.graders.slow_worker')
  yield
  math_grader.shutdown()


def test_what_never_ends_times_out_and_has_no_score(slow_worker):
  found = math_grader.grade([('x+7', '72'), ('144/2', '72'), ('x+7', '72')])
  assert found == [Verdict.TIMEOUT, Verdict.CORRECT, Verdict.TIMEOUT]
  assert found[0].score is None


def test_what_never_ends_costs_no_worker_and_no_neighbour(slow_worker):
  answers = [(f'{i}/2', f'{i / 2}') for i in range(1, 100)]
  math_grader.grade(answers[:2])
  pids = math_grader._worker_pool().pids()
  bombs = [(f'x+7+{i}', '72') for i in range(6)]
  found = math_grader.grade(
    [pair for i in range(99) for pair in (*bombs[i : i + 1], answers[i])]
  )
  assert found[1:12:2] == [Verdict.CORRECT] * 6
  assert found[12:] == [Verdict.CORRECT] * 93
  assert found[:12:2] == [Verdict.TIMEOUT] * 6
  assert set(pids) <= set(math_grader._worker_pool().pids())


def test_killed_graders_are_replaced_and_closed_ones_start_again():
  assert math_grader.grade([('144/2', '72')]) == ['correct']
  for pid in math_grader._worker_pool().pids():
    os.kill(pid, signal.SIGKILL)
  assert math_grader.grade([('145/2', '72')]) == ['wrong']
  math_grader.shutdown()
  math_grader.shutdown()
  assert math_grader.grade([('144/2', '72')]) == ['correct']


def _unreadable(golds) -> list[str]:
  return [
    p.answer
    for p in math_grader.unparsable_golds(
      Prompt(id=str(n), text='', question='', answer=gold, source='math')
      for n, gold in enumerate(golds)
    )
  ]


@pytest.mark.slow
def test_a_gold_answer_that_nobody_can_read_is_found(shared):
  assert _unreadable(['72', '\\frac', 'x']) == ['\\frac']
  assert _unreadable(['9^9^9', '}{', '3']) == ['9^9^9', '}{']
  assert not _unreadable(_golds(shared, 'math500'))
  assert not _unreadable(_golds(shared, 'gsm8k_train'))
