"""Rows of code benchmarks → tests as data: HumanEval, MBPP, LiveCodeBench.

The rows are trusted: to know what HumanEval's check expects, the check runs
here, when the data is built, with a recorder in the answer's place and the
random module seeded. No answer of a model ever runs here.
"""

import ast
import base64
import builtins
from collections.abc import Callable, Mapping
import copy
import datetime
import io
import json
import math
import pickle
import random
import sys
from typing import Any
import zlib

from r1jax.data.code import values as code_values
from r1jax.data.code.asserts import AS_JSON, Claim, NotAClaim, claims
from r1jax.data.code.cases import CallCase, CodeTests, StdioCase
from r1jax.errors import UserError


def humaneval(row: Mapping[str, Any]) -> CodeTests:
  """From prompt, entry_point, test and, where the test calls it, solution.

  A test that compares the answer with the answer itself (row 33 does) is one
  that everything passes: the reference solution stands on the expected side.

  Raises:
    UserError: a test in a form that cannot be converted; names the row.
  """
  return _naming(_humaneval, row)


def mbpp(row: Mapping[str, Any]) -> CodeTests:
  """From test_setup_code and test_list; raises as `humaneval`."""
  return _naming(_mbpp, row)


def livecodebench(row: Mapping[str, Any]) -> CodeTests:
  """From public_test_cases, private_test_cases, starter_code and metadata.

  Raises as `humaneval`.
  """
  return _naming(_livecodebench, row)


def stdio(row: Mapping[str, Any]) -> CodeTests:
  """From id, inputs and outputs: lists of texts of one length."""
  return _naming(
    lambda row: CodeTests(
      id=str(row['id']),
      cases=tuple(
        StdioCase(stdin=given, stdout=wanted)
        for given, wanted in zip(row['inputs'], row['outputs'], strict=True)
      ),
    ),
    row,
  )


def reference(row: Mapping[str, Any]) -> str:
  """The program that a row of HumanEval or MBPP gives as its solution."""
  return row['prompt'] * ('entry_point' in row) + row['solution']


def _naming(convert: Callable, row: Mapping[str, Any]) -> CodeTests:
  name = row.get('id') or row.get('task_id') or row.get('question_id')
  try:
    tests = convert({**row, 'id': str(name)})
  except Exception as error:  # The row's own code runs: it may raise anything.
    raise UserError(
      f'code tests: row {name!r} cannot be converted: '
      f'{type(error).__name__}: {error}'
    ) from error
  if not tests.cases:
    raise UserError(f'code tests: row {name!r} has no test')
  return tests


# --- HumanEval ---------------------------------------------------------------


class _Call:
  """Stands for what the answer will return: nothing can be done with it."""

  def __init__(self, *args, **kwargs):
    # The check may change its lists after the call.
    self.args, self.kwargs = copy.deepcopy((args, kwargs))


class _Recorded(ast.NodeTransformer):
  """Rewrites a check: asserts about the answer become notes of a claim."""

  def __init__(self):
    self.claims: list[Claim] = []
    self._held: set[str] = set()  # Names of what the answer returned.

  def is_call(self, node: ast.expr) -> bool:
    return _is_candidate(node) or (
      isinstance(node, ast.Name) and node.id in self._held
    )

  def visit_Assign(self, node: ast.Assign):
    if _is_candidate(node.value) and isinstance(node.targets[0], ast.Name):
      self._held.add(node.targets[0].id)
    return node

  def visit_Assert(self, node: ast.Assert):
    if not any(map(self.is_call, ast.walk(node.test))):
      return node
    notes = []
    for claim in claims(node.test, self.is_call):
      self.claims.append(claim)
      through = [
        ast.List([ast.Constant(name), *args], ast.Load())
        for name, args in claim.through
      ]
      parts = [
        ast.Constant(len(self.claims) - 1),
        claim.call,
        claim.expected or ast.Constant(None),
        ast.List(list(claim.tolerance), ast.Load()),
        ast.List(through, ast.Load()),
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
  tree, recorder = ast.parse(row['test']), _Recorded()
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

  def note(index, call, expected, tolerance, through, names):
    args = [code_values.source(arg) for arg in call.args] + [
      f'{key}={code_values.source(arg)}' for key, arg in call.kwargs.items()
    ]
    claim, judge = recorder.claims[index], ''
    if claim.relation == 'judge':
      judge = _judge(claim, {**space, **names}, recorder.is_call)
    cases.append(
      CallCase(
        call=f'{name}({", ".join(args)})',
        relation=claim.relation,
        expected=code_values.encode(expected),
        tolerance=tuple(tolerance),
        through=tuple(map(_encoded_step, through)),
        judge=judge,
      )
    )

  before = random.getstate()
  random.seed(0)
  try:
    exec(compile(reference, '<reference>', 'exec'), space)
    exec(compile(ast.fix_missing_locations(tree), '<test>', 'exec'), space)
    space['__note__'] = note
    space['check'](_Call)
  finally:
    random.setstate(before)
  prelude = _before(prompt, name)
  return CodeTests(
    id=row['id'],
    cases=tuple(cases),
    prelude=prelude,
    judge='\n'.join([prelude, *helpers])
    if any(case.judge for case in cases)
    else '',
  )


def _judge(claim: Claim, names: dict, is_call) -> str:
  """The whole claim as an expression of `result`, its variables filled in."""
  bound = {
    node.id if isinstance(node, ast.Name) else node.arg
    for node in ast.walk(claim.test)
    if isinstance(node, ast.arg)
    or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
  }

  class Fill(ast.NodeTransformer):
    def visit(self, node):
      if is_call(node):
        return ast.Name('result', ast.Load())
      if isinstance(node, ast.Name) and node.id not in bound:
        if node.id not in names and not hasattr(builtins, node.id):
          raise NameError(f'name {node.id!r} is not defined')
        try:
          made = code_values.source(names[node.id])
        except (KeyError, TypeError):  # A function: the judge has it too.
          return node
        return ast.parse(made, mode='eval').body
      return self.generic_visit(node)

  return ast.unparse(Fill().visit(copy.deepcopy(claim.test)))


def _before(prompt: str, name: str) -> str:
  """What the prompt has before the function to write."""
  for node in ast.parse(prompt).body:
    if isinstance(node, ast.FunctionDef) and node.name == name:
      return ''.join(prompt.splitlines(True)[: node.lineno - 1]).strip()
  raise ValueError(f'the prompt does not define {name}')


def _encoded_step(step: list) -> list:
  return [step[0], *map(code_values.encode, step[1:])]


# --- MBPP --------------------------------------------------------------------

# What the expected side of an assert may name, besides the built-ins.
_MODULES = {'math': math, 'sys': sys, 'datetime': datetime}


def _mbpp(row: dict) -> CodeTests:
  defined = {
    node.name
    for node in ast.walk(ast.parse(row.get('solution', '')))
    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
  }

  def is_call(node: ast.AST) -> bool:
    """Of a name that only the answer can have defined."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
      return False
    name = node.func.id
    return name in defined if defined else not hasattr(builtins, name)

  cases = []
  for text in row['test_list']:
    for statement in ast.parse(text).body:
      if not isinstance(statement, ast.Assert):
        raise NotAClaim(f'not an assert: {text!r}')
      for claim in claims(statement.test, is_call):
        if claim.relation == 'judge':
          raise NotAClaim(f'of no known form: {text!r}')
        cases.append(
          CallCase(
            call=ast.unparse(claim.call),
            relation=claim.relation,
            expected=claim.expected
            and code_values.encode(_value(claim.expected)),
            tolerance=tuple(map(_value, claim.tolerance)),
            through=tuple(
              _encoded_step([name, *map(_value, args)])
              for name, args in claim.through
            ),
          )
        )
  return CodeTests(
    id=row['id'], cases=tuple(cases), setup=row.get('test_setup_code', '')
  )


def _value(node: ast.expr):
  return eval(compile(ast.Expression(node), '<test>', 'eval'), {**_MODULES})


# --- LiveCodeBench -----------------------------------------------------------


def _livecodebench(row: dict) -> CodeTests:
  name = _parsed(row.get('metadata') or {}).get('func_name')
  method = 'class Solution' in (row.get('starter_code') or '')
  tests = _parsed(row['public_test_cases']) + _private(
    row.get('private_test_cases') or '[]'
  )
  cases = []
  for test in tests:
    if test['testtype'] == 'stdin':
      cases.append(StdioCase(stdin=test['input'], stdout=test['output']))
      continue
    args = [
      code_values.source(json.loads(line))
      for line in test['input'].splitlines()
      if line.strip()
    ]
    cases.append(
      CallCase(
        call=f'{"Solution()." if method else ""}{name}({", ".join(args)})',
        relation='equal',
        through=([AS_JSON],),
        expected=code_values.encode(json.loads(test['output'])),
      )
    )
  if len({type(case) for case in cases}) > 1:
    raise ValueError('tests of both kinds')
  return CodeTests(id=row['id'], cases=tuple(cases))


def _parsed(text):
  return json.loads(text) if isinstance(text, str) else text


def _private(text) -> list:
  """Hidden tests: JSON, or JSON in a pickled string, compressed, in base64."""
  if not isinstance(text, str) or text.lstrip().startswith('['):
    return _parsed(text)
  packed = zlib.decompress(base64.b64decode(text))
  return json.loads(_TextOnly(io.BytesIO(packed)).load())


class _TextOnly(pickle.Unpickler):
  """A pickle of a string needs no class; one that names a class is refused."""

  def find_class(self, module, name):
    raise pickle.UnpicklingError(f'{module}.{name} in a pickled text')
