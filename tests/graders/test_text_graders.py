"""Graders of names, letters of multiple choice, yes or no, and lists of words."""

import json

import pytest

from r1jax import registry
from r1jax.data import datasets
from r1jax.data.quarantine import Quarantine
from r1jax.data.sources import Source
from r1jax.data.splits import TRAIN
from r1jax.errors import UserError
from r1jax.graders import dispatch, text_graders

# Grader, answer, gold answer and verdict.
_CASES = [
  ('text', 'Paris', 'Paris', 'correct'),
  ('text', 'sirPa', 'Paris', 'wrong'),
  ('text', ' paris. ', 'Paris', 'correct'),
  ('text', 'The answer is **Paris**.', 'Paris', 'correct'),
  ('text', 'The capital of France is Paris.', 'Paris', 'correct'),
  ('text', 'The capital is not Paris.', 'Paris', 'wrong'),
  ('text', '\\boxed{\\text{São Paulo}}', 'Sao Paulo', 'correct'),
  ('text', 'the Eiffel Tower', 'Eiffel Tower', 'correct'),
  ('text', "O'Brien", 'OBrien', 'correct'),
  ('text', 'Big Apple', '["New York", "Big Apple"]', 'correct'),
  ('text', 'Paris or London', 'Paris', 'wrong'),
  ('text', '...', 'Paris', 'unparsable'),
  ('text', None, 'Paris', 'unparsable'),
  ('choice', 'C', 'C', 'correct'),
  ('choice', '(c)', 'C', 'correct'),
  ('choice', '\\boxed{\\textbf{(C)}}', 'C', 'correct'),
  (
    'choice',
    'thinking about it I think the correct answer is C',
    'C',
    'correct',
  ),
  ('choice', "It's not A, therefore I think it's B", 'B', 'correct'),
  ('choice', "The answer is for sure D, it can't be A or B", 'D', 'correct'),
  ('choice', "D. it can't be A or B", 'D', 'correct'),
  ('choice', 'D', '(D) Alina', 'correct'),
  ('choice', 'Alina', '(D) Alina', 'correct'),
  ('choice', 'C', '(A) Cecile', 'wrong'),
  ('choice', 'réponse est C non A', 'C', 'correct'),
  ('choice', 'B不是 A', 'B', 'correct'),
  ('choice', 'A, C', 'AC', 'correct'),
  ('choice', 'A', 'AC', 'wrong'),
  ('choice', 'A cat is an animal', 'A', 'unparsable'),
  ('choice', 'none of them', 'A', 'unparsable'),
  ('yes_no', 'Yes', 'yes', 'correct'),
  ('yes_no', 'True.', 'yes', 'correct'),
  ('yes_no', 'No, although some say yes', 'no', 'correct'),
  ('yes_no', 'The answer is no.', 'no', 'correct'),
  ('yes_no', '\\boxed{\\text{No}}', 'yes', 'wrong'),
  ('yes_no', 'It is not true', 'false', 'correct'),
  ('yes_no', 'yes and no', 'yes', 'unparsable'),
  ('yes_no', 'yes or no', 'no', 'unparsable'),
  ('yes_no', 'maybe', 'yes', 'unparsable'),
  ('yes_no', 'I know it', 'no', 'unparsable'),
  ('word_list', 'red, green', 'Green and red', 'correct'),
  ('word_list', '- red\n- green', 'red, green', 'correct'),
  ('word_list', '\\boxed{\\text{green, red}}', '["red", "green"]', 'correct'),
  ('word_list', 'red, red', 'red', 'wrong'),
  ('word_list', 'red', 'red, green', 'wrong'),
  ('word_list', 'red, green, blue', 'red, green', 'wrong'),
  ('word_list', 'The answer is red and green.', 'red, green', 'correct'),
]


@pytest.mark.parametrize('grader,answer,gold,verdict', _CASES)
def test_words_are_compared_as_words(grader, answer, gold, verdict):
  assert dispatch.verdicts([(answer, gold, grader)]) == [verdict]


def test_a_long_completion_is_no_problem():
  text = 'We think of it. ' * 9999 + 'So the answer is (B).'
  assert dispatch.verdicts([(text, 'B', 'choice')]) == ['correct']


@pytest.mark.parametrize(
  'grader,gold,is_fine',
  [
    ('choice', 'C', True),
    ('choice', 'Paris', False),
    ('yes_no', 'true', True),
    ('yes_no', '7', False),
    ('text', 'Paris', True),
    ('text', '...', False),
    ('math', 'Paris', True),
  ],
)
def test_a_gold_answer_suits_its_grader(grader, gold, is_fine):
  assert (text_graders.gold_problem(grader, gold) == '') == is_fine


def _read(tmp_path, *rows, **options):
  path = tmp_path / 'rows.jsonl'
  path.write_text(
    ''.join(
      json.dumps({'id': str(n), 'question': 'q', 'answer': 'a', **row}) + '\n'
      for n, row in enumerate(rows)
    )
  )
  source = Source(
    files={TRAIN: str(path)},
    fields={'id': str, 'question': str, 'answer': str},
    grader='math',
    origin='here',
  )
  return datasets.read(source, TRAIN, **options)


def test_a_row_names_its_grader(tmp_path):
  rows = _read(tmp_path, {'grader': 'text'}, {}, {'grader': 'choice'})
  assert [row.source for row in rows] == ['text', 'math', 'choice']
  assert {'text', 'choice', 'yes_no', 'word_list'} <= set(registry.grader)


def test_a_row_of_the_code_grader_has_tests(tmp_path):
  tests = {'inputs': ['1 2\n'], 'outputs': ['3\n']}
  program, *_ = _read(
    tmp_path, {'grader': 'code', 'tests': tests}, {'answer': '3'}
  )
  assert program.source == 'code' and 'standard input' in program.question
  stored = json.loads(program.answer)
  assert [case['stdout'] for case in stored['cases']] == ['3\n']
  assert 'tests' not in program.fields
  with pytest.raises(UserError, match='rows.jsonl:1'):
    _read(tmp_path, {'grader': 'code'})


def test_a_grader_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match=r"rows.jsonl:1.*grader 'texts'.*yes_no"):
    _read(tmp_path, {'grader': 'texts'})
  with pytest.raises(UserError, match='grader'):
    _read(tmp_path, {'grader': ['text']})
  quarantine = Quarantine(0.9)
  rows = _read(tmp_path, {'grader': 'x'}, {}, quarantine=quarantine)
  assert [row.id for row in rows] == ['1']
