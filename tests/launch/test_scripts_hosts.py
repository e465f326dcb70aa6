"""The scripts of launch/ with hosts: processes here, each in its own folder.

Stand-ins for gcloud, uv, sbatch, srun, scancel and xpk run what a host would
run, with what tells it its place.
"""

import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from r1jax.checkpoints.storage import SafetensorsReader
from tests.conftest import ROOT
from tests.launch.test_scripts import TPU, launch, tool

pytestmark = pytest.mark.slow

_RUN = (
  'train',
  f'--config={ROOT}/tests/configs/small.py',
  '--config.stages=("pretrain",)',
  '--config.pretrain.max_steps=40',
  '--config.pretrain.save_steps=10',
)
_SHARDED = ('--config.mesh.fsdp=2', '--config.mesh.data=1')
_PACKAGE = f'exec {sys.executable} -m r1jax.cli.main "$@"'


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def _await(path: Path):
  deadline = time.monotonic() + 400
  while not path.exists():
    assert time.monotonic() < deadline, path
    time.sleep(0.1)


@pytest.fixture
def tools(tmp_path, environment):
  """A folder of stand-ins that comes first in PATH; the environment with it."""
  folder = tmp_path / 'tools'
  folder.mkdir()
  environment = environment | {
    'PATH': f'{folder}:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    # Not that of `uninterrupted`, which keeps the output of this config.
    'R1JAX_CACHE': str(tmp_path / 'cache'),
  }
  return folder, environment


@pytest.fixture(scope='module')
def uninterrupted(environment, tmp_path_factory):
  """The weights of one process with two devices that ran to the end."""
  env = environment | {
    'XLA_FLAGS': environment['XLA_FLAGS']
    + ' --xla_force_host_platform_device_count=2'
  }
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  launch('host', 'run', '--', *_RUN, *_SHARDED, f'--workdir={workdir}', env=env)
  return workdir


def _assert_same_weights(got: Path, want: Path):
  got, want = (
    SafetensorsReader(path / 'pretrain/model.safetensors')
    for path in (got, want)
  )
  for name in want.shapes:
    np.testing.assert_allclose(got.read(name), want.read(name), atol=1e-5)


def test_a_slice_is_preempted_and_resumed(tools, uninterrupted, tmp_path):
  """Two hosts die within a run; two new ones go on from its checkpoint."""
  folder, env = tools
  hosts, state = tmp_path / 'hosts', tmp_path / 'state'
  state.write_text('')
  tool(
    folder,
    'uv',
    f"""
case $1 in
venv) mkdir -p .venv/bin;;
pip) printf '#!/bin/bash\\n{_PACKAGE}\\n' >.venv/bin/r1jax
  chmod +x .venv/bin/r1jax;;
esac""",
  )
  # A host imports the copy that was installed on it.
  tool(
    folder,
    'gcloud',
    f"""
set -e
case $4 in
create) mkdir -p {hosts}/0 {hosts}/1; echo ACTIVE >{state};;
describe) [ -s {state} ] || exit 1; cat {state};;
delete) rm -r {hosts} {state};;
scp) for i in 0 1; do cp "$5" {hosts}/$i/; done;;
ssh)
  for argument in "$@"; do
    case $argument in --command=*) script=${{argument#--command=}};; esac
  done
  for i in 0 1; do
    HOME={hosts}/$i
    export HOME JAX_COORDINATOR_ADDRESS=localhost:$PORT JAX_NUM_PROCESSES=2
    (cd; PYTHONPATH= JAX_PROCESS_ID=$i bash -c "$script") || code=$?
  done
  exit ${{code:-0}};;
esac""",
  )
  workdir = tmp_path / 'run'
  resume = (
    *('resume', *TPU, '--type=v6e-16', '--spot', '--', *_RUN, *_SHARDED),
    f'--workdir={workdir}',
  )
  launch('tpu', *resume, env=env | {'PORT': str(_free_port())})
  # A second run on these hosts is refused, and the first goes on.
  error = launch('tpu', *resume, code=75, env=env | {'PORT': '1'})
  assert error.endswith('has ended with exit code 75\n')
  _await(workdir / 'pretrain/checkpoints/10/commit_success.txt')
  for host in hosts.iterdir():
    os.kill(int((host / 'r1jax/run.pid').read_text()), 9)
  state.write_text('SUSPENDED')
  for host in hosts.iterdir():
    _await_end(host)
  launch('tpu', *resume, env=env | {'PORT': str(_free_port())})
  for host in hosts.iterdir():
    assert _await_end(host) == 'ended with exit code 0'
  log = launch('tpu', 'logs', *TPU, env=env)
  assert log.count('ended with exit code 0') == 2
  assert 'goes on after step' in log
  _assert_same_weights(workdir, uninterrupted)


def _await_end(host: Path) -> str:
  log, deadline = host / 'r1jax/run.log', time.monotonic() + 400
  while 'ended with' not in log.read_text():
    assert time.monotonic() < deadline, log.read_text()
    time.sleep(0.1)
  return log.read_text().splitlines()[-1]


@pytest.fixture
def slurm(tools, tmp_path):
  """A checkout, and an environment whose Slurm is one node of two tasks."""
  folder, env = tools
  checkout = tmp_path / 'checkout'
  shutil.copytree(ROOT / 'launch', checkout / 'launch')
  (checkout / '.venv/bin').mkdir(parents=True)
  tool(checkout / '.venv/bin', 'r1jax', _PACKAGE)
  # The job is queued again where the batch script has asked for it.
  tool(
    folder,
    'sbatch',
    f"""
cat >{folder}/job.sh
export SLURM_JOB_ID=$((4096 + $RANDOM)) SLURM_RESTART_COUNT=0
while true; do
  rm -f {folder}/again
  bash {folder}/job.sh; code=$?
  [ -e {folder}/again ] || exit $code
  SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
done""",
  )
  tool(folder, 'scontrol', f'touch {folder}/again')
  tool(
    folder,
    'srun',
    f"""
shift  # --kill-on-bad-exit=0
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2
export SLURM_STEP_NUM_NODES=1
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
  pids="$pids $!"
done
echo $pids >{folder}/tasks
for pid in $pids; do wait $pid || code=$?; done
exit ${{code:-0}}""",
  )
  tool(folder, 'scancel', f'kill -TERM $(cat {folder}/tasks)')
  return checkout, env


def test_a_job_that_meets_its_time_limit_is_queued_again(
  slurm, tools, uninterrupted, tmp_path
):
  checkout, env = slurm
  workdir, folder = tmp_path / 'run', tools[0]
  job = _Job(checkout, env, workdir)
  _await(workdir / 'pretrain/checkpoints/10/commit_success.txt')
  job.terminate_tasks(folder)
  assert job.code() == 0
  assert (folder / 'scontrol.log').read_text().startswith('requeue ')
  assert 'goes on after step' in job.printed
  _assert_same_weights(workdir, uninterrupted)


def test_a_job_that_is_stopped_is_not_queued_again(slurm, tools, tmp_path):
  checkout, env = slurm
  workdir = tmp_path / 'run'
  job = _Job(checkout, env, workdir)
  _await(workdir / 'pretrain/checkpoints/10/commit_success.txt')
  launch('slurm', 'stop', root=checkout, env=env)
  assert job.code() == 143
  assert not (tools[0] / 'scontrol.log').exists()


class _Job:
  """A job of two tasks, one device each."""

  def __init__(self, checkout: Path, env: dict, workdir: Path):
    self._process = subprocess.Popen(
      [
        *(sys.executable, str(checkout / 'launch/slurm.py'), 'run'),
        *('--gpus=2', '--', *_RUN, *_SHARDED, f'--workdir={workdir}'),
      ],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def terminate_tasks(self, folder: Path):
    for pid in (folder / 'tasks').read_text().split():
      os.kill(int(pid), 15)

  def code(self) -> int:
    self.printed = self._process.communicate(timeout=500)[0]
    return self._process.returncode


def test_a_workload_runs_its_command(tools, tmp_path):
  folder, env = tools
  tool(folder, 'pip', '')
  tool(folder, 'r1jax', _PACKAGE)
  # XPK 1.16 writes a manifest that waits for a subshell of the command.
  text = 'command="${@: -1}"; bash -c "(${command#--command=}) & wait \\$!"'
  tool(folder, 'xpk', text)
  workdir = tmp_path / 'run'
  launch(
    *('gke', 'run', '--cluster=c', '--name=n', '--type=v6e-1', '--', *_RUN),
    f'--workdir={workdir}',
    env=env,
  )
  assert (folder / 'pip.log').read_text().startswith('install ')
  assert list(workdir.glob('pretrain/*.safetensors'))


def test_a_host_goes_on_from_a_copy_of_an_earlier_session(
  environment, uninterrupted, tmp_path
):
  workdir = tmp_path / 'copy'
  said = launch(
    *('host', 'run', '--hours=8.5', f'--earlier={uninterrupted}', '--', *_RUN),
    *(*_SHARDED, f'--workdir={workdir}'),
    env=environment
    | {
      'XLA_FLAGS': environment['XLA_FLAGS']
      + ' --xla_force_host_platform_device_count=2'
    },
  )
  assert f'{workdir}/pretrain is finished already' in said
