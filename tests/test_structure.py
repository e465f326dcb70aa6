"""The package keeps its shape: layers, sizes of files and functions, prose."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import subprocess
import sys
import tokenize

import pytest

from tests import exhaustive
from tests.conftest import ROOT

PACKAGE = ROOT / 'r1jax'
# From the ground up. A room imports rooms of lower layers alone, so there are
# no circles. The registry imports the package's own names by a string, when one
# is first looked up: that is how a lower room reaches what a higher one adds.
LAYERS = (
  ('chips', 'errors', 'files', 'interrupts', 'message', 'source_files'),
  ('hub',),
  ('buckets',),
  ('records', 'compilation_cache', 'compile_time', 'processes', 'waits'),
  ('episode',),
  ('registry',),
  ('config', 'sharding', 'tracking'),
  ('model', 'algos'),
  ('data',),
  ('checkpoints', 'workers', 'rollout', 'train'),
  ('workers.sandbox',),
  ('graders',),
  ('rewards',),
  ('evaluate',),
  ('stages',),
  ('runs',),
  ('sweeps', 'configs', 'launch'),
  ('cli',),
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 60
# Words that begin a fragment rather than a sentence, in docstrings and comments.
OPENERS = re.compile(r'(Of|Which|By|Where|As|Both|Those|Without|What|Whose)\b')
MAX_OPENERS = 40

_FILES = sorted(PACKAGE.rglob('*.py'))
_LAYER_OF = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}


def _name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _room(module: str) -> str:
  """r1jax.workers.sandbox.slot → workers.sandbox, r1jax.model.moe → model."""
  parts = module.split('.')[1:]
  if parts[:2] == ['workers', 'sandbox']:
    return 'workers.sandbox'
  return parts[0] if parts else ''


def _imports(tree: ast.Module) -> Iterator[str]:
  """The modules of the package that a file imports, wherever it does."""
  known = {_name(path) for path in _FILES}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        yield whole if whole in known else node.module


def test_imports_point_down():
  upward = set()
  for path in _FILES:
    room = _room(_name(path))
    for module in _imports(ast.parse(path.read_text())):
      target = _room(module) if module.startswith('r1jax.') else ''
      if not room or not target or target == room:
        continue
      assert room in _LAYER_OF and target in _LAYER_OF, (
        f'{room} or {target} is new: give it a place in LAYERS'
      )
      if _LAYER_OF[target] >= _LAYER_OF[room]:
        upward.add(f'{path.relative_to(ROOT)} imports {module}')
  assert not upward, '\n'.join(sorted(upward))


def test_files_are_short():
  long = {
    str(path.relative_to(ROOT)): lines
    for path in _FILES
    if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
  }
  assert not long


def test_functions_fit_on_a_screen():
  long = {
    f'{path.relative_to(ROOT)}: {node.name}': lines
    for path in _FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
  }
  assert not long


def test_no_module_is_a_bag_of_utilities():
  assert not [path for path in _FILES if 'util' in path.stem]


def _sentences(path: Path) -> Iterator[str]:
  """Paragraphs and attribute lines of docstrings, and comments."""
  source = path.read_text()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
      doc = ast.get_docstring(node) or ''
      yield from (part.strip() for part in doc.split('\n\n'))
      yield from re.findall(r'^\s+[\w*, ]{1,60}: (.*)$', doc, re.M)
      yield from re.findall(r'^(?:Returns|Raises|Yields):\n\s+(.*)$', doc, re.M)
  last_line = 0  # A comment of several lines is one sentence.
  with path.open('rb') as file:
    for token in tokenize.tokenize(file.readline):
      if token.type == tokenize.COMMENT:
        if token.start[0] != last_line + 1:
          yield token.string.lstrip('# ')
        last_line = token.start[0]


def test_docstrings_and_comments_are_sentences():
  fragments = [
    f'{path.relative_to(ROOT)}: {sentence[:70]}'
    for path in _FILES
    for sentence in _sentences(path)
    if OPENERS.match(sentence)
  ]
  assert len(fragments) <= MAX_OPENERS, '\n'.join(fragments)


@pytest.mark.parametrize(
  'module, room',
  [
    ('r1jax', ''),
    ('r1jax.records', 'records'),
    ('r1jax.model.moe', 'model'),
    ('r1jax.workers.pool', 'workers'),
    ('r1jax.workers.sandbox.slot', 'workers.sandbox'),
  ],
)
def test_a_module_is_in_its_room(module, room):
  assert _room(module) == room


@pytest.mark.slow
def test_the_tests_that_are_left_out_are_there():
  """A test that was renamed would run, or never be missed."""
  files = {name.partition('::')[0] for name in exhaustive.IDS}
  command = [sys.executable, '-m', 'pytest', '-q', '--collect-only', '-m', '']
  listed = subprocess.run(
    [*command, *sorted(files)], cwd=ROOT, capture_output=True, text=True
  ).stdout.splitlines()
  assert set(listed) >= exhaustive.IDS
