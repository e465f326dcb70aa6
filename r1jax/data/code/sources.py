"""Converts rows of benchmarks of programs to tests as data.

The rows are trusted. To learn what HumanEval's check function expects, it runs
here, when the dataset is read, on a recorder instead of a candidate solution
and with a seeded random module. Programs of a model never run here.
"""

import ast
import builtins
from collections.abc import Callable, Mapping
import copy
import datetime
import json
import math
import random
import sys
from typing import Any

from r1jax.data.code import contests
from r1jax.data.code import values as code_values
from r1jax.data.code.asserts import (
  Assertion,
  UnsupportedAssertion,
  parse_assertions,
)
from r1jax.data.code.cases import CallCase, CodeTests
from r1jax.errors import UserError


def humaneval(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row of HumanEval.

  A test that compares the candidate with the entry point itself, as in row 33,
  would pass always; here the reference solution gives the expected value.

  Args:
    row: Has prompt, entry_point and test, and solution if the test calls it.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(_humaneval, row)


def mbpp(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row of MBPP.

  Args:
    row: Has test_list, and perhaps test_setup_code and solution.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(_mbpp, row)


def livecodebench(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row of LiveCodeBench.

  Args:
    row: Has public_test_cases, and perhaps private_test_cases, starter_code
      and metadata.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(contests.livecodebench, row)


def apps(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row of APPS or TACO.

  Args:
    row: Has input_output, and perhaps starter_code.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(
    lambda row: contests.input_output(
      row['id'], row['input_output'], row.get('starter_code') or ''
    ),
    row,
  )


def code_contests(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row of CodeContests.

  Args:
    row: Has public_tests, and perhaps private_tests and generated_tests.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(contests.code_contests, row)


def stdio(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row of programs that read and write standard streams.

  Args:
    row: Has id, inputs and outputs, two lists of texts of equal length.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(lambda row: contests.input_output(row['id'], row), row)


def any_form(row: Mapping[str, Any]) -> CodeTests:
  """Converts a row in whatever form its tests are.

  Args:
    row: Has `tests`: {inputs, outputs} of APPS; a list of {input, output}; a
      list of asserts, or a text of them; tests in our own form
      (CodeTests.to_json); or JSON of any of these. Without `tests`, it has the
      fields of a benchmark that the other functions convert.

  Raises:
    UserError: the tests cannot be converted; the message names the row.
  """
  return _convert(_any_form, row)


def _any_form(row: dict) -> CodeTests:
  tests = row.get('tests')
  if isinstance(tests, str):
    try:
      tests = json.loads(tests)
    except ValueError:
      tests = [tests]
  starter = row.get('starter_code') or ''
  if isinstance(tests, dict) and 'cases' in tests:
    return CodeTests.from_json({**tests, 'id': row['id']})
  if isinstance(tests, dict):
    return contests.input_output(row['id'], tests, starter)
  if isinstance(tests, list) and all(isinstance(x, str) for x in tests):
    return _mbpp({**row, 'test_list': tests})
  if isinstance(tests, list):
    name = row.get('fn_name') or row.get('entry_point')
    return contests.pairs(row['id'], tests, name, 'class Solution' in starter)
  for field, convert in _BY_FIELD.items():
    if row.get(field):
      return convert(row)
  raise ValueError(f'it has none of tests, {", ".join(_BY_FIELD)}')


def reference(row: Mapping[str, Any]) -> str:
  """Returns the reference program of a row of HumanEval or MBPP."""
  return row['prompt'] * ('entry_point' in row) + row['solution']


def _convert(convert: Callable, row: Mapping[str, Any]) -> CodeTests:
  """Applies a converter; its errors become a UserError that names the row."""
  name = row.get('id') or row.get('task_id') or row.get('question_id')
  # The names of the fields on the Hugging Face hub.
  solution = next(
    (row[x] for x in ('solution', 'canonical_solution', 'code') if row.get(x)),
    '',
  )
  try:
    tests = convert({**row, 'id': str(name), 'solution': solution})
  except Exception as error:  # The row's own code runs: it may raise anything.
    raise UserError(
      f'code tests: row {name!r} cannot be converted: '
      f'{type(error).__name__}: {error}'
    ) from error
  if not tests.cases:
    raise UserError(f'code tests: row {name!r} has no test')
  return tests


# --- HumanEval ---------------------------------------------------------------


class _RecordedCall:
  """Stands for a call's unknown value, on which no operation is defined."""

  def __init__(self, *args, **kwargs):
    # The check may change its lists after the call.
    self.args, self.kwargs = copy.deepcopy((args, kwargs))


class _AssertRecorder(ast.NodeTransformer):
  """Rewrites a check: asserts about the candidate become calls of __note__."""

  def __init__(self):
    self.assertions: list[Assertion] = []
    self._call_names: set[str] = set()  # Names of variables that hold a call.

  def is_call(self, node: ast.AST) -> bool:
    return _is_candidate(node) or (
      isinstance(node, ast.Name) and node.id in self._call_names
    )

  def visit_Assign(self, node: ast.Assign):
    if _is_candidate(node.value) and isinstance(node.targets[0], ast.Name):
      self._call_names.add(node.targets[0].id)
    return node

  def visit_Assert(self, node: ast.Assert):
    if not any(map(self.is_call, ast.walk(node.test))):
      return node
    notes = []
    for assertion in parse_assertions(node.test, self.is_call):
      self.assertions.append(assertion)
      transforms: list[ast.expr] = [
        ast.List([ast.Constant(name), *args], ast.Load())
        for name, args in assertion.transforms
      ]
      parts = [
        ast.Constant(len(self.assertions) - 1),
        assertion.call,
        assertion.expected or ast.Constant(None),
        ast.List(list(assertion.tolerance), ast.Load()),
        ast.List(transforms, ast.Load()),
        ast.Call(ast.Name('locals', ast.Load()), [], []),
      ]
      notes.append(
        ast.Expr(ast.Call(ast.Name('__note__', ast.Load()), parts, []))
      )
    return notes


def _is_candidate(node: ast.AST) -> bool:
  return (
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == 'candidate'
  )


def _humaneval(row: dict) -> CodeTests:
  name, prompt = row['entry_point'], row['prompt']
  reference = prompt + row['solution'] if row.get('solution') else prompt
  tree, recorder = ast.parse(row['test']), _AssertRecorder()
  (check,) = (
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name == 'check'
  )
  imports = [
    node
    for node in ast.walk(check)
    if isinstance(node, (ast.Import, ast.ImportFrom))
  ]
  helpers = [
    ast.unparse(node)
    for node in imports + [node for node in tree.body if node is not check]
  ]
  recorder.visit(check)
  space: dict[str, Any] = {'__name__': 'check'}
  cases = []

  def note(index, call, expected, tolerance, transforms, names):
    args = [code_values.to_source(arg) for arg in call.args] + [
      f'{key}={code_values.to_source(arg)}' for key, arg in call.kwargs.items()
    ]
    assertion, checker = recorder.assertions[index], ''
    if assertion.relation == 'checker':
      checker = _checker(assertion, {**space, **names}, recorder.is_call)
    cases.append(
      CallCase(
        call=f'{name}({", ".join(args)})',
        relation=assertion.relation,
        expected=code_values.encode(expected),
        tolerance=tuple(tolerance),
        transforms=tuple(map(_encoded_step, transforms)),
        checker=checker,
      )
    )

  before = random.getstate()
  random.seed(0)
  try:
    exec(compile(reference, '<reference>', 'exec'), space)
    exec(compile(ast.fix_missing_locations(tree), '<test>', 'exec'), space)
    space['__note__'] = note
    space['check'](_RecordedCall)
  finally:
    random.setstate(before)
  prelude = _prelude(prompt, name)
  return CodeTests(
    id=row['id'],
    cases=tuple(cases),
    prelude=prelude,
    checker_source='\n'.join([prelude, *helpers])
    if any(case.checker for case in cases)
    else '',
  )


def _checker(assertion: Assertion, names: dict, is_call) -> str:
  """Returns an assertion as an expression in `result`, with variables filled in."""
  assert assertion.test is not None  # The relation is 'checker'.
  bound = {
    node.id if isinstance(node, ast.Name) else node.arg
    for node in ast.walk(assertion.test)
    if isinstance(node, ast.arg)
    or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
  }

  class FillVariables(ast.NodeTransformer):
    def visit(self, node):
      if is_call(node):
        return ast.Name('result', ast.Load())
      if isinstance(node, ast.Name) and node.id not in bound:
        if node.id not in names and not hasattr(builtins, node.id):
          raise NameError(f'name {node.id!r} is not defined')
        try:
          literal = code_values.to_source(names[node.id])
        except (KeyError, TypeError):  # A function, which checker_source has.
          return node
        return ast.parse(literal, mode='eval').body
      return self.generic_visit(node)

  return ast.unparse(FillVariables().visit(copy.deepcopy(assertion.test)))


def _prelude(prompt: str, name: str) -> str:
  """Returns the part of a prompt before the function to write."""
  for node in ast.parse(prompt).body:
    if isinstance(node, ast.FunctionDef) and node.name == name:
      return ''.join(prompt.splitlines(True)[: node.lineno - 1]).strip()
  raise ValueError(f'the prompt does not define {name}')


def _encoded_step(step: list) -> list:
  return [step[0], *map(code_values.encode, step[1:])]


# --- MBPP --------------------------------------------------------------------

# Modules that the expected side of an assert may use.
_MODULES = {'math': math, 'sys': sys, 'datetime': datetime}


def _mbpp(row: dict) -> CodeTests:
  defined = {
    node.name
    for node in ast.walk(ast.parse(row.get('solution', '')))
    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
  }

  def is_call(node: ast.AST) -> bool:
    """Returns whether a node calls a function that the program must define."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
      return False
    name = node.func.id
    return name in defined if defined else not hasattr(builtins, name)

  cases = []
  for text in row['test_list']:
    for statement in ast.parse(text).body:
      if not isinstance(statement, ast.Assert):
        raise UnsupportedAssertion(f'not an assert: {text!r}')
      for assertion in parse_assertions(statement.test, is_call):
        if assertion.relation == 'checker':
          raise UnsupportedAssertion(f'not a comparison with a value: {text!r}')
        cases.append(
          CallCase(
            call=ast.unparse(assertion.call),
            relation=assertion.relation,
            expected=assertion.expected
            and code_values.encode(_value(assertion.expected)),
            tolerance=tuple(map(_value, assertion.tolerance)),
            transforms=tuple(
              _encoded_step([name, *map(_value, args)])
              for name, args in assertion.transforms
            ),
          )
        )
  setup = [*(row.get('test_imports') or []), row.get('test_setup_code') or '']
  return CodeTests(
    id=row['id'], cases=tuple(cases), setup='\n'.join(filter(None, setup))
  )


def _value(node: ast.expr):
  return eval(compile(ast.Expression(node), '<test>', 'eval'), {**_MODULES})


# The field by which a row shows its benchmark.
_BY_FIELD: dict[str, Callable[[dict], CodeTests]] = {
  'input_output': lambda row: contests.input_output(
    row['id'], row['input_output'], row.get('starter_code') or ''
  ),
  'public_test_cases': contests.livecodebench,
  'public_tests': contests.code_contests,
  'test_list': _mbpp,
  'entry_point': _humaneval,
  'inputs': lambda row: contests.input_output(row['id'], row),
}
