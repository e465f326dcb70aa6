"""Benchmarks as the hub has them: rows of their forms, all of them invented."""

import base64
from collections import Counter
import csv
import json
from pathlib import Path
import pickle
import zlib

import pytest

from r1jax import registry
from r1jax.data import choices, datasets, readers, splits, suites
from r1jax.errors import UserError

_GPQA = {
  'Pre-Revision Question': 'Which gem is red, please?',
  'Question': 'Which gem, "usually",\nis red?\n',
  'Correct Answer': 'ruby\n',
  'Incorrect Answer 1': 'jade',
  'Incorrect Answer 2': 'onyx',
  'Incorrect Answer 3': 'opal, often',
  'Subdomain': 'Minerals',
  'High-level domain': 'Chemistry',
  'Record ID': 'recA1',
}
_MMLU_PRO = {
  'question_id': 70,
  'question': 'How many sides has a square?',
  'options': ['3', '4', '5', 'N/A'],
  'answer': 'B',
  'answer_index': 1,
  'cot_content': '',
  'category': 'math',
  'src': 'made',
}
_IFEVAL = {
  'key': 1000,
  'prompt': 'Write 300 words without commas.',
  'instruction_id_list': [
    'punctuation:no_comma',
    'length_constraints:number_words',
  ],
  'kwargs': [
    {'num_words': None, 'relation': None},
    {'num_words': 300, 'relation': 'at least'},
  ],
}
_IFEVAL_GOLD = {
  'instruction_id_list': _IFEVAL['instruction_id_list'],
  'kwargs': [{}, {'num_words': 300, 'relation': 'at least'}],
}

# Dataset, a row as a repository of the hub has it; and id, question, answer and
# grader of the prompt. None stands for the hash of the question.
_MATH_FORMS = [
  ('gsm8k', {'question': 'Q?', 'answer': '2+3=<<2+3=5>>5\n#### 5'}, None, '5'),
  (
    'math500',
    {'problem': 'Q?', 'answer': '\\frac{1}{2}', 'unique_id': 'test/a/1.json'},
    'test/a/1.json',
    '\\frac{1}{2}',
  ),
  ('aime24', {'id': 60, 'problem': 'Q?', 'answer': '204'}, '60', '204'),
  (
    'aime24',
    {'ID': '2024-I-1', 'Problem': 'Q?', 'Answer': 204},
    '2024-I-1',
    '204',
  ),
  ('aime25', {'id': '0', 'problem': 'Q?', 'answer': '70'}, '0', '70'),
  ('aime25', {'question': 'Q?', 'answer': '70'}, None, '70'),
  ('amc23', {'id': 0, 'question': 'Q?', 'answer': 27.0, 'url': 'u'}, '0', '27'),
  ('minerva', {'question': 'Q?', 'answer': '1.6'}, None, '1.6'),
  (
    'minerva',
    {'problem': 'Q?', 'solution': 'So it is \\boxed{np.sin(1)}.'},
    None,
    'sin(1)',
  ),
  (
    'olympiad',
    {'id': 1606, 'question': 'Q?', 'context': None, 'final_answer': ['$2$']},
    '1606',
    '$2$',
  ),
  (
    'olympiad',
    {'id': 7, 'question': 'Q?', 'final_answer': ['1', '2'], 'unit': None},
    '7',
    '1, 2',
  ),
]


def _write(path, *rows) -> str:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def _read(name: str, path: str) -> list:
  return datasets.read(registry.dataset.get(name), splits.HELD_OUT, path)


@pytest.mark.parametrize('name,row,key,answer', _MATH_FORMS)
def test_exams_are_read_in_the_columns_of_the_hub(
  tmp_path, name, row, key, answer
):
  (prompt,) = _read(name, _write(tmp_path / 'a.jsonl', row))
  assert (prompt.question, prompt.answer, prompt.source) == (
    'Q?',
    answer,
    'math',
  )
  assert prompt.id == (key or suites.text_id('Q?'))
  # The id does not depend on the file.
  assert _read(name, _write(tmp_path / 'b.jsonl', row))[0].id == prompt.id


def test_a_context_stands_before_its_question(tmp_path):
  row = {'id': 1, 'question': 'Q?', 'context': 'Let x = 1.', 'answer': '1'}
  (prompt,) = _read('olympiad', _write(tmp_path / 'a.jsonl', row))
  assert prompt.question == 'Let x = 1.\n\nQ?'


def test_gpqa_is_read_from_its_csv_file(tmp_path):
  path = tmp_path / 'gpqa_diamond.csv'
  rows = [_GPQA, {**_GPQA, 'Record ID': 'recA2'}]
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, list(_GPQA))
    writer.writeheader()
    writer.writerows(rows)
  prompts = _read('gpqa_diamond', str(path))
  assert [prompt.id for prompt in prompts] == ['recA1', 'recA2']
  assert {prompt.source for prompt in prompts} == {'choice'}
  for prompt in prompts:
    head, question, *options = (
      prompt.question.split('\n\n')[0:2] + (prompt.question.rsplit('\n', 4)[1:])
    )
    assert head.endswith('one of A, B, C or D.')
    assert question == 'Which gem, "usually",\nis red?'
    assert f'{prompt.answer}) ruby' in options and len(options) == 4
    # No field tells a reward which option is right.
    assert set(prompt.fields) == {'id', 'question', 'answer', 'category'}
  path.write_text('Question,Correct Answer\nonly one value\n')
  with pytest.raises(UserError, match='not as many values as the first row'):
    _read('gpqa_diamond', str(path))


def test_mmlu_pro_has_up_to_ten_options_and_drops_fillers(tmp_path):
  ten = {
    **_MMLU_PRO,
    'question_id': 71,
    'options': [f'option {i}' for i in range(10)],
    'answer_index': 9,
  }
  prompts = _read('mmlu_pro', _write(tmp_path / 'a.jsonl', _MMLU_PRO, ten))
  assert [prompt.id for prompt in prompts] == ['mmlu_pro-70', 'mmlu_pro-71']
  assert 'N/A' not in prompts[0].question
  for prompt, right in zip(prompts, ('4', 'option 9')):
    assert f'\n{prompt.answer}) {right}' in prompt.question
  assert '\nJ) ' in prompts[1].question
  wrong = {**_MMLU_PRO, 'answer_index': 4}
  with pytest.raises(UserError, match='right option'):
    _read('mmlu_pro', _write(tmp_path / 'b.jsonl', wrong))


def test_the_order_of_options_is_a_function_of_seed_and_id():
  names = [f'p{i}' for i in range(4000)]
  # This is the order of the hashes that sha256sum prints for 0/p0/0 to 0/p0/3.
  assert choices.order(4, 'p0') == [2, 3, 1, 0]
  assert any(
    choices.order(4, name, seed=1) != choices.order(4, name)
    for name in names[:5]
  )
  orders = Counter(tuple(choices.order(4, name)) for name in names)
  assert len(orders) == 24  # Every order is as likely: 166.7 ± 12.6 each.
  assert all(100 < count < 240 for count in orders.values())
  letters = Counter(
    choices.multiple_choice(name, 'Q?', 'abcdefghij', 0)['answer']
    for name in names
  )
  assert all(300 < letters[letter] < 500 for letter in choices.LETTERS)


def test_ifeval_keeps_its_instructions_as_the_gold_answer(tmp_path):
  (prompt,) = _read('ifeval', _write(tmp_path / 'a.jsonl', _IFEVAL))
  assert prompt.id == 'ifeval-1000' and prompt.source == 'ifeval'
  assert prompt.question == _IFEVAL['prompt']
  assert json.loads(prompt.answer) == _IFEVAL_GOLD


def _problem(**kw) -> dict:
  tests = [{'input': '2 3\n', 'output': '5\n', 'testtype': 'stdin'}]
  packed = zlib.compress(pickle.dumps(json.dumps(tests)))
  return {
    'question_id': 'abc1',
    'question_content': 'Add.',
    'contest_date': '2024-08-03T00:00:00',
    'starter_code': '',
    'public_test_cases': json.dumps(tests),
    'private_test_cases': base64.b64encode(packed).decode(),
    'metadata': '{}',
    **kw,
  }


def test_livecodebench_has_hidden_tests_and_a_window(tmp_path):
  late = _problem(question_id='abc2', contest_date='2025-02-01T00:00:00')
  path = _write(tmp_path / 'test6.jsonl', _problem(), late)
  assert [p.id for p in _read('livecodebench', path)] == ['abc1', 'abc2']
  (prompt,) = _read('livecodebench_2408_2501', path)
  assert prompt.id == 'abc1' and prompt.source == 'code'
  cases = json.loads(prompt.answer)['cases']
  assert len(cases) == 2 and cases[1] == {'stdin': '2 3\n', 'stdout': '5\n'}
  assert 'tests' not in prompt.fields
  with pytest.raises(UserError, match='contest_date'):
    _read(
      'livecodebench_2408_2501',
      _write(tmp_path / 'b.jsonl', _problem(contest_date=None)),
    )


def test_a_pickle_that_is_no_text_is_refused(tmp_path):
  class Runs:
    def __reduce__(self):
      return (open, (str(tmp_path / 'made'), 'w'))

  for hostile in (Runs(), ['a list'], b'bytes'):
    packed = base64.b64encode(zlib.compress(pickle.dumps(hostile))).decode()
    with pytest.raises(UserError, match='cannot be converted'):
      _read(
        'livecodebench',
        _write(tmp_path / 'a.jsonl', _problem(private_test_cases=packed)),
      )
  assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
  'name',
  'math500 aime24 aime25 amc23 minerva olympiad gsm8k gpqa_diamond mmlu_pro '
  'ifeval livecodebench humaneval mbpp'.split(),
)
def test_a_suite_that_is_absent_says_where_it_is(monkeypatch, tmp_path, name):
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path))
  with pytest.raises(UserError) as error:
    datasets.read(registry.dataset.get(name), splits.HELD_OUT)
  message = str(error.value)
  assert '\n' not in message and 'data.eval_path=hf://datasets/' in message
  # The command that it names puts the files where they are found.
  folder = Path(message.partition('--local-dir=')[2].partition('`')[0])
  pattern = registry.dataset.get(name).hub.split('/', 5)[5:]
  file = folder / (*pattern, 'data/test-0.parquet')[0].replace('*', '-0')
  file.parent.mkdir(parents=True)
  file.touch()
  assert readers.files(registry.dataset.get(name).path(splits.HELD_OUT)) == [
    file
  ]


def test_a_folder_of_csv_files_is_read(tmp_path):
  (tmp_path / 'a.csv').write_text('\ufeffid,question\n1,"x\ny"\n2,z\n')
  rows = list(readers.rows(readers.files(str(tmp_path))))
  assert [row.fields for row in rows] == [
    {'id': '1', 'question': 'x\ny'},
    {'id': '2', 'question': 'z'},
  ]
  assert rows[1].where.endswith('a.csv:2')
  (tmp_path / 'a.csv').write_text('id,question\n1,"x\n')
  with pytest.raises(UserError, match='cannot read .*a.csv'):
    list(readers.rows(readers.files(str(tmp_path))))
