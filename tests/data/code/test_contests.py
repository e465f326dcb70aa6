"""Tests of contests are read by a dataset's name, and from a field `tests`."""

import json

import pytest

from r1jax import registry
from r1jax.data import datasets
from r1jax.data.code import contests
from r1jax.data.code import sources as code_sources
from r1jax.data.code import values as code_values
from r1jax.data.code.cases import CallCase, CodeTests, StdioCase
from r1jax.data.quarantine import Quarantine
from r1jax.errors import UserError
from r1jax.graders import code_compare

SUM = (StdioCase('1 2\n', '3\n'), StdioCase('3 4\n', '7\n'))
INPUTS, OUTPUTS = [case.stdin for case in SUM], [case.stdout for case in SUM]
PAIRS = [{'input': a, 'output': b} for a, b in zip(INPUTS, OUTPUTS)]
CALL = CallCase('f(1)', 'equal', 2)
LONG = '1 ' * 100_000


def _read(tmp_path, name: str, *rows: dict, **kw):
  file = tmp_path / 'rows.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return datasets.read(registry.dataset.get(name), 'held_out', str(file), **kw)


@pytest.mark.parametrize(
  'name,row',
  [
    (
      'livecodebench',
      {
        'question_id': 'a',
        'question_content': 'Add.',
        'starter_code': '',
        'public_test_cases': json.dumps(
          [{**pair, 'testtype': 'stdin'} for pair in PAIRS]
        ),
        'private_test_cases': '[]',
        'metadata': '{}',
      },
    ),
    (
      'apps',
      {
        'problem_id': 7,
        'question': 'Add.',
        'input_output': json.dumps({'inputs': INPUTS, 'outputs': OUTPUTS}),
      },
    ),
    (
      'taco',
      {
        'question': 'Add.',
        'starter_code': '',
        'input_output': json.dumps(
          {
            'inputs': [text.splitlines() + [''] for text in INPUTS],
            'outputs': [text.splitlines() + [''] for text in OUTPUTS],
          }
        ),
      },
    ),
    (
      'code_contests',
      {
        'name': 'x',
        'description': 'Add.',
        'public_tests': {'input': INPUTS[:1], 'output': OUTPUTS[:1]},
        'private_tests': {'input': INPUTS[1:], 'output': OUTPUTS[1:]},
        'generated_tests': {'input': [], 'output': []},
      },
    ),
    ('code', {'question': 'Add.', 'tests': PAIRS}),
    ('code', {'question': 'Add.', 'tests': json.dumps(PAIRS)}),
    (
      'code',
      {'question': 'Add.', 'tests': {'inputs': INPUTS, 'outputs': OUTPUTS}},
    ),
    ('code', {'prompt': 'Add.', 'tests': {'input': INPUTS, 'output': OUTPUTS}}),
    (
      'code',
      {'id': 'a', 'problem': 'Add.', 'inputs': INPUTS, 'outputs': OUTPUTS},
    ),
    (
      'code',
      {
        'question': 'Add.',
        'tests': CodeTests('b', SUM, contests.IMPORTS).to_json(),
      },
    ),
  ],
)
def test_scripts_are_read_by_the_name_of_a_dataset(tmp_path, name, row):
  (prompt,) = _read(tmp_path, name, row)
  assert prompt.source == 'code' and prompt.id
  assert prompt.question == (
    'Add.\n\nThe program reads from standard input and writes to standard '
    'output.'
  )
  tests = CodeTests.from_json(json.loads(prompt.answer))
  assert tests.cases == SUM and 'from typing import *' in tests.prelude
  assert 'tests' not in prompt.fields  # Rewards and logs do not see them.


@pytest.mark.parametrize(
  'row,call,setup',
  [
    ({'tests': {'inputs': [[1]], 'outputs': [2], 'fn_name': 'f'}}, 'f(1)', 'f'),
    ({'tests': ['assert f(1) == 2']}, 'f(1)', ''),
    ({'tests': 'assert f(1) == 2'}, 'f(1)', ''),
    ({'test_list': ['assert f(1) == 2'], 'code': 'def f(x): pass'}, 'f(1)', ''),
    (
      {
        'tests': [{'input': '1', 'output': '2', 'testtype': 'functional'}],
        'fn_name': 'f',
      },
      'f(1)',
      'f',
    ),
    (
      {
        'entry_point': 'f',
        'prompt': 'def f(x):\n  """Adds one."""\n',
        'test': 'def check(candidate):\n  assert candidate(1) == 2',
        'canonical_solution': '  return x + 1',
      },
      'f(1)',
      '',
    ),
    (
      {
        'tests': {'inputs': ['1'], 'outputs': ['2'], 'fn_name': 'f'},
        'starter_code': 'class Solution:\n  def f(self, x): ',
      },
      'Solution().f(1)',
      'f',
    ),
  ],
)
def test_calls_are_read_from_rows_of_any_form(tmp_path, row, call, setup):
  (prompt,) = _read(tmp_path, 'code', {'id': 'a', 'question': 'Add.', **row})
  tests = CodeTests.from_json(json.loads(prompt.answer))
  (case,) = tests.cases
  assert (case.call, case.expected) == (call, 2)
  assert bool(setup) == bool(tests.setup)
  starter = row.get('starter_code')
  assert prompt.question == 'Add.' + (
    f'\n\nComplete this code:\n```python\n{starter.strip()}\n```'
    if starter
    else ''
  )


@pytest.mark.parametrize(
  'expected,result,holds',
  [
    ([3], 3, True),
    ([3], [3], True),
    ([[1, 2]], [1, 2], True),
    ([[1, 2]], (1, 2), True),
    ([1, 2], [1, 2], True),
    ([1, 2], 1, False),
    (3, 3, True),
    ([3], 4, False),
  ],
)
def test_a_call_of_apps_may_have_its_value_in_a_list(expected, result, holds):
  tests = contests.input_output(
    'a', {'inputs': [[0]], 'outputs': [expected], 'fn_name': 'f'}
  )
  (case,) = tests.cases
  assert code_compare.case_passes(case, code_values.encode(result)) == holds


def test_long_tests_are_no_bad_row(tmp_path):
  (prompt,) = _read(
    tmp_path,
    'apps',
    {
      'problem_id': 1,
      'question': 'Count.',
      'input_output': json.dumps({'inputs': [LONG], 'outputs': ['100000']}),
    },
  )
  assert len(prompt.answer) > len(LONG) and len(str(prompt.fields)) < 1000


@pytest.mark.parametrize(
  'tests,problem',
  [
    ('', 'has no test'),
    ([], 'has no test'),
    ({}, "without a list 'inputs'"),
    ({'inputs': ['1'], 'outputs': []}, 'zip'),
    ({'inputs': [[1]], 'outputs': [1]}, 'a test whose text is'),
    ([{'input': '1'}], 'output'),
    (
      [
        {'input': '1', 'output': '1', 'testtype': 'stdin'},
        {'input': '1', 'output': '1', 'testtype': 'functional'},
      ],
      'both kinds',
    ),
    ([{'input': '1', 'output': '1', 'type': 'functional'}], 'name is None'),
    (['f(1) == 2'], 'not an assert'),
    ({'inputs': [[1]], 'outputs': [1], 'fn_name': 'f; g'}, 'f; g'),
    (3, 'has none of tests'),
  ],
)
def test_a_row_without_usable_tests_is_quarantined(tmp_path, tests, problem):
  good = {'id': 'good', 'question': 'Add.', 'tests': PAIRS}
  bad = {'id': 'bad', 'question': 'Add.', 'tests': tests}
  quarantine = Quarantine(0.5)
  (prompt,) = _read(tmp_path, 'code', good, bad, quarantine=quarantine)
  ((where, why),) = quarantine.dropped
  assert prompt.id == 'good' and where.endswith(':2')
  assert problem in why and "row 'bad'" in why
  with pytest.raises(UserError, match='rows.jsonl:2'):
    _read(tmp_path, 'code', good, bad)


def test_a_row_without_a_question_is_named(tmp_path):
  with pytest.raises(UserError, match='rows.jsonl:1 needs a text in one of'):
    _read(tmp_path, 'code', {'id': 'a', 'tests': PAIRS})


def test_rows_without_an_id_have_one_each(tmp_path):
  rows = [{'question': f'Add {n}.', 'tests': PAIRS} for n in range(3)]
  names = {prompt.id for prompt in _read(tmp_path, 'code', *rows)}
  assert len(names) == 3
  with pytest.raises(UserError, match='repeats the id'):
    _read(tmp_path, 'code', *rows, rows[0])


def test_mbpp_shows_how_its_function_is_called(tmp_path):
  row = {
    'task_id': 11,
    'text': 'Write a function to add one.',
    'code': 'def add(x): return x + 1',
    'test_list': ['assert add(1) == 2', 'assert add(2) == 3'],
    'test_imports': ['import math'],
    'test_setup_code': '',
  }
  (prompt,) = _read(tmp_path, 'mbpp', row)
  assert prompt.id == 'mbpp-11'
  assert prompt.question == (
    'Write a function to add one.\n\nYour code should pass these tests:\n\n'
    'assert add(1) == 2\nassert add(2) == 3'
  )
  assert json.loads(prompt.answer)['setup'] == 'import math'


def test_humaneval_of_the_hub_is_read(tmp_path):
  row = {
    'task_id': 'HumanEval/0',
    'prompt': 'def f(x):\n  """Adds one."""\n',
    'canonical_solution': '  return x + 1',
    'test': 'def check(candidate):\n  assert candidate(1) == 2',
    'entry_point': 'f',
  }
  (prompt,) = _read(tmp_path, 'humaneval', row)
  assert prompt.id == 'HumanEval/0'
  assert code_sources.reference({**row, 'solution': '  return x + 1'})


def test_the_imports_of_contests_are_those_of_livecodebench():
  space: dict = {}
  exec(contests.IMPORTS, space)
  for name in (
    'List Optional Dict defaultdict deque Counter heappush bisect_left gcd inf '
    'lru_cache cache reduce accumulate permutations ascii_lowercase deepcopy '
    'itemgetter StringIO stdin sys math mean randint loads date'
  ).split():
    assert name in space
  assert space['pow'] is pow and space['open'] is open  # Built-ins win.
