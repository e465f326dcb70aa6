"""Final answers of texts without tags: boxed, stated, or the last value."""

import time

import pytest

from r1jax.data.text import final_answer


@pytest.mark.parametrize(
  'text,want',
  [
    ('so it is \\boxed{42}.', '42'),
    ('first \\boxed{7}, then \\boxed{42}', '42'),
    ('\\boxed{7}\n\n\\boxed{42}', '42'),
    ('$\\boxed{\\frac{1}{2}}$ and more text', '\\frac{1}{2}'),
    ('\\fbox{3}', '3'),
    ('\\boxed {3}', '3'),
    ('\\boxed{ \\{1, 2\\} }', '\\{1, 2\\}'),
    ('\\boxed{4 \\boxed{2}}', '2'),
    ('our answer is $\\boxed 42$.', '42'),
    ('\\boxed -3.5.', '-3.5'),
    ('\\boxed{7}, then \\boxed 8', '8'),
    ('\\boxed 7, then \\boxed{8}', '8'),
    ('\\boxed{42', None),
    ('\\boxed{1} but \\boxed{42', '1'),
    ('The answer is 42', None),
    ('\\boxed{}', ''),
    ('', None),
  ],
)
def test_the_last_box_counts(text, want):
  assert final_answer.boxed(text) == want


_STATED = [
  # A box comes first, wherever it stands.
  ('So the answer is $\\boxed{42}$.', '42'),
  ('\\boxed{42}\nThe answer is 42 apples.', '42'),
  ('thus \\boxed{42', None),
  # GSM8K's hashes.
  ('#### 42', '42'),
  ('3 + 4 = 7\n#### 1,250', '1,250'),
  ('3 + 4 = 7\n#### 18 dollars\n', '18 dollars'),
  ('#### Step 1: add\n3 + 4 = 7\nwhich is 7 in total', '7'),
  ('3 + 4 = 7\nA: 7', '7'),
  ('A: 5\nB: 6\nSo it is the second, 6', '6'),
  # Statements, the last of them.
  ('The answer is 42', '42'),
  ('The answer is 42.', '42'),
  ('3 + 4 = 7. So the answer is 7. The answer is 42', '42'),
  ('Answer: 42', '42'),
  ('**Answer:** 42', '42'),
  ('**Answer**: 42', '42'),
  ('The final answer is: **42**', '42'),
  ('**Final Answer**\n\n42', '42'),
  ('### Final Answer:\n\n$$x=42$$', 'x=42'),
  ('The answer is\n\\[\n42\n\\]', '42'),
  ('Final Answer: The final answer is $42$. I hope it is correct.', '42'),
  ('The answer is $x = 3$ or $x = 5$.', '$x = 3$ or $x = 5$'),
  ('The answer is that she has 7 apples left', '7'),
  ('The correct answer is (B).', '(B)'),
  ('The answer is Paris.', 'Paris'),
  ('The answer is Dr. No. He is a villain.', 'Dr. No'),
  ('The answer is 42. I checked it: the answer is correct.', '42'),
  ('Answer: 42\n\nExplanation: 6 + 7 is 13', '42'),
  ('The answer is 42 (forty-two).', '42'),
  ('The answer is 3 (mod 7).', '3 (mod 7)'),
  ('The answer is approximately 3.14.', '3.14'),
  ('The answer is "Paris".', 'Paris'),
  ('Answer: $18', '18'),
  ('The answer is <answer>42</answer>', '42'),
  ('よって、答えは $\\frac{1}{2}$ である。', '\\frac{1}{2}'),
  ('The answer is not 5 but 7', '7'),
  ('The answer is 3 boys and 4 girls.', '3 boys and 4 girls'),
  ('The answer is 42, because 6 * 7 = 42.', '42'),
  ('This is easy to answer: 6 * 7 = 42 so that it is 42', '42'),
  ('The answer to part 1 is 5, and the answer to part 2 is 7.', '7'),
  # Other languages.
  ('因此，答案为：$\\frac{1}{2}$。', '\\frac{1}{2}'),
  ('所以答案是42元。', '42'),
  ('答えは42です。', '42'),
  ('คำตอบคือ 42 บาท', '42'),
  ('الإجابة هي ٤٢', '42'),
  ('Ответ: 42', '42'),
  ('La respuesta es 42.', '42'),
  ('Die Antwort ist 42.', '42'),
  ('정답: 42입니다', '42'),
  # A program goes to its grader as it is.
  (
    'Add them:\n```python\nprint(1)\n```',
    'Add them:\n```python\nprint(1)\n```',
  ),
  ('Here is the answer:\n```python\nprint(1)\n```\nIt prints 1.', ...),
  ('```python\nprint("The answer is", x)\n```', ...),
  ('```python\n#### 7\n```\nThe answer is the sum of all.', ...),
  ('```python\nprint(6 * 7)\n```\nThe answer is 42.', '42'),
  ('```python\nprint(1)', ...),  # Cut off.
  # One line.
  ('42', '42'),
  ('3/4', '3/4'),
  ('(1, 2)', '(1, 2)'),
  ('x = 5.', 'x = 5'),
  ('18 dollars', '18 dollars'),
  ('Paris', 'Paris'),
  ('$\\frac{1}{2}$', '\\frac{1}{2}'),
  ('It must be somewhere in Paris', 'It must be somewhere in Paris'),
  ('It is 3.14159', '3.14159'),
  ('Therefore, $x = 42$.', 'x = 42'),
  ('所以一共有42个苹果。', '42'),
  ('したがって、42個のりんごがあります。', '42'),
  ('42 square meters', '42 square meters'),
  ('June 20', 'June 20'),
  ('either 7 or 42', 'either 7 or 42'),
  # The last formula or number.
  ('She sells 3 for $5 each, so she gets $15.', '15'),
  ('So it is $\\frac{3}{4}$ of them.\nDone.', '\\frac{3}{4}'),
  ('Half of them, so 1/2 of it remains', '1/2'),
  ('We find 2^10 apples in all cases', '2^10'),
  ('It grew by 12.5% over the year', '12.5%'),
  ('The train then leaves at 12:30 today', '12:30'),
  ('It fell to −5 degrees over night', '-5'),
  ('In the end it must be either 7 or 42.', '7 or 42'),
  ('We know that $x=3$ or $x=5$ is the case.', '$x=3$ or $x=5$'),
  ('We know that $x=3$, and $y=5$ is the case.', 'y=5'),
  ('There are 5 possible values of the number $n$.', '5'),
  ('The point of intersection is at (3, 5).', '(3, 5)'),
  ('In the end we have 3x + 2 apples here', '3x + 2'),
  ('He gets 5 x 3 = <<5*3=15>>15 apples from us today', '15'),
  ('Wir haben am Ende also 2,74 Meter', '2,74'),
  # A formula of several lines, and several formulas.
  ('x +\n3', 'x +\n3'),
  ('3 + 4 = 7\n7 + 4 = 11', '11'),
  # Behind a thought, within tags.
  ('is it 7?</think>The answer is 42.', '42'),
  ('<answer>42</answer> since 6 * 7 is so', '42'),
  # Nothing.
  ('I do not know\nwhat that would be', None),
  ('', None),
  ('  \n', None),
]


@pytest.mark.parametrize('text,want', _STATED)
def test_a_stated_answer_is_found(text, want):
  want = text if want is ... else want
  assert final_answer.stated(text) == want


def test_an_answer_that_was_found_is_found_again():
  for text, _ in _STATED:
    answer = final_answer.stated(text)
    assert final_answer.stated(answer or '') == answer, text


@pytest.mark.parametrize(
  'unit',
  [
    'answer ',
    '```',
    '``` ',
    'answer is ',
    '\\[ ',
    '$ 1 ',
    '#### a b c\n',
    '\\boxed{',
    '\\boxed{1} and ',
    '1',
    '\\text{',
    '*',
  ],
)
def test_a_hostile_text_takes_linear_time(unit):
  began = time.process_time()
  final_answer.stated(unit * (300_000 // len(unit)))
  assert time.process_time() - began < 30  # A quadratic search takes minutes.
