"""Which boxes of a text are one answer, and which replace others."""

import pytest

from r1jax.data.text import boxes, final_answer

_AND, _OR = ' \\text{ and } ', ' \\text{ or } '


@pytest.mark.parametrize(
  'text,want',
  [
    # One sentence lists them.
    ('\\boxed{1} and \\boxed{2}.', f'1{_AND}2'),
    ('$\\boxed{1}$, $\\boxed{2}$', f'1{_AND}2'),
    ('$\\boxed{1}$, $\\boxed{2}$, and $\\boxed{3}$.', f'1{_AND}2{_AND}3'),
    ('\\(\\boxed{1}\\) & \\(\\boxed{2}\\)', f'1{_AND}2'),
    ('\\boxed{1}; \\boxed{2}', f'1{_AND}2'),
    ('\\boxed{1} \\quad \\text{and} \\quad \\boxed{2}', f'1{_AND}2'),
    ('\\boxed{7} or \\boxed{42}', f'7{_OR}42'),
    ('either \\boxed{7} or maybe \\boxed{42}', f'7{_OR}42'),
    ('\\boxed{7} \\text{ or } \\boxed{42}', f'7{_OR}42'),
    ('It may be \\boxed{7}, or it may be \\boxed{42}.', f'7{_OR}42'),
    ('x = \\boxed{1} and y = \\boxed{2}', f'1{_AND}2'),
    ('\\boxed{3} boys and \\boxed{4} girls', f'3{_AND}4'),
    (
      'The width is \\boxed{3} cm and the height is \\boxed{5} cm.',
      f'3{_AND}5',
    ),
    ('\\boxed{1} und \\boxed{2}', f'1{_AND}2'),
    ('$\\boxed{1}$ 或 $\\boxed{2}$', f'1{_OR}2'),
    ('one answer is \\boxed{7} and another answer is \\boxed{42}', ...),
    ('\\boxed{-1}, \\boxed{3}, \\boxed{3}', f'-1{_AND}3{_AND}3'),
    # The list goes on in another line.
    ('\\[\\boxed{1}\\]\n\\[\\boxed{2}\\]', f'1{_AND}2'),
    ('\\[\\boxed{1}\\]\n\nand\n\n\\[\\boxed{2}\\]', f'1{_AND}2'),
    ('$\\boxed{1}$ or\n$\\boxed{2}$', f'1{_OR}2'),
    ('x = \\boxed{1}\ny = \\boxed{2}', f'1{_AND}2'),
    ('(a) \\boxed{1}\n(b) \\boxed{2}', f'1{_AND}2'),
    ('It is \\boxed{7}. Or \\boxed{42}.', f'7{_OR}42'),
    ('It is \\boxed{7}. Alternatively, \\boxed{42}.', f'7{_OR}42'),
    ('\\boxed{7} (or possibly \\boxed{42})', f'7{_OR}42'),
    ('\\boxed{7} | \\boxed{42}', f'7{_AND}42'),
    ('1. \\boxed{7}\n2. \\boxed{42}', f'7{_AND}42'),
    ('- \\boxed{7}\n- \\boxed{42}', f'7{_AND}42'),
    ('Case 1: \\boxed{7}\nCase 2: \\boxed{42}', f'7{_AND}42'),
    # The second one says the first in another way.
    ('\\boxed{\\frac12} or equivalently \\boxed{0.5}', f'\\frac12{_OR}0.5'),
    ('\\boxed{\\frac12} = \\boxed{0.5}', '\\frac12 = 0.5'),
    ('\\boxed{\\frac13}, or about \\boxed{0.33}', '\\frac13 \\approx 0.33'),
    ('\\boxed{42}\n\\boxed{42}', '42'),
    ('It is \\boxed{42}, that is, \\boxed{42}.', '42'),
    # The second one replaces the first.
    ('\\boxed{7}\n\n\\boxed{42}', '42'),
    ('\\boxed{7}. \\boxed{42}', '42'),
    ('\\boxed{7}. Wait, it is \\boxed{42}', '42'),
    ('\\boxed{7}, no, \\boxed{42}', '42'),
    ('first \\boxed{7}, then \\boxed{42}', '42'),
    ('\\boxed{7} or rather \\boxed{42}', '42'),
    ('I thought \\boxed{7}, but it is \\boxed{42}', '42'),
    ('x = \\boxed{7}, so the answer is \\boxed{42}', '42'),
    ('x = \\boxed{7} and the answer is \\boxed{42}', '42'),
    ('\\boxed{3} + \\boxed{4} = \\boxed{7}', '7'),
    ('\\boxed{7} no no no \\boxed{42}', '42'),
    ('It is \\boxed{42}.\n\nAnother way:\nthis gives \\boxed{42}', '42'),
    ('\\boxed{7}' + ' We see. ' * 40 + 'and \\boxed{42}', '42'),
    ('It is \\boxed{7}.\n\nNote: \\boxed{42} is wrong too.', '42'),
    # A box that the text denies is none.
    ('It is \\boxed{42}, not \\boxed{7}', '42'),
    ("It isn't $\\boxed{7}$ but $\\boxed{42}$", '42'),
    ('\\boxed{42} rather than \\boxed{7}', '42'),
    ('It is not \\boxed{7}.', None),
    # Other forms of a box.
    ('\\boxed{7}, then \\boxed 42.', '42'),
    ('\\fbox{1} and \\boxed{2}', f'1{_AND}2'),
    ('\\\\boxed{1} and \\\\boxed{2}', f'1{_AND}2'),
    ('\\boxed{1 \\boxed{2}} and \\boxed{3}', f'2{_AND}3'),
    ('\\boxed{1} and \\boxed{2', '1'),
  ],
)
def test_boxes_of_one_answer_are_joined(text, want):
  want = f'7{_AND}42' if want is ... else want
  assert final_answer.boxed(text) == want
  assert final_answer.stated(text) == (want or None)


def test_what_is_final_behind_all_boxes_counts():
  text = 'So \\boxed{7}. Final Answer: The final answer is $42$. I hope.'
  assert final_answer.boxed(text) == final_answer.stated(text) == '42'
  text = 'So \\boxed{7}. The answer is 42 apples.'
  assert final_answer.boxed(text) == final_answer.stated(text) == '7'


def test_a_boxed_sentence_with_numbers_keeps_its_box():
  """Without it a reader would take the last of its numbers."""
  for content in (
    'It lies somewhere between 3 and 7',
    'I think that it is either 7 or 42',
  ):
    answer = final_answer.boxed(f'So \\boxed{{{content}}}.')
    assert answer == f'\\boxed{{{content}}}'
    assert final_answer.unboxed(answer) == content
  for content in ('June 20', 'between 3 and 7', 'Paris', 'x = 3 when y = 7'):
    assert final_answer.boxed(f'So \\boxed{{{content}}}.') == content


def test_few_boxes_are_kept():
  found = boxes.find('\\boxed{1}' * 1_000)
  assert len(found) == boxes.MAX_BOXES
  assert found[-1] == boxes.Box(8_991, 9_000, '1')
