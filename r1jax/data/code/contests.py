"""Converts tests of programming contests, in the forms in which they are shared.

  LiveCodeBench          public_test_cases, private_test_cases: a list of
                         {input, output, testtype}
  APPS, TACO             input_output: {inputs, outputs}, and fn_name for calls
  CodeContests           public_tests, private_tests, generated_tests:
                         {input, output} of lists

Programs of contests rely on imports that the harness of LiveCodeBench makes for
them, as starter code such as `def f(self, x: List[int])` shows; see IMPORTS.
"""

import base64
from collections.abc import Mapping, Sequence
import io
import json
import pickle
from typing import Any
import zlib

from r1jax.data.code import values as code_values
from r1jax.data.code.asserts import TUPLES_TO_LISTS
from r1jax.data.code.cases import CallCase, CodeTests, StdioCase

# The later ones win where names are equal, as in LiveCodeBench.
_STAR_IMPORTS = (
  'string re datetime collections heapq bisect copy math random statistics '
  'itertools functools operator io sys json builtins typing'
).split()
_IMPORTS = (
  'string re datetime collections heapq bisect copy math random statistics '
  'itertools functools operator io sys json time fractions'
).split()
# Source that runs before a program of a contest.
IMPORTS = '\n'.join(
  [f'from {name} import *' for name in _STAR_IMPORTS]
  + [f'import {name}' for name in _IMPORTS]
  + ['sys.setrecursionlimit(50000)', '']
)
_CONTEST_TESTS = ('public_tests', 'private_tests', 'generated_tests')


def livecodebench(row: Mapping[str, Any]) -> CodeTests:
  """Converts public_test_cases and private_test_cases."""
  cases = _parsed(row['public_test_cases']) + _private(
    row.get('private_test_cases') or '[]'
  )
  name = _parsed(row.get('metadata') or {}).get('func_name')
  method = 'class Solution' in (row.get('starter_code') or '')
  return pairs(row['id'], cases, name, method)


def input_output(
  row_id: str, tests: str | Mapping[str, Any], starter_code: str = ''
) -> CodeTests:
  """Converts {inputs, outputs, fn_name}, or its JSON.

  Args:
    row_id: Id of the row.
    tests: The tests.
    starter_code: Code that the program completes, if any.

  Raises:
    ValueError: they are malformed.
  """
  parsed = _parsed(tests)
  inputs = _either(parsed, 'inputs', 'input')
  outputs = _either(parsed, 'outputs', 'output')
  cases = [
    {'input': each, 'output': output}
    for each, output in zip(inputs, outputs, strict=True)
  ]
  method = 'class Solution' in starter_code
  return pairs(row_id, cases, parsed.get('fn_name'), method)


def code_contests(row: Mapping[str, Any]) -> CodeTests:
  """Converts public_tests, private_tests and generated_tests."""
  cases = [
    {'input': stdin, 'output': stdout}
    for name in _CONTEST_TESTS
    if row.get(name)
    for stdin, stdout in zip(
      _parsed(row[name])['input'], _parsed(row[name])['output'], strict=True
    )
  ]
  return pairs(row['id'], cases)


def pairs(
  row_id: str,
  cases: Sequence[Mapping[str, Any]],
  name: str | None = None,
  method: bool = False,
) -> CodeTests:
  """Converts pairs of an input and an output.

  Args:
    row_id: Id of the row.
    cases: Mappings with input and output, and perhaps testtype or type:
      'stdin', or 'functional' for calls.
    name: Name of the function to call; None if the program is a script.
    method: Whether the function is a method of a class Solution.

  Raises:
    ValueError: there are tests of both kinds, or calls without a name.
  """
  default = 'functional' if name else 'stdin'
  kinds = {
    case.get('testtype') or case.get('type') or default for case in cases
  }
  if len(kinds) > 1:
    raise ValueError('tests of both kinds')
  if kinds <= {'stdin', 'stdin_stdout', 'stdio'}:
    scripts = [
      StdioCase(stdin=_text(case['input']), stdout=_text(case['output']))
      for case in cases
    ]
    return CodeTests(id=row_id, cases=tuple(scripts), prelude=IMPORTS)
  name = name or cases[0].get('fn_name')
  if not name or not name.isidentifier():
    raise ValueError(f'calls of a function whose name is {name!r}')
  calls = [_call(name, method, case) for case in cases]
  return CodeTests(
    id=row_id, cases=tuple(calls), prelude=IMPORTS, setup=_setup(name)
  )


def _call(name: str, method: bool, case: Mapping[str, Any]) -> CallCase:
  """Converts one call, whose arguments are a list, or lines of JSON."""
  args, expected = case['input'], case['output']
  if isinstance(args, str):
    args = [json.loads(line) for line in args.splitlines() if line.strip()]
    expected = json.loads(expected) if isinstance(expected, str) else expected
    wrapped = False
  else:  # APPS has a value, or a list with nothing but the value.
    wrapped = isinstance(expected, list) and len(expected) == 1
  text = ', '.join(map(code_values.to_source, args))
  return CallCase(
    call=f'{"Solution()." if method else ""}{name}({text})',
    relation='in' if wrapped else 'equal',
    transforms=([TUPLES_TO_LISTS],),
    expected=code_values.encode(
      [expected, expected[0]] if wrapped else expected
    ),
  )


def _setup(name: str) -> str:
  """Returns source that lets a function stand for a method and vice versa."""
  return (
    f"if 'Solution' not in globals() and '{name}' in globals():\n"
    '  class Solution:\n'
    f'    {name} = staticmethod({name})\n'
    f"elif '{name}' not in globals() and hasattr(Solution, '{name}'):\n"
    f'  def {name}(*args): return Solution().{name}(*args)\n'
  )


def _text(value: str | Sequence[str]) -> str:
  """Returns a text; a list holds its lines."""
  if isinstance(value, str):
    return value
  if isinstance(value, Sequence) and all(isinstance(x, str) for x in value):
    return '\n'.join(value)
  raise ValueError(f'a test whose text is {value!r:.100}')


def _either(tests: Mapping[str, Any], *names: str) -> Sequence[Any]:
  """Returns the list under the first of the names that exists."""
  for name in names:
    if isinstance(tests.get(name), list):
      return tests[name]
  raise ValueError(f'tests without a list {names[0]!r}')


def _parsed(text):
  return json.loads(text) if isinstance(text, str) else text


def _private(text) -> list:
  """Parses hidden tests: JSON, or JSON pickled, compressed and in base64."""
  if not isinstance(text, str) or text.lstrip().startswith('['):
    return _parsed(text)
  packed = zlib.decompress(base64.b64decode(text))
  return json.loads(_TextOnly(io.BytesIO(packed)).load())


class _TextOnly(pickle.Unpickler):
  """Unpickles strings; a pickle that names a class is refused."""

  def find_class(self, module, name):
    raise pickle.UnpicklingError(f'{module}.{name} in a pickled text')
