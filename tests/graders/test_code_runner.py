"""What solves its task is right, and nothing else is."""

import dataclasses
import json
import random
import time

import pytest

from r1jax import registry
from r1jax.data import datasets
from r1jax.data.code import sources as code_sources
from r1jax.data.code import values as code_values
from r1jax.data.code.cases import CallCase, CodeTests, StdioCase
from r1jax.data.datasets import read_jsonl
from r1jax.graders import code_compare, code_grader, code_runner, dispatch
from r1jax.graders.code_program import CodeVerdict, GradingOptions
from r1jax.workers.sandbox import tiers
from r1jax.workers.sandbox.sandbox import Sandbox, SandboxUnavailable
from tests.graders import forgeries, mutants

SORT = code_sources.mbpp(
  {
    'id': 'sort',
    'test_list': [
      'assert solve([3, 1, 2]) == [1, 2, 3]',
      'assert solve([]) == []',
      'assert solve([2, 2, 1]) == [1, 2, 2]',
    ],
  }
)
SUM = CodeTests(
  id='sum',
  cases=(
    StdioCase(stdin='1 2\n', stdout='3\n'),
    StdioCase(stdin='10 20\n', stdout='30\n'),
  ),
)
ADDS = 'a, b = map(int, input().split())\nprint(a + b)'


@pytest.fixture(scope='module', params=tiers.TIERS)
def every_sandbox(request):
  try:
    made = Sandbox(slots=1, tier=request.param)
  except SandboxUnavailable as error:
    pytest.skip(str(error))
  with made:
    yield made


@pytest.fixture(scope='module')
def sandbox():
  try:
    made = Sandbox(slots=2)
  except SandboxUnavailable as error:
    pytest.skip(str(error))
  with made:
    yield made


@pytest.mark.parametrize('name', forgeries.FORGERIES)
def test_no_verdict_is_forged(every_sandbox, name):
  program = forgeries.FORGERIES[name]
  for partial in (False, True):
    found = code_runner.run_tests(
      program, SORT, every_sandbox, GradingOptions(partial=partial)
    )
    # Two of the three lists are sorted neither by nothing nor by leaving them.
    assert found.verdict not in (CodeVerdict.CORRECT, CodeVerdict.UNGRADED)
    assert found.passed <= 1 and found.score <= found.share < 0.5


@pytest.mark.parametrize('name', forgeries.WHOLE)
def test_no_output_is_forged(every_sandbox, name):
  found = code_runner.run_tests(
    forgeries.WHOLE[name], SUM, every_sandbox, GradingOptions(partial=True)
  )
  assert found.verdict not in (CodeVerdict.CORRECT, CodeVerdict.UNGRADED)
  assert found.score <= 0.5


def test_what_solves_its_task_is_right(every_sandbox):
  for program in (
    'def solve(x): return sorted(x)',
    'def solve(x):\n  x.sort()\n  print("noise")\n  return x',
    'import builtins\nsolve = sorted',
  ):
    found = code_runner.run_tests(program, SORT, every_sandbox)
    assert (found.verdict, found.score, found.share) == ('correct', 1, 1)
  assert code_runner.run_tests(ADDS, SUM, every_sandbox).score == 1


@pytest.mark.parametrize(
  'program,verdict',
  [
    ('def solve(x): return x', 'wrong'),
    ('def solve(x): return sorted(x) if x else None', 'wrong'),
    ('def solve(x): return 1 / 0', 'error'),
    ('1 / 0', 'error'),
    ('def solve(x):\n  while True: pass', 'timeout'),
    ('while True: pass', 'timeout'),
    ('def solve(x): return [0] * (1 << 28)', 'memory'),
    ('def solve(x): return "x" * (1 << 24)', 'output'),
    ('def solve(x): return open("/etc/shadow", "w")', 'forbidden'),
    ('import os\ndef solve(x): os.fork()', 'forbidden'),
    ('import socket; socket.socket()', 'forbidden'),
    ('import ctypes\ndef solve(x): ctypes.string_at(0)', 'error'),
    ('#' * 200_000, 'error'),
    ('', 'no_program'),
    (None, 'no_program'),
    ('  \n', 'no_program'),
  ],
)
def test_a_failure_has_its_reason(sandbox, program, verdict):
  found = code_runner.run_tests(
    program, SORT, sandbox, GradingOptions(case_secs=0.5)
  )
  assert (found.verdict, found.score) == (verdict, 0), found.message


@pytest.mark.parametrize(
  'program,passed',
  [
    ('def solve(x): return sorted(x) if len(x) != 3 else 1 / 0', 1),
    (
      'import os\ndef solve(x):\n  if not x: os._exit(1)\n  return sorted(x)',
      2,
    ),
    # It ends at its first time-out, of the second case.
    ('def solve(x):\n  while not x: pass\n  return sorted(x)', 1),
    ('def solve(x): return [1, 2, 3]', 1),
  ],
)
def test_partial_credit_is_the_share_of_cases(sandbox, program, passed):
  options = GradingOptions(case_secs=1, partial=True)
  found = code_runner.run_tests(program, SORT, sandbox, options)
  assert found.passed == passed and found.score == passed / 3
  assert (
    code_runner.run_tests(
      program, SORT, sandbox, GradingOptions(case_secs=1)
    ).score
    == 0
  )


def test_a_program_ends_at_its_first_time_out(sandbox):
  """With partial credit, an endless loop takes one limit, not one a case."""
  loop = 'def solve(x):\n  if len(x) < 3: return []\n  while True: pass'
  for cases in (SORT, dataclasses.replace(SORT, cases=SORT.cases * 20)):
    options = GradingOptions(case_secs=0.3, partial=True)
    found = code_runner.run_tests(loop, cases, sandbox, options)
    assert (found.verdict, found.passed) == ('timeout', 0)
  # The cases passed before it count.
  late = 'def solve(x):\n  while x == [2, 2, 1]: pass\n  return sorted(x)'
  found = code_runner.run_tests(late, SORT, sandbox, options)
  assert (found.verdict, found.score) == ('timeout', 2 / 3)
  script = 'n = int(input().split()[0])\nwhile n > 1: pass\nprint(3)'
  found = code_runner.run_tests(script, SUM, sandbox, options)
  assert (found.verdict, found.score) == ('timeout', 1 / 2)


def test_a_program_has_a_bounded_time(sandbox):
  slow = 'import time\ndef solve(x): time.sleep(0.6); return sorted(x)'
  options = GradingOptions(program_secs=1.0, partial=True)
  found = code_runner.run_tests(slow, SORT, sandbox, options)
  assert found.verdict == 'timeout' and found.passed <= 2 and found.secs < 3


@pytest.mark.parametrize(
  'loop',
  [
    'def solve(x):\n  while True: pass',
    'while True: pass',
    'import time\ndef solve(x): time.sleep(1000)',
    'import re\ndef solve(x): re.match(r"(a+)+$", "a" * 60 + "b")',
    'import threading\nlock = threading.Lock()\n'
    'def solve(x):\n  lock.acquire()\n  lock.acquire()',
    'import asyncio\ndef solve(x): asyncio.new_event_loop().run_forever()',
    'def solve(x):\n  if x: return sorted(x)\n  while True: pass',
  ],
)
@pytest.mark.parametrize(
  'partial', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_loops_of_a_policy_mask_no_honest_program(sandbox, loop, partial):
  programs = ['def solve(x): return sorted(x)'] * 16 + [loop] * 16
  order = random.Random(0).sample(range(32), 32)
  options = GradingOptions(case_secs=0.5, partial=partial)
  found = code_runner.run_tests_batch(
    [programs[i] for i in order], [SORT] * 32, sandbox, options
  )
  for index, one in zip(order, found):
    assert one.verdict == ('correct' if index < 16 else 'timeout')
    assert one.score is not None and (one.score == 1) == (index < 16)


def test_a_batch_has_a_bounded_time_and_masks_what_it_did_not_grade(sandbox):
  programs = ['def solve(x): return sorted(x)'] * 3
  found = code_runner.run_tests_batch(
    programs, [SORT] * 3, sandbox, total_secs=0
  )
  assert [one.verdict for one in found] == ['ungraded'] * 3
  assert [one.score for one in found] == [None] * 3
  sleeps = 'import time\nwhile True: time.sleep(1)'
  start = time.monotonic()
  found = code_runner.run_tests_batch(
    [sleeps] * 9, [SORT] * 9, sandbox, total_secs=1
  )
  assert {one.verdict for one in found} == {'ungraded'}
  assert time.monotonic() - start < 10


def test_a_batch_keeps_its_order(sandbox):
  programs = [
    f'import time; time.sleep({0.03 * (n % 3)})\n'
    f'def solve(x): return sorted(x)[:{n % 2 * 9}]'
    for n in range(12)
  ]
  found = code_runner.run_tests_batch(programs, [SORT] * 12, sandbox)
  assert [one.score for one in found] == [0, 1] * 6


def test_when_the_sandbox_is_gone_nothing_is_scored(monkeypatch, sandbox):
  with Sandbox(slots=1, tier=sandbox.tier) as other:
    other._slots[0].stop()
    monkeypatch.setattr(tiers, '_missing', lambda tier: 'it is gone')
    with pytest.raises(SandboxUnavailable, match='it is gone'):
      code_runner.run_tests_batch(['x'] * 3, [SORT] * 3, other)


@pytest.mark.parametrize(
  'found,expected,same',
  [
    ('3\n', '3', True),
    ('3', '3\n\n', True),
    (' 3 \r\n', '3', True),
    ('1 2\n3', '1  2\n3\n', True),
    ('3.0', '3', True),
    ('1e0', '1', True),
    ('4', '3', False),
    ('', '3', False),
    ('3 3', '3', False),
    ('1\n2', '1 2', False),
    ('nan', 'nan', True),
    ('nan', '1', False),
    ('sNaN', '1', False),
    ('9' * 10**6, '9', False),
    ('Yes', 'YES', False),
  ],
)
def test_outputs_are_compared_by_lines_and_tokens(found, expected, same):
  assert code_compare.outputs_match(found, expected) == same


@pytest.mark.parametrize(
  'relation,value,expected,holds',
  [
    ('equal', [1], [1], True),
    ('equal', (1,), [1], False),
    ('equal', True, 1, True),
    ('equal', 1.0, 1, True),
    ('equal', '1', 1, False),
    ('equal', {1: 'a'}, {1: 'a'}, True),
    ('equal', {'1': 'a'}, {1: 'a'}, False),
    ('equal', {1, 2}, {2, 1}, True),
    ('equal', None, 0, False),
    ('equal', float('nan'), float('nan'), False),
    ('equal', 10**400, 10**400, True),
    ('same', 1, True, False),
    ('same', True, True, True),
    ('unequal', 1, 2, True),
    ('true', [0], None, True),
    ('true', [], None, False),
    ('false', 0, None, True),
    ('in', 2, [1, 2], True),
    ('in', [], {1}, False),
    ('near', 1.0, 1.05, True),
    ('near', float('nan'), 1, False),
    ('near', 'x', 1, False),
    ('near', 10**400, 1.0, False),
    ('at_most', 1, 1, True),
    ('close', 1.0, 1.05, True),
  ],
)
def test_relations(relation, value, expected, holds):
  case = CallCase(
    call='',
    relation=relation,
    tolerance=(0.1, 0.0),
    expected=code_values.encode(expected),
  )
  assert code_compare.case_passes(case, code_values.encode(value)) == holds


@pytest.mark.parametrize(
  'result,holds',
  [
    ([1, [2]], True),
    ((1, (2,)), True),
    ([1, 2], False),
    ('12', False),
    ({1: 0, 2: 0}, False),
  ],
)
def test_where_tests_are_json_a_tuple_counts_as_a_list(result, holds):
  test = {'input': '0', 'output': '[1, [2]]', 'testtype': 'functional'}
  (case,) = code_sources.livecodebench(
    {
      'question_id': 'a',
      'public_test_cases': [test],
      'metadata': {'func_name': 'f'},
    }
  ).cases
  assert code_compare.case_passes(case, code_values.encode(result)) == holds


@pytest.mark.parametrize(
  'result,verdict',
  [
    ('-(x[0] / x[1])', 'correct'),
    ('-x[0] / x[1] + 1', 'wrong'),
    ('"0) or True #"', 'wrong'),
    ('"__import__"', 'wrong'),
    ('None', 'wrong'),
    ('float("nan")', 'wrong'),
    ('True', 'wrong'),
    ('10 ** 5000', 'wrong'),
    ('type("A", (float,), {"__lt__": lambda *a: True})(0)', 'error'),
  ],
)
def test_a_judge_decides_where_the_program_never_was(sandbox, result, verdict):
  # poly is the checker's own, whatever the program calls by this name.
  tests = code_sources.humaneval(
    {
      'id': 'root',
      'entry_point': 'root',
      'prompt': 'def poly(x, r):\n  return x[0] + x[1] * r\n'
      'def root(x):\n  """Where is poly zero?"""\n',
      'test': 'def check(candidate):\n  for x in ([2, 4], [3, -1]):\n'
      '    found = candidate(x)\n    assert abs(poly(x, found)) < 1e-6',
    }
  )
  program = f'def poly(x, r): return 0\ndef root(x): return {result}'
  assert code_runner.run_tests(program, tests, sandbox).verdict == verdict


# --- Real data ---------------------------------------------------------------


def _rows(shared, name: str) -> list[dict]:
  return read_jsonl(str(shared / f'data/code/{name}.jsonl'), {})


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
  'name,convert,count,step',
  [
    ('humaneval', code_sources.humaneval, 164, 1),
    ('mbpp', code_sources.mbpp, 974, 6),
  ],
)
def test_reference_solutions_are_right(
  sandbox, shared, name, convert, count, step
):
  rows = _rows(shared, name)
  assert len(rows) == count
  rows = [row for row in rows[::step] if row['id'] != 'mbpp-123']  # 20 s.
  found = code_runner.run_tests_batch(
    list(map(code_sources.reference, rows)), list(map(convert, rows)), sandbox
  )
  assert {
    row['id']: grade for row, grade in zip(rows, found) if grade.score != 1
  } == {}


@pytest.mark.slow
def test_most_mutants_of_reference_solutions_are_wrong(sandbox, shared):
  made = []
  for row in _rows(shared, 'humaneval')[::4]:
    tests = code_sources.humaneval(row)
    made += [
      (program, tests) for program in mutants.of(code_sources.reference(row))
    ]
  made = random.Random(0).sample(made, 60)
  found = code_runner.run_tests_batch(
    *zip(*made), sandbox, GradingOptions(case_secs=0.5)
  )
  assert sum(grade.score == 0 for grade in found) >= 0.8 * len(found)


def test_records_survive_json(sandbox, shared):
  row = _rows(shared, 'humaneval')[32]  # The one that needs a checker.
  tests = CodeTests.from_json(
    json.loads(json.dumps(code_sources.humaneval(row).to_json()))
  )
  assert (
    code_runner.run_tests(code_sources.reference(row), tests, sandbox).score
    == 1
  )


@pytest.mark.slow
def test_programs_are_answers_of_a_source_like_others(shared):
  """From the file to verdicts, beside mathematics."""
  folder = shared / 'data'
  rows = datasets.read(
    registry.dataset.get('humaneval'),
    'held_out',
    str(folder / 'code/humaneval.jsonl'),
  )[:3]
  raw = read_jsonl(str(folder / 'code/humaneval.jsonl'), {})[:3]
  right = [
    'so:\n```python\n' + code_sources.reference(row) + '```' for row in raw
  ]
  items = [(text, row.answer, row.source) for text, row in zip(right, rows)]
  items += [
    (right[0], rows[1].answer, 'code'),
    ('1/2', '0.5', 'math'),
    (None, rows[0].answer, 'code'),
    ('import os\nos.fork()', rows[0].answer, 'code'),
  ]
  try:
    assert dispatch.verdicts(items) == [
      'correct',
      'correct',
      'correct',
      'wrong',
      'correct',
      'unparsable',
      'refused',
    ]
    half = 'def check(x):\n  return x > 0\n'
    tests = json.dumps(
      CodeTests(
        id='signs',
        cases=[CallCase(f'check({x})', 'true') for x in (1, 2, -1, -2)],
      ).to_json()
    )
    for partial, want in ((False, 0), (True, 0.5)):
      assert dispatch.grade([(half, tests, 'code')], partial) == [
        ('wrong', want)
      ]
    assert code_grader.tier()
  finally:
    dispatch.shutdown()
  assert not code_grader.tier()
