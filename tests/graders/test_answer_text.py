"""Finding the answer in a completion."""

import time

import pytest

from r1jax.graders import answer_text


@pytest.mark.parametrize(
  'text,want',
  [
    ('3', '3'),
    (' 3 ', '3'),
    ('', ''),
    ('so \\boxed{3}.', '3'),
    ('\\boxed{1} no, \\boxed{2}', '2'),
    ('\\boxed{\\boxed{3}}', '3'),
    ('\\boxed{\\frac{1}{2}}', '\\frac{1}{2}'),
    ('\\fbox{4}', '4'),
    ('\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'),
    ('\\boxed {5}', '5'),
    ('\\boxed{1} and \\boxed{2', '1'),
    ('\\boxed{2', ''),
    ('}}\\boxed{2}', '2'),
    ('{\\boxed{2}', '2'),
    ('\\boxed 2', '2'),
    ('\\boxed{1} and \\boxed{2}', '1 \\text{ and } 2'),
    ('$\\boxed{1}$, $\\boxed{2}$.', '1 \\text{ and } 2'),
    ('\\boxed{1} \\text{ or } \\boxed{2}', '1 \\text{ or } 2'),
    ('x = \\boxed{1}, y = \\boxed{2}', '1 \\text{ and } 2'),
    ('\\boxed{1} papers and \\boxed{2} bins', '1 \\text{ and } 2'),
    ('\\boxed{1}. Wait, it is \\boxed{2}', '2'),
    ('\\boxed{1} is not right. And \\boxed{2} is.', '2'),
    ('\\\\boxed{004}', '004'),
  ],
)
def test_the_last_complete_box_is_the_answer(text, want):
  assert answer_text.extract_answer(text) == want


@pytest.mark.parametrize(
  'text',
  [
    '\\boxed{' * 150_000,
    '\\boxed{' * 75_000 + '}' * 75_000,
    '\\boxed{1}' * 150_000,
    '\\' * 1_000_001,
    '{' * 1_000_000,
    '1' * 1_000_000,
    '\\boxed ' * 150_000,
    '1,' * 500_000,
  ],
)
def test_finding_it_takes_linear_time(text):
  began = time.process_time()
  answer_text.extract_answer(text)
  answer_text.candidates(text)
  assert time.process_time() - began < 60  # A quadratic search takes hours.


@pytest.mark.parametrize(
  'text,want',
  [
    ('There are 7 students left', '7'),
    ('So the answer is 42.', '42'),
    ('Final Answer: Jane has 3 hours. I hope it is correct.', '3'),
    ('the number is not 10 which is 1,000.99€', '1,000.99'),
    ('3 + 4 = 7, so she has 11 cards.\nA: 11', '11'),
    ('Thus $x = 5$.', 'x = 5'),
    ('the sum \\(\\frac{1}{2}\\) is right', '\\frac{1}{2}'),
    ('\\boxed{There are 7 left}', '7'),
    ('因此，水池中水将在300分钟内被放完。', '300'),
  ],
)
def test_prose_may_stand_around_an_answer(text, want):
  assert want in (answer_text.candidates(text) or [])


@pytest.mark.parametrize(
  'text',
  [
    '2007 + \\frac\\pi 2',
    '\\frac{1}{2} \\foo 3',
    'x \\bmod 5',
    '20 \\mathrm{ft} x 35 \\mathrm{ft}',
    '\\boxed{2 \\$ 3}',
    '3 \\text{ cm}',
  ],
)
def test_no_part_of_a_formula_is_the_answer(text):
  assert len(answer_text.candidates(text) or []) == 1


def test_a_long_answer_is_refused_and_a_long_text_is_not():
  assert answer_text.candidates('1' * 301) is None
  assert answer_text.candidates('\\boxed{' + '1' * 301 + '}') is None
  assert answer_text.candidates('We see. ' * 99 + 'It is 5.')[0] == '5'
  assert answer_text.candidates('1' * 301, is_gold=True)
