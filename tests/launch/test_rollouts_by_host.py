"""Runs whose processes sample on their own devices equal those that decode together."""

import pytest

from tests.launch.test_processes import (
  _assert_a_killed_run_resumes,
  _assert_same_metrics,
  _Run,
)

pytestmark = pytest.mark.slow

# All groups of a step are completed: else the choice depends on the hosts.
_STEPS = (
  '--config.rl.max_steps=3',
  '--config.rl.oversample=1.0',
  '--config.rl.prompts_per_step=8',
  '--config.mesh.fsdp=2',
  '--config.mesh.data=2',
)
_BY_HOST = (*_STEPS, '--config.rollout.scope=host')


@pytest.fixture(scope='module')
def together(environment, tmp_path_factory):
  """A finished run of one process, which decodes on the whole mesh."""
  workdir = tmp_path_factory.mktemp('hosts') / 'one'
  one = _Run(environment, workdir, *_STEPS, processes=1, devices=4)
  assert one.ended()[0][0] == 0
  return workdir


@pytest.mark.parametrize(
  'processes, devices, replica_hosts', [(2, 2, 1), (4, 1, 1), (4, 1, 2)]
)
def test_rollouts_by_host_equal_those_of_one_process(
  environment, together, tmp_path, processes, devices, replica_hosts
):
  run = _Run(
    environment,
    tmp_path / 'run',
    *_BY_HOST,
    f'--config.rollout.replica_hosts={replica_hosts}',
    processes=processes,
    devices=devices,
  )
  assert [code for code, _ in run.ended()] == [0] * processes
  _assert_same_metrics(tmp_path / 'run', together)


def test_partial_rollouts_by_host_resume_bit_equal(environment, tmp_path):
  """A step leaves groups unfinished, whose hosts the known lengths decide."""
  flags = (
    *_BY_HOST,
    '--config.rl.max_steps=4',
    '--config.rl.oversample=1.5',
    '--config.rl.save_steps=1',
  )
  _assert_a_killed_run_resumes(environment, tmp_path, *flags)
