"""Processes that share the scoring hold the same whole."""

import json
import os
import socket
import subprocess
import sys

import pytest

from r1jax.records import ScoredRollout
from r1jax.rewards import multihost
from tests.conftest import ROOT
from tests.rewards import multihost_process as one


def _start(address: str, process: int):
  env = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tests.rewards.multihost_process',
      address,
      '2',
      str(process),
    ],
    env=env | {'JAX_PLATFORMS': 'cpu'},
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def _output(process) -> dict:
  out, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_score_half_each_and_hold_the_same_whole():
  """Also where one has nothing to score, and where one fails."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  first, second = map(_output, [_start(address, process) for process in (0, 1)])
  assert first.pop('mine') == [0, 2, 4] and second.pop('mine') == [1, 3]
  want = one.as_json(
    ScoredRollout.concatenate(list(map(one.graded, range(one.GROUPS))))
  )
  for output in (first, second):
    assert output['whole'] == output['after'] == want
    assert output['first'] == one.as_json(one.graded(0))
  own = 'ValueError: nobody grades {}'
  other = (
    'RewardError: reward: process {} could not score its share: '
    'ValueError: nobody grades {}'
  )
  assert first['failure of 0'] == own.format(0)
  assert second['failure of 1'] == own.format(1)
  assert second['failure of 0'] == other.format(0, 0)
  assert first['failure of 1'] == other.format(1, 1)


def test_one_process_scores_all():
  assert all(map(multihost.is_local, range(5)))
  whole = one.together(range(5), range(5))
  assert whole['verdicts'] == [f'verdict {n}' for n in range(15)]
