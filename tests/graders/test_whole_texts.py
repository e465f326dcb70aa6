"""A whole text is graded as its extracted answer, whatever the response format."""

import random
import re

import pytest

from r1jax import registry
from r1jax.data.datasets import read_jsonl
from r1jax.data.text import final_answer
from r1jax.data.text.response_formats import ResponseParser
from r1jax.graders import answer_text, math_grader
from r1jax.graders.verdict import Verdict

_COMPLETIONS = {
  'boxed': '{}',
  'plain': '{}',
  'think': '<think>Is it 7?</think>{}',
  'think_answer': '<think>Is it \\boxed{{7}}?</think><answer>{}</answer>',
}


@pytest.fixture(scope='module', autouse=True)
def processes():
  yield
  math_grader.shutdown()


def _extracted(text: str) -> dict[str, str | None]:
  """Returns the answer that each response format has for a text."""
  return {
    name: ResponseParser(registry.response_format.get(name))
    .parse(completion.format(text))
    .answer
    for name, completion in _COMPLETIONS.items()
  }


def _graded(texts: list[tuple[str, str]]) -> list[Verdict]:
  """Grades whole texts, and checks that each format's answer grades alike."""
  extracted = [_extracted(text) for text, _ in texts]
  verdicts = math_grader.grade(texts)
  for name in _COMPLETIONS:
    answers = [answers[name] for answers in extracted]
    found = math_grader.grade([(a, g) for a, (_, g) in zip(answers, texts)])
    assert [
      (text, answer)
      for (text, _), answer, verdict, other in zip(
        texts, answers, found, verdicts
      )
      if verdict is not other and ('boxed' in text or name != 'boxed')
    ] == []
  return verdicts


# Whole texts, gold answers, and whether the texts are right.
_TEXTS = [
  # Several boxes are one answer.
  ('The roots are $\\boxed{1}$ and $\\boxed{2}$.', '1, 2', True),
  ('The roots are $\\boxed{1}$ and $\\boxed{2}$.', '\\{1, 2\\}', True),
  ('The roots are $\\boxed{1}$ and $\\boxed{2}$.', '2', False),
  ('x = \\boxed{1} and y = \\boxed{2}', '(1, 2)', True),
  ('\\[\\boxed{(1, 2)}\\]\n\\[\\boxed{(2, 1)}\\]', '(2,1), (1,2)', True),
  ('p = \\boxed{5}, q = \\boxed{2}', '5, 2', True),
  # Two answers are no answer, whichever comes last.
  ('\\boxed{7} or \\boxed{42}', '42', False),
  ('\\boxed{42} or \\boxed{7}', '42', False),
  ('\\boxed{7} and \\boxed{42}', '42', False),
  ('\\boxed{7}, \\boxed{42}', '42', False),
  ('\\boxed{7}\n\\boxed{42}', '42', False),
  ('It may be \\boxed{7}, or it may be \\boxed{42}.', '42', False),
  ('\\boxed{7} = \\boxed{42}', '42', False),
  ('\\boxed{7} or equivalently \\boxed{42}', '42', False),
  ('\\boxed{7 or 42}', '42', False),
  ('\\boxed{\\text{either } 7 \\text{ or } 42}', '42', False),
  ('\\boxed{I think that it is either 7 or 42}', '42', False),
  ('\\boxed{It lies somewhere between 3 and 7}', '7', False),
  ('The answer is 7 or 42.', '42', False),
  ('It is either 7 or 42.', '42', False),
  ('In the end it must be either 7 or 42.', '42', False),
  ('3 boys and 7 girls', '7', False),
  # A corrected answer replaces the one before.
  ('\\boxed{7}. Wait, I forgot one. It is \\boxed{42}.', '42', True),
  ('\\boxed{7}. Wait, I forgot one. It is \\boxed{42}.', '7', False),
  ('I thought \\boxed{7}, but it is \\boxed{42}', '42', True),
  ('It is \\boxed{42}, not \\boxed{7}.', '42', True),
  ('It is \\boxed{42}, not \\boxed{7}.', '7', False),
  ('It is not \\boxed{7}.', '7', False),
  ('The answer is 7. No, the answer is 42.', '42', True),
  # Other notations of one value.
  (
    'It is $\\boxed{15\\frac{39}{40}}$ or $\\boxed{\\frac{639}{40}}$.',
    '15.975',
    True,
  ),
  ('It is $\\boxed{x+11}$ or $\\boxed{11+x}$.', '11+x', True),
  ('It is $\\boxed{\\frac12} = \\boxed{0.5}$.', '\\frac12', True),
  ('It is $\\boxed{\\frac13}$, or about $\\boxed{0.33}$.', '\\frac13', True),
  ('3 or 3', '3', False),
  # Sentences.
  ('\\boxed{There are exactly 7 students left}', '7', True),
  ('So there are exactly 7 students left.', '7', True),
  ('The party is on June 20', '20', True),
  ('June 20', '\\text{June 20}', True),
  ('3 boys and 4 girls', '3, 4', True),
  ('The answer is at least 7', '7', False),
  ('\\boxed{\\int_0^3 x^2\\,dx = 9}', '9', True),
  ('We see that $\\lim_{x\\to0} \\frac{\\sin x}{x} = 1$.', '1', True),
  # Letters of multiple choice.
  ('The answer is for sure D, it cannot be A or B', 'D', True),
  ('The answer is for sure D, it cannot be A or B', 'B', False),
  ('I think it is (B).', 'B', True),
  ('\\boxed{(B)}', 'B', True),
  ('B.', 'B', True),
  ('D', '(D) Alina', True),
  ('(D) Alina', '(D) Alina', True),
  ('Alina', '(D) Alina', True),
  ('C', '(D) Alina', False),
  ('C', 'C Cecile', True),
  ('A', 'A square', False),
  ('A + B', 'B', False),
  ('The answer is $A + B$.', 'B', False),
  ('A', '(A) 5, (B) 7', False),
  ('sirPa', 'Paris', False),
  # A text that is cut off.
  ('So it is \\boxed{42', '42', False),
]


def test_whole_texts_are_graded_as_their_answers():
  verdicts = _graded([(text, gold) for text, gold, _ in _TEXTS])
  assert [
    case
    for case, verdict in zip(_TEXTS, verdicts)
    if (verdict is Verdict.CORRECT) != case[2]
  ] == []


def _solutions(shared, name: str) -> list[tuple[str, str]]:
  rows = read_jsonl(
    str(shared / f'data/math/{name}.jsonl'), {'solution': str, 'answer': str}
  )
  return [(row['solution'], row['answer']) for row in rows]


def test_solutions_of_math_are_right(shared):
  texts = _solutions(shared, 'math500')
  assert _graded(texts).count(Verdict.CORRECT) == len(texts)
  # Without their boxes, only that all formats agree.
  _graded([(re.sub(r'\\(?:boxed|fbox)', '', t), g) for t, g in texts[::3]])


@pytest.mark.slow
def test_solutions_of_the_training_data_are_right(shared):
  """The others list several answers, of which the gold answer is the last."""
  texts = _solutions(shared, 'math_train12k')
  assert _graded(texts).count(Verdict.CORRECT) >= len(texts) - 19
  texts = _solutions(shared, 'gsm8k_test')
  assert _graded(texts).count(Verdict.CORRECT) >= 0.96 * len(texts)


def test_an_answer_that_was_found_is_found_again(shared):
  """Spliced texts, which nobody would write."""
  rng = random.Random(0)
  texts = [text for text, _ in _solutions(shared, 'math500')]
  joints = ['', ' ', '\n', '\n\n', ' and ', ' or ', ', ', '$', '. ', '}']
  joints += ['\\boxed{', 'The answer is ', '<answer>', 'since ', ' (', ' = ']
  for _ in range(3_000):
    parts = [rng.choice(texts)[rng.randrange(500) :][-80:] for _ in range(2)]
    text = parts[0][rng.randrange(80) :] + rng.choice(joints) + parts[1]
    for find in (final_answer.stated, final_answer.boxed):
      answer = find(text)
      if answer:
        assert final_answer.stated(answer) == answer, text
        assert answer_text.candidates(answer) == answer_text.candidates(text)
