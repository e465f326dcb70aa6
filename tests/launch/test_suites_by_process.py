"""Suites are measured by several processes as by one."""

import json
import subprocess

import pyarrow.parquet as pq
import pytest

from tests import compiler
from tests.conftest import ROOT
from tests.launch.test_processes import _free_port
from tests.stages.conftest import SMALL, command

pytestmark = pytest.mark.slow


def _measured(environment, out, processes: int, scope: str):
  """Returns the completions and the number of them that each call sampled."""
  port = _free_port()
  places = [
    (
      f'--coordinator=localhost:{port}',
      f'--num_processes={processes}',
      f'--process_id={i}',
    )
    for i in range(processes)
  ]
  flags = (
    f'--xla_force_host_platform_device_count={2 // processes} '
    + compiler.light_flags()
  )
  started = [
    subprocess.Popen(
      command(
        'eval',
        SMALL,
        '--suite=arithmetic',
        f'--out={out}',
        '--config.init=random',
        '--config.eval.num_problems=6',
        '--config.eval.num_samples=2',
        '--config.model.dtype=float32',
        '--config.mesh.data=2',
        f'--config.rollout.scope={scope}',
        *(place if processes > 1 else ()),
      ),
      env=environment | {'XLA_FLAGS': flags},
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for place in places
  ]
  for process in started:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
  speed = json.loads((out / 'results.json').read_text())['speed']
  table = pq.read_table(out / 'arithmetic/completions.parquet')
  return table.to_pylist(), speed['completions']


@pytest.mark.parametrize('scope', ['global', 'host'])
def test_two_processes_leave_the_completions_of_one(
  environment, tmp_path, scope
):
  want, _ = _measured(environment, tmp_path / 'one', 1, 'global')
  got, sampled = _measured(environment, tmp_path / scope, 2, scope)
  assert got == want and len(want) == sampled == 12
  # There is nothing left to sample for the same command.
  again, sampled = _measured(environment, tmp_path / scope, 2, scope)
  assert again == want and sampled == 0
