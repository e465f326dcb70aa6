"""The arithmetic of pass@1, cons@k and self-corrections."""

import pytest

from r1jax.data.text.response_formats import ResponseParser
from r1jax.evaluate import evaluator


def _rows(*answers):
  return [
    {
      'completion': f'<think>x</think><answer>{answer}</answer>'
      if answer
      else 'nothing',
      'verdict': 'correct' if answer == '7' else 'wrong',
    }
    for answer in answers
  ]


@pytest.mark.parametrize(
  'answers,right',
  [
    (('7', '7', '8'), True),
    (('8', '8', '7'), False),
    (('7', None, None), True),
    ((None, None), False),
    (('7', '8'), True),
    (('8', '7'), False),
    (('', '7'), True),
  ],
)
def test_cons_is_the_majority_of_those_that_answer(answers, right):
  assert (
    evaluator.majority_correct([_rows(*answers)] * 2, ResponseParser())
    == [right] * 2
  )


@pytest.mark.parametrize(
  'text,corrects',
  [
    ('<think>3 wait 4</think>', True),
    ('<think>Wait, no</think>', True),
    ('<think>the waiter came</think>', False),
    ('<think>3</think>wait', False),
    ('', False),
  ],
)
def test_a_self_correction_is_a_word_of_the_reasoning(text, corrects):
  assert evaluator.self_corrects(text, '</think>') == corrects
