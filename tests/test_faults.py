"""The faults of experiments/faults: the fast part of its list."""

import importlib
import sys

import pytest

from tests.conftest import ROOT

_FOLDER = ROOT / 'experiments' / 'faults'


@pytest.fixture(scope='module')
def faults():
  """The module of the experiment."""
  sys.path.insert(0, str(_FOLDER))
  try:
    yield importlib.import_module('run')
  finally:
    sys.path.remove(str(_FOLDER))
    sys.modules.pop('run', None)


@pytest.fixture(scope='module')
def bench(faults, environment, tmp_path_factory):
  """Commands with the tests' compiled programs, and an uninterrupted run."""
  bench = faults.Bench(tmp_path_factory.mktemp('faults'))
  bench.env = environment | {'PYTHONPATH': str(ROOT)}
  assert bench.train(bench.whole).code == 0
  return bench


def test_the_tests_that_the_list_names_are_there(faults):
  named = [check for *_, check in faults.ROWS if isinstance(check, str)]
  for name in ' '.join(named).split():
    path, _, function = name.partition('::')
    assert (ROOT / path).exists(), path
    assert not function or f'def {function}(' in (ROOT / path).read_text()


def test_the_results_are_those_of_the_list_and_none_fails(faults):
  rows = faults.read_results()
  assert [row['fault'] for row in rows] == [row[0] for row in faults.ROWS]
  assert {row['verdict'] for row in rows} <= {'holds', 'not run'}


@pytest.mark.slow
@pytest.mark.parametrize(
  'phase, count',
  [
    ('rollout', 30),
    ('position', 2),
    ('files', 2),
    ('rename', 5),
    ('collection', 1),
  ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
  bench, faults, phase, count
):
  folder = bench.fresh(f'killed_{phase}')
  ended = bench.train(folder, fault=f'kill:{phase}:{count}')
  assert ended.code == -9, ended.output
  assert 'to the same bytes' in bench.resumed(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
  'fault', ['bit flip in the arrays of a checkpoint', 'full disk during a save']
)
def test_a_fault_of_the_list_holds(bench, faults, fault):
  (check,) = (row[-1] for row in faults.ROWS if row[0] == fault)
  assert 'same bytes' in check(bench)
