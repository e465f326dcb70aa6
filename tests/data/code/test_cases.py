"""Benchmarks' tests become data that says the same."""

import ast
import base64
import json
import pickle
import random
import zlib

import numpy as np
import pytest

from r1jax.data.code import sources as code_sources
from r1jax.data.code import values as code_values
from r1jax.data.code.asserts import UnsupportedAssertion, parse_assertions
from r1jax.data.code.cases import RELATIONS, CallCase, CodeTests, StdioCase
from r1jax.data.datasets import read_jsonl
from r1jax.errors import UserError

VALUES = [
  None,
  True,
  False,
  0,
  -7,
  2**53,
  -(10**40),
  0.1,
  -0.0,
  float('inf'),
  1e-320,
  'a',
  '',
  'é\n\0"\ud800',
  b'\0a',
  2j,
  [],
  [1, [2.5, None]],
  (),
  (1,),
  ((1, 2), [3]),
  set(),
  {1, 'a', (2, 3)},
  {},
  {1: 'a', (2,): {'b': {3}}},
  {None: True, 0.5: b'x'},
]


# Named by place: the order of a set's elements differs between processes.
@pytest.mark.parametrize('value', VALUES, ids=range(len(VALUES)))
def test_values_survive_json_with_their_types(value):
  wire = json.loads(json.dumps(code_values.encode(value)))
  assert repr(code_values.decode(wire)) == repr(value)
  assert repr(eval(code_values.to_source(value))) == repr(value)


def test_library_types_are_encoded_as_what_they_equal():
  import collections

  point = collections.namedtuple('Point', 'x y')
  for value, plain in (
    (collections.Counter('aab'), {'a': 2, 'b': 1}),
    (collections.OrderedDict(a=1), {'a': 1}),
    (point(1, 2), (1, 2)),
    ({'a': 1}.keys(), {'a'}),
    (frozenset([1]), {1}),
  ):
    assert code_values.decode(code_values.encode(value)) == plain == value


@pytest.mark.parametrize(
  'value,plain',
  [
    ('np.int64(3)', 3),
    ('np.float64(0.5)', 0.5),
    ('np.bool_(True)', True),
    ('[np.int32(1), (np.float32(2.0),)]', [1, (2.0,)]),
    ('{np.int64(1): np.str_("a")}', {1: 'a'}),
    ('np.array([1, 2]).sum()', 3),
  ],
)
def test_a_number_of_numpy_is_encoded_as_what_it_equals(value, plain):
  made = eval(value, {'np': np})
  assert code_values.decode(code_values.encode(made)) == plain == made


def test_an_array_is_no_test_value():
  with pytest.raises(TypeError, match='ndarray'):
    code_values.encode(np.array([1, 2]))


class _Lying(list):
  def __eq__(self, other):
    return True


_LOOP: list = []
_LOOP.append(_LOOP)


@pytest.mark.parametrize(
  'value',
  [
    object(),
    _Lying(),
    type('Int', (int,), {})(1),
    range(3),
    iter([]),
    len,
    int,
    [object()],
    {1: object()},
    set(range(2000)),
    _LOOP,
  ],
)
def test_other_values_are_refused(value):
  with pytest.raises((TypeError, ValueError, RecursionError)):
    code_values.encode(value)


@pytest.mark.parametrize(
  'wire',
  [
    1.5,
    {},
    {'any': 1},
    {'int': 'x'},
    {'int': 5},
    {'set': [[1]]},
    {'dict': [[1]]},
    {'tuple': 3},
    {'float': []},
    {'set': list(range(2000))},
    {'tuple': [], 'set': []},
    {'bytes': 'x'},
    {'dict': [[{'set': []}, 1]]},
    {'complex': ['1']},
  ],
)
def test_what_nothing_encodes_is_refused(wire):
  with pytest.raises(ValueError):
    code_values.decode(wire)


# --- Asserts -----------------------------------------------------------------


def _parse(text: str):
  return parse_assertions(
    ast.parse(text, mode='eval').body,
    lambda node: isinstance(node, ast.Call) and ast.unparse(node.func) == 'f',
  )


@pytest.mark.parametrize(
  'text,relation,expected',
  [
    ('f(1) == 2', 'equal', '2'),
    ('2 == f(1)', 'equal', '2'),
    ('f(1) != 2', 'unequal', '2'),
    ('f(1) is None', 'same', 'None'),
    ('f(1)', 'true', None),
    ('not f(1)', 'false', None),
    ('f(1) in [1, 2]', 'in', '[1, 2]'),
    ('abs(f(1) - 2) < e', 'near', '2'),
    ('abs(2 - f(1)) <= e', 'at_most', '2'),
    ('math.fabs(f(1) - 2) < e', 'near', '2'),
    ('math.isclose(f(1), 2, rel_tol=0.1)', 'close', '2'),
    ('tuple(f(1)) == (2,)', 'equal', '(2,)'),
    ('set(sorted(f(1))) == {2}', 'equal', '{2}'),
    ('bool(f(1))', 'true', None),
    ('f(1) < 2', 'checker', None),
    ('f(1) == f2(2) == 3', 'checker', None),
    ('g(f(1)) == 2', 'checker', None),
  ],
)
def test_an_assert_is_parsed(text, relation, expected):
  (assertion,) = _parse(text)
  assert assertion.relation == relation in RELATIONS
  assert ast.unparse(assertion.call) == 'f(1)'
  assert (assertion.expected and ast.unparse(assertion.expected)) == expected


def test_transforms_are_listed_in_order():
  (assertion,) = _parse('round(abs(f(1)), 2) == 2')
  assert [name for name, _ in assertion.transforms] == ['abs', 'round']
  assert [one.relation for one in _parse('f(1) == 2 and not f(3)')] == [
    'equal',
    'false',
  ]


@pytest.mark.parametrize('text', ['f(1) == f(2)', 'True', 'g(1) == 2'])
def test_an_assertion_has_one_call(text):
  with pytest.raises(UnsupportedAssertion):
    _parse(text)


# --- Rows --------------------------------------------------------------------


def _humaneval(test: str, **more) -> CodeTests:
  return code_sources.humaneval(
    {
      'id': 'row-1',
      'entry_point': 'f',
      'prompt': 'import math\ndef helper(x):\n  return x + 1\n\n'
      'def f(x):\n  """Adds one."""\n',
      'test': f'def check(candidate):\n{test}',
    }
    | more
  )


def test_loops_and_helpers_run_when_the_data_is_built():
  tests = _humaneval(
    '  for x in range(2):\n    assert candidate(x) == helper(x)'
  )
  assert [(case.call, case.expected) for case in tests.cases] == [
    ('f(0)', 1),
    ('f(1)', 2),
  ]
  assert 'def helper' in tests.prelude and 'def f' not in tests.prelude


def test_random_inputs_are_the_same_each_time_and_disturb_no_one():
  text = (
    '  import random\n  for _ in range(5):\n'
    '    x = random.random()\n    assert candidate(x) == x + 1'
  )
  before = random.getstate()
  assert _humaneval(text) == _humaneval(text)
  assert random.getstate() == before


def test_an_argument_is_what_it_was_at_the_call():
  tests = _humaneval(
    '  x = [1]\n  found = candidate(x)\n  x.append(2)\n  assert found == x'
  )
  assert tests.cases == (
    CallCase(call='f([1])', relation='equal', expected=[1, 2]),
  )


def test_what_only_code_can_decide_is_left_to_a_checker():
  tests = _humaneval(
    '  for y in (2, 3):\n    found = candidate(y)\n'
    '    assert all(helper(x) < y for x in found)'
  )
  assert tests.cases[1] == CallCase(
    call='f(3)',
    relation='checker',
    checker='all((helper(x) < 3 for x in result))',
  )
  assert (
    'def helper' in tests.checker_source and 'def f' not in tests.checker_source
  )


def test_an_answer_compared_with_itself_is_compared_with_the_solution():
  text = '  assert candidate(1) == f(1)'
  assert _humaneval(text, solution='  return helper(x)').cases[0].expected == 2


@pytest.mark.parametrize(
  'text,match',
  [
    ('  assert candidate(object()) == 1', 'object'),
    ('  assert candidate(1) == candidate(2)', '2 calls'),
    ('  assert candidate(1) == (lambda: 1)', 'function'),
    ('  assert candidate(1).a == missing', 'candidate|missing|locals'),
    ('  assert candidate(1) == helper("")', 'TypeError'),
    ('  x = candidate(1) + 1\n  assert x == 2', 'TypeError'),
    ('  pass', 'no test'),
    ('  assert (', 'SyntaxError'),
  ],
)
def test_what_cannot_be_converted_names_its_row(text, match):
  with pytest.raises(UserError, match=f"row 'row-1'.*({match})|{match}"):
    _humaneval(text)


@pytest.mark.parametrize(
  'test',
  [
    'assert f(1) < 2',
    'x = f(1)',
    'assert f(1) == f(2)',
    'assert 1',
    'assert f(1) == unknown(2)',
  ],
)
def test_an_mbpp_row_that_cannot_be_converted_names_its_row(test):
  with pytest.raises(UserError, match="row 'row-2'"):
    code_sources.mbpp({'id': 'row-2', 'test_list': [test]})


def test_mbpp_keeps_the_call_as_it_stands():
  tests = code_sources.mbpp(
    {
      'task_id': 601,
      'test_setup_code': 'root = Node(1)',
      'solution': 'class Pair: pass\ndef sum(a, b): pass',
      'test_list': ['assert int(sum([Pair(5, 24)], root)) == 3'],
    }
  )
  assert tests == CodeTests(
    id='601',
    setup='root = Node(1)',
    cases=(
      CallCase(
        call='sum([Pair(5, 24)], root)',
        relation='equal',
        expected=3,
        transforms=(['int'],),
      ),
    ),
  )


def _hidden(value) -> str:
  return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_livecodebench_rows():
  public = [{'input': '1\n', 'output': '2\n', 'testtype': 'stdin'}]
  hidden = [{'input': '3\n', 'output': '4\n', 'testtype': 'stdin'}]
  tests = code_sources.livecodebench(
    {
      'question_id': 'a',
      'public_test_cases': json.dumps(public),
      'private_test_cases': _hidden(json.dumps(hidden)),
    }
  )
  assert tests.cases == (
    StdioCase(stdin='1\n', stdout='2\n'),
    StdioCase(stdin='3\n', stdout='4\n'),
  )
  assert CodeTests.from_json(json.loads(json.dumps(tests.to_json()))) == tests
  calls = [{'input': '[1, 2]\n"a"', 'output': '[3]', 'testtype': 'functional'}]
  tests = code_sources.livecodebench(
    {
      'question_id': 'b',
      'public_test_cases': calls,
      'metadata': '{"func_name": "g"}',
      'starter_code': 'class Solution:',
    }
  )
  assert tests.cases[0].call == "Solution().g([1, 2], 'a')"
  assert tests.cases[0].expected == [3]


class _Bomb:
  def __reduce__(self):
    return (print, ('a pickle ran',))


def test_a_hidden_test_runs_nothing(capsys):
  with pytest.raises(UserError, match='builtins.print in a pickled text'):
    code_sources.livecodebench(
      {
        'question_id': 'a',
        'public_test_cases': '[]',
        'private_test_cases': _hidden(_Bomb()),
      }
    )
  assert capsys.readouterr().out == ''


def test_pairs_of_texts():
  tests = code_sources.stdio({'id': 'a', 'inputs': ['1'], 'outputs': ['2']})
  assert tests.cases == (StdioCase(stdin='1', stdout='2'),)
  with pytest.raises(UserError, match="row 'a'"):
    code_sources.stdio({'id': 'a', 'inputs': ['1', '2'], 'outputs': ['2']})


@pytest.mark.parametrize(
  'name,convert,rows,cases',
  [
    ('humaneval', code_sources.humaneval, 164, 1534),
    ('mbpp', code_sources.mbpp, 974, 2922),
  ],
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_every_real_row_becomes_data(shared, name, convert, rows, cases):
  made = [
    convert(row)
    for row in read_jsonl(str(shared / f'data/code/{name}.jsonl'), {})
  ]
  assert len(made) == rows
  assert sum(len(tests.cases) for tests in made) == cases
  for tests in made:
    assert json.loads(json.dumps(tests.to_json())) == json.loads(
      json.dumps(CodeTests.from_json(tests.to_json()).to_json())
    )
