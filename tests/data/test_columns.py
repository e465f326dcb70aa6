"""Rows of other people's files: columns, answers, choices, ids."""

import json

import pytest

from r1jax import registry
from r1jax.config import base
from r1jax.data import columns, datasets, splits
from r1jax.errors import UserError
from r1jax.graders import math_grader, text_graders
from r1jax.stages.build import prompts
from tests.conftest import run_config

# The columns of public datasets, each with a row of its form; the fields that
# name them; and the prompt's question, answer and grader.
_FORMS = {
  'openai/gsm8k': (
    {'question': 'Two and three?', 'answer': '2 + 3 = <<2+3=5>>5\n#### 5'},
    dict(answer_in='hashes'),
    ('Two and three?', '5', 'math'),
  ),
  'HuggingFaceH4/MATH-500': (
    {
      'problem': 'Find $x$.',
      'solution': 'So $x = \\boxed{\\frac{1}{2}}$.',
      'answer': '\\frac{1}{2}',
      'unique_id': 'test/algebra/1.json',
    },
    dict(columns={'question': 'problem', 'id': 'unique_id'}),
    ('Find $x$.', '\\frac{1}{2}', 'math'),
  ),
  'zwhe99/DeepMath-103K': (
    {'question': 'Evaluate it.', 'final_answer': '0', 'topic': 'Calculus'},
    dict(columns={'answer': 'final_answer'}),
    ('Evaluate it.', '0', 'math'),
  ),
  'open-r1/OpenR1-Math-220k': (
    {
      'problem': 'Add 2 and 3.',
      'answer': '5',
      'source': 'olympiads',
      'uuid': 'a-b-c',
      'messages': [
        {'role': 'user', 'content': 'Add 2 and 3.'},
        {'role': 'assistant', 'content': '5'},
      ],
    },
    dict(columns={'question': 'problem', 'id': 'uuid'}),
    ('Add 2 and 3.', '5', 'math'),
  ),
  'SynthLabsAI/Big-Math-RL-Verified': (
    {'problem': 'Half of 9?', 'answer': '4.5', 'llama8b_solve_rate': 0.5},
    dict(columns={'question': 'problem'}),
    ('Half of 9?', '4.5', 'math'),
  ),
  'agentica-org/DeepScaleR-Preview-Dataset': (
    {'problem': 'Add 2 and 3.', 'answer': '5', 'solution': 'It is 5.'},
    dict(columns={'question': 'problem'}),
    ('Add 2 and 3.', '5', 'math'),
  ),
  'MATH, by its solutions': (
    {'problem': 'Find $x$.', 'solution': 'So $x = \\boxed{\\frac{1}{2}}$.'},
    dict(
      columns={'question': 'problem', 'answer': 'solution'}, answer_in='boxed'
    ),
    ('Find $x$.', '\\frac{1}{2}', 'math'),
  ),
  'svamp': (
    {'Body': 'There are 2 bananas.', 'Question': 'How many?', 'Answer': 2.0},
    dict(columns={'question': '{Body} {Question}', 'answer': 'Answer'}),
    ('There are 2 bananas. How many?', '2', 'math'),
  ),
  'aqua': (
    {'question': 'How many?', 'options': ['A)2', 'B)3'], 'correct': 'B'},
    dict(columns={'choices': 'options', 'answer': 'correct'}),
    ('How many?\nA)2\nB)3', 'B', 'choice'),
  ),
  'mmlu': (
    {'question': 'How many?', 'choices': ['two', 'three'], 'answer': 1},
    dict(columns={'choices': 'choices'}),
    ('How many?\nA) two\nB) three', 'B', 'choice'),
  ),
  'arc': (
    {
      'question': 'How many?',
      'choices': {'text': ['two', 'three'], 'label': ['A', 'B']},
      'answerKey': 'three',
    },
    dict(columns={'choices': 'choices', 'answer': 'answerKey'}),
    ('How many?\nA) two\nB) three', 'B', 'choice'),
  ),
}


def _read(path, columns_=None, answer_in='whole'):
  source = columns.renamed(
    registry.dataset.get('rows'), columns_ or {}, answer_in
  )
  return datasets.read(source, splits.TRAIN, str(path))


@pytest.mark.parametrize('name', _FORMS)
def test_public_datasets_are_read_as_they_are(tmp_path, name):
  row, how, (question, answer, grader) = _FORMS[name]
  file = tmp_path / 'rows.jsonl'
  file.write_text(json.dumps(row) + '\n')
  (prompt,) = _read(file, how.get('columns'), how.get('answer_in', 'whole'))
  assert (prompt.question, prompt.answer, prompt.source) == (
    question,
    answer,
    grader,
  )
  assert prompt.messages == ()
  assert not list(math_grader.unparsable_golds([prompt] * (grader == 'math')))
  assert not text_graders.gold_problem(prompt.source, prompt.answer)


def test_countdown_rows_of_the_hub_have_a_question_made_of_columns(tmp_path):
  file = tmp_path / 'rows.jsonl'
  file.write_text(json.dumps({'target': 98, 'nums': [44, 19, 35]}))
  source = columns.renamed(
    registry.dataset.get('countdown_file'),
    {'question': 'Make {target} of {nums}.'},
  )
  (prompt,) = datasets.read(source, splits.TRAIN, str(file))
  assert prompt.question == 'Make 98 of [44, 19, 35].'
  assert prompt.source == 'countdown'


def test_ids_are_the_file_and_the_number_of_the_row(tmp_path):
  """Blank lines are none, a byte order mark is no text, numbers are texts."""
  file = tmp_path / 'rows.jsonl'
  row = json.dumps({'question': 'How many?', 'answer': 3})
  file.write_text(f'\ufeff{row}\n\n{row}\n   \n')
  first, second = _read(file)
  assert first.id == f'{tmp_path.name}/rows.jsonl:1'
  assert second.id == f'{tmp_path.name}/rows.jsonl:3'
  assert first.answer == '3'


def test_a_file_may_be_one_array(tmp_path):
  file = tmp_path / 'rows.json'
  rows = [{'question': f'{n} + 1?', 'answer': n + 1} for n in range(3)]
  file.write_text(json.dumps(rows, indent=1))
  assert [prompt.answer for prompt in _read(file)] == ['1', '2', '3']
  file.write_text('[{"question"')
  with pytest.raises(UserError, match=r'rows.json is no JSON array'):
    _read(file)
  file.write_text('[3]')
  with pytest.raises(UserError, match=r'rows.json:1 .*is not a JSON object'):
    _read(file)


def test_the_question_of_a_conversation_is_its_last_message_of_a_user(tmp_path):
  file = tmp_path / 'rows.jsonl'
  turns = [('user', 'Hi'), ('assistant', 'Hello'), ('user', '2 + 3?')]
  messages = [{'role': role, 'content': text} for role, text in turns]
  file.write_text(json.dumps({'messages': messages, 'answer': 5}))
  (prompt,) = _read(file)
  assert prompt.question == '2 + 3?' and len(prompt.messages) == 3


@pytest.mark.parametrize(
  'row, how, message',
  [
    (
      {'problem': 'a', 'answer': 'b'},
      dict(columns_={'question': 'prompt'}),
      "has no column 'prompt'; it has problem, answer",
    ),
    (
      {'question': 'a', 'answer': '5'},
      dict(answer_in='hashes'),
      "has no '#### ANSWER' in '5'",
    ),
    (
      {'question': 'a', 'answer': '5'},
      dict(answer_in='boxed'),
      r"has no \\boxed\{\} in '5'",
    ),
    (
      {'question': 'a', 'options': ['x', 'y'], 'answer': 'C'},
      dict(columns_={'choices': 'options'}),
      "has the answer 'C', which is no letter, number or text of its 2 choices",
    ),
    (
      {'question': 'a', 'options': 'x', 'answer': 'A'},
      dict(columns_={'choices': 'options'}),
      'needs a list of 2 to 26 choices',
    ),
  ],
)
def test_a_row_without_them_is_named(tmp_path, row, how, message):
  file = tmp_path / 'rows.jsonl'
  file.write_text(json.dumps(row))
  with pytest.raises(UserError, match=f'rows.jsonl:1 .*{message}'):
    _read(file, **how)


def test_a_config_names_files_and_columns(tmp_path):
  config = base.get_config()
  config.data.task = 'rows'
  with pytest.raises(UserError, match='name the files of your rows in --conf'):
    prompts.prompt_files(run_config(config))
  (tmp_path / 'a.jsonl').write_text('{"problem": "2 + 3?", "gold": 5}')
  config.data.path = config.data.eval_path = str(tmp_path / 'a.jsonl')
  config.data.columns = {'question': 'problem', 'answer': 'gold'}
  run = run_config(config)
  assert len(prompts.prompt_files(run)['data.task']) == 1
  assert dict(run.data.columns) == {'question': 'problem', 'answer': 'gold'}


_RAW = {
  'aqua': (dict(columns_={'choices': 'options', 'answer': 'correct'}), 254),
  'cmath': ({}, 1098),
  'college_math': ({}, 2818),
  'gaokao_math_cloze': ({}, 118),
  'minerva_math': (
    dict(
      columns_={'question': 'problem', 'answer': 'solution'}, answer_in='boxed'
    ),
    272,
  ),
  'mmlu_stem': (dict(columns_={'choices': 'choices'}), 3018),
  'svamp': (
    dict(columns_={'question': '{Body} {Question}', 'answer': 'Answer'}),
    1000,
  ),
}


@pytest.mark.parametrize('name', _RAW)
def test_raw_files_of_evaluations_are_read_whole(shared, name):
  how, _ = _RAW[name]
  path = shared / 'data' / 'raw' / f'{name}.jsonl'
  found = _read(path, **how)
  assert len(found) == sum(1 for line in path.open() if line.strip())
  assert len({prompt.id for prompt in found}) == len(found)
