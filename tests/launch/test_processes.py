"""The same command on several hosts: here processes with gloo collectives."""

import json
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from r1jax.checkpoints.storage import SafetensorsReader
from r1jax.train import metrics
from tests import compiler
from tests.conftest import ROOT
from tests.stages.conftest import command

pytestmark = pytest.mark.slow

_CONFIG = f'--config={ROOT}/tests/configs/small.py'
_SHARDED = '--config.mesh.fsdp=2', '--config.mesh.data=1'


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def _started(code: str | None, *args) -> list[str]:
  """Returns a command, before which a process runs some code."""
  if not code:
    return command(*args)
  lines = f'{code}\nfrom r1jax.cli import main\nmain.main()'
  return [sys.executable, '-c', lines, *args]


class _Run:
  """Processes of one command, each with `devices` devices.

  The flags `own` and the lines of Python `code` are those of single processes.
  """

  def __init__(
    self,
    env,
    workdir: Path,
    *args,
    name='train',
    config=_CONFIG,
    processes=2,
    devices=1,
    own=None,
    code=None,
  ):
    address = f'localhost:{_free_port()}'
    flags = (
      f'--xla_force_host_platform_device_count={devices} '
      + compiler.light_flags()
    )
    places = (
      [
        f'--coordinator={address}',
        f'--num_processes={processes}',
        f'--process_id={i}',
      ]
      for i in range(processes)
    )
    self.processes = [
      subprocess.Popen(
        _started(
          (code or {}).get(i),
          name,
          config,
          f'--workdir={workdir}',
          *(place if processes > 1 else ()),
          *args,
          *(own or {}).get(i, ()),
        ),
        env=env | {'XLA_FLAGS': flags},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i, place in enumerate(places)
    ]

  def printed(self) -> list[list[str]]:
    """Returns the results that each process prints, once all have ended."""
    outputs = [
      process.communicate(timeout=600)[0] for process in self.processes
    ]
    assert all(process.returncode == 0 for process in self.processes)
    return [
      [
        line
        for line in output.splitlines()
        if line and not line.startswith(('process ', '[Gloo]'))
      ]
      for output in outputs
    ]

  def ended(self, secs=600) -> list[tuple[int, str]]:
    """Returns the exit code and the last line of stderr of each process."""
    return [_ended(process, secs) for process in self.processes]

  def kill(self):
    for process in self.processes:
      process.kill()


def _ended(process: subprocess.Popen, secs: float) -> tuple[int, str]:
  errors = process.communicate(timeout=secs)[1].strip()
  return process.returncode, (errors.splitlines() or [''])[-1]


def _metrics(workdir: Path) -> list[dict]:
  lines = (workdir / 'rl' / 'metrics.jsonl').read_text().splitlines()
  return list(map(json.loads, lines))


def _assert_same_metrics(got: Path, want: Path):
  for ours, theirs in zip(_metrics(got), _metrics(want), strict=True):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def _weights(workdir: Path) -> dict[str, np.ndarray]:
  reader = SafetensorsReader(workdir / 'rl' / 'model.safetensors')
  return {name: reader.read(name) for name in reader.shapes}


@pytest.fixture(scope='module')
def uninterrupted(environment, tmp_path_factory) -> Path:
  """A finished run of two processes that share the weights."""
  workdir = tmp_path_factory.mktemp('pod') / 'run'
  run = _Run(environment, workdir, *_SHARDED)
  assert [code for code, _ in run.ended()] == [0, 0]
  return workdir


def test_two_processes_equal_one(environment, uninterrupted, tmp_path):
  one = _Run(environment, tmp_path / 'one', *_SHARDED, processes=1, devices=2)
  assert one.ended()[0][0] == 0
  _assert_same_metrics(uninterrupted, tmp_path / 'one')
  want = _weights(tmp_path / 'one')
  for name, value in _weights(uninterrupted).items():
    np.testing.assert_allclose(value, want[name], atol=1e-5)


def test_reward_models_of_a_pipeline_score_in_every_process(
  environment, tmp_path
):
  """Pre-training, reward models, DPO, RL on their scores, and a dataset that
  is sorted by them."""
  args = dict(
    name='pipeline', config=f'--config={ROOT}/tests/configs/small_judged.py'
  )
  evaluations = '--config.evaluations=("arithmetic",)'
  two = _Run(environment, tmp_path / 'two', evaluations, **args)
  assert [code for code, _ in two.ended()] == [0, 0]
  alone = args | dict(processes=1, devices=2)
  stages = '--config.stages=("base","helpful","safe","liked","reasoning")'
  one = _Run(environment, tmp_path / 'one', stages, evaluations, **alone)
  assert one.ended()[0][0] == 0
  _assert_same_metrics(tmp_path / 'two/reasoning', tmp_path / 'one/reasoning')
  table = (tmp_path / 'two/table.md').read_text()
  assert table == (tmp_path / 'one/table.md').read_text()
  # The last stage again, of the same weights.
  shutil.copytree(
    tmp_path / 'two', tmp_path / 'again', ignore=lambda *_: ['kept']
  )
  again = _Run(
    environment, tmp_path / 'again', evaluations, '--only=kept', **alone
  )
  assert again.ended()[0][0] == 0
  ours, theirs = (
    _kept_rows(tmp_path / name / 'kept') for name in ('two', 'again')
  )
  for a, b in zip(ours, theirs, strict=True):
    scores = [row['provenance'].pop('scores') for row in (a, b)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
  assert ours == theirs and ours


def _kept_rows(workdir: Path) -> list[dict]:
  text = (workdir / 'rejection_sampling' / 'accepted.jsonl').read_text()
  return list(map(json.loads, text.splitlines()))


def test_each_process_writes_its_own_part(uninterrupted):
  own = uninterrupted / 'rl' / 'processes' / '1' / 'metrics.jsonl'
  assert own.read_text() == (uninterrupted / 'rl' / 'metrics.jsonl').read_text()
  assert (uninterrupted / 'logs' / 'process_1.txt').read_text()
  assert not (uninterrupted / 'logs' / 'process_0.txt').exists()


def test_both_processes_know_the_times_of_both(uninterrupted):
  rl = uninterrupted / 'rl'
  first, second = (
    metrics.read(folder / 'performance.jsonl')
    for folder in (rl, rl / 'processes' / '1')
  )
  assert [line['step'] for line in first] == [1, 2, 3, 4, 5, 6]
  of_hosts = lambda line: {
    name: value for name, value in line.items() if name.startswith('host/')
  }
  for ours, theirs in zip(first, second, strict=True):
    assert of_hosts(ours) == of_hosts(theirs)
    for part in ('', 'rollout_', 'reward_', 'host_'):
      assert 0 < ours[f'host/{part}time_mean'] <= ours[f'host/{part}time_max']
      assert ours[f'host/{part}slowest'] in (0, 1)
    shares = [v for name, v in ours.items() if name.startswith('goodput/')]
    assert sum(shares) == pytest.approx(1)
    assert ours['perf/update_tokens_per_sec_per_chip'] > 0


# Advantages and packing of one host take a second more than those of another.
_SLOW = """
import time
from r1jax.data import sample_packing
pack = sample_packing.pack
sample_packing.pack = lambda *args: (time.sleep(1.0), pack(*args))[1]
"""


def test_a_slow_host_is_named(environment, tmp_path):
  # Each process predicts memory on a device of its own.
  args = *_SHARDED, '--config.model.remat=auto'
  run = _Run(environment, tmp_path / 'run', *args, code={1: _SLOW})
  outputs = [process.communicate(timeout=600) for process in run.processes]
  assert [process.returncode for process in run.processes] == [0, 0]
  assert re.search(
    r'rl: process 1 was the slowest host of steps \d to \d', outputs[0][1]
  )
  last = metrics.read(tmp_path / 'run/rl/performance.jsonl')[-1]
  assert last['host/slowest'] == last['host/host_slowest'] == 1
  assert last['host/host_time_max'] > 1


@pytest.mark.parametrize(
  'name, args', [('eval', ()), ('sample', ('--prompt=1+2', '--samples=3'))]
)
def test_two_processes_read_a_policy_as_one_does(
  environment, uninterrupted, name, args
):
  args = (*_SHARDED, *args)
  one = _Run(
    environment, uninterrupted, *args, name=name, processes=1, devices=2
  )
  two = _Run(environment, uninterrupted, *args, name=name)
  (want,), (first, second) = one.printed(), two.printed()
  assert first == want and not second


def _await(path: Path, run: _Run):
  deadline = time.monotonic() + 300
  while not path.exists():
    assert time.monotonic() < deadline
    assert all(process.poll() is None for process in run.processes)
    time.sleep(0.1)


def _assert_a_killed_run_resumes(environment, folder: Path, *flags):
  """Kills two processes after step 2; they leave the weights of a whole run."""
  whole = _Run(environment, folder / 'whole', *flags, devices=2)
  assert [code for code, _ in whole.ended()] == [0, 0]
  part = _Run(environment, folder / 'part', *flags, devices=2)
  _await(folder / 'part/rl/checkpoints/2/commit_success.txt', part)
  part.kill()
  part.ended(60)
  again = _Run(environment, folder / 'part', *flags, devices=2)
  assert [code for code, _ in again.ended()] == [0, 0]
  weights = 'rl/model.safetensors'
  want = (folder / 'whole' / weights).read_bytes()
  assert (folder / 'part' / weights).read_bytes() == want


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_ends_all_and_the_run_resumes_bit_equal(
  environment, uninterrupted, tmp_path, killed
):
  workdir = tmp_path / 'run'
  run = _Run(environment, workdir, *_SHARDED)
  _await(workdir / 'rl' / 'checkpoints' / '2' / 'commit_success.txt', run)
  run.processes[killed].kill()
  began = time.monotonic()
  code, line = run.ended(60)[1 - killed]
  assert time.monotonic() - began < 20
  assert code == 6
  assert line.startswith(f'r1jax: process {killed} has ended: it was killed')
  again = _Run(environment, workdir, *_SHARDED)
  assert [code for code, _ in again.ended()] == [0, 0]
  want = (uninterrupted / 'rl' / 'model.safetensors').read_bytes()
  assert (workdir / 'rl' / 'model.safetensors').read_bytes() == want
  assert _metrics(workdir) == _metrics(uninterrupted)


def test_all_processes_go_back_to_the_last_good_checkpoint(
  environment, uninterrupted, tmp_path
):
  """One bit of the newest one is wrong, in what the second process wrote."""
  workdir = tmp_path / 'run'
  shutil.copytree(uninterrupted, workdir)
  (workdir / 'rl' / 'model.safetensors').unlink()
  own = workdir / 'rl' / 'checkpoints' / '6' / 'state' / 'ocdbt.process_1' / 'd'
  broken = max(own.iterdir(), key=lambda path: path.stat().st_size)
  content = bytearray(broken.read_bytes())
  content[len(content) // 2] ^= 1
  broken.write_bytes(content)
  run = _Run(environment, workdir, *_SHARDED)
  errors = [process.communicate(timeout=600)[1] for process in run.processes]
  assert [process.returncode for process in run.processes] == [0, 0]
  assert f'{broken.name} has other bytes than were written' in errors[0]
  assert 'goes on from step 4' in errors[0]
  want = (uninterrupted / 'rl' / 'model.safetensors').read_bytes()
  assert (workdir / 'rl' / 'model.safetensors').read_bytes() == want
  assert _metrics(workdir) == _metrics(uninterrupted)
  assert (workdir / 'rl' / 'broken_checkpoints' / '6').is_dir()


_ONE, _TWO = dict(processes=1, devices=2), dict(processes=2, devices=1)


@pytest.mark.parametrize(
  'before, after', [(_TWO, _ONE), (_ONE, _TWO)], ids=['2 to 1', '1 to 2']
)
def test_a_run_goes_on_in_another_number_of_processes(
  environment, uninterrupted, tmp_path, before, after
):
  workdir = tmp_path / 'run'
  run = _Run(environment, workdir, *_SHARDED, **before)
  _await(workdir / 'rl' / 'checkpoints' / '2' / 'commit_success.txt', run)
  run.kill()
  run.ended(60)
  again = _Run(environment, workdir, *_SHARDED, **after)
  assert {code for code, _ in again.ended()} == {0}
  want = _weights(uninterrupted)
  for name, value in _weights(workdir).items():
    np.testing.assert_allclose(value, want[name], atol=1e-5)


def test_a_stopped_process_ends_the_others(environment, tmp_path):
  run = _Run(environment, tmp_path / 'run', *_SHARDED)
  _await(tmp_path / 'run' / 'pretrain', run)
  run.processes[1].send_signal(signal.SIGSTOP)
  began = time.monotonic()
  code, line = _ended(run.processes[0], 60)
  assert time.monotonic() - began < 25
  assert code == 6 and 'process 1 has ended: it has said nothing' in line
  run.kill()
  run.processes[1].communicate(timeout=30)


def test_sigterm_to_one_saves_a_checkpoint_of_all(
  environment, uninterrupted, tmp_path
):
  workdir = tmp_path / 'run'
  run = _Run(environment, workdir, *_SHARDED)
  _await(workdir / 'rl' / 'checkpoints' / '2' / 'commit_success.txt', run)
  run.processes[1].send_signal(signal.SIGTERM)
  for code, line in run.ended(60):
    assert code == 143
    assert re.search(r'the checkpoint of step \d is kept', line)
  again = _Run(environment, workdir, *_SHARDED)
  assert [code for code, _ in again.ended()] == [0, 0]
  want = (uninterrupted / 'rl' / 'model.safetensors').read_bytes()
  assert (workdir / 'rl' / 'model.safetensors').read_bytes() == want


@pytest.mark.parametrize(
  'args, error',
  [
    (
      ['--config.seed=1'],
      'processes: configs differ: seed is .*0.* in process 0 and .*1.* in '
      'process 1',
    ),
    (['--config.rl.group_size=1'], r'config: rl\.group_size'),
    (['--config.rl.nothing=1'], 'unknown key rl.nothing'),
    (['--config.init=nowhere'], "configs differ: init is .* 'nowhere'|nowhere"),
  ],
)
def test_what_differs_between_hosts_is_said_by_each(
  environment, tmp_path, args, error
):
  run = _Run(environment, tmp_path / 'run', own={1: args})
  for code, line in run.ended(120):
    assert code == 2
    assert re.search(error, line), line
  assert not (tmp_path / 'run').exists()


def test_folders_of_their_own_are_refused(environment, tmp_path):
  own = {1: [f'--workdir={tmp_path}/other']}
  run = _Run(environment, tmp_path / 'run', own=own)
  for code, line in run.ended(120):
    assert code == 2
    assert 'is not the folder that process 0 writes to' in line


@pytest.mark.parametrize(
  'process, error',
  [
    (1, 'processes: there is no coordinator at localhost:'),
    (0, 'processes: not all of the 2 processes have come within 2 s'),
  ],
)
def test_processes_that_are_not_there_are_named(
  environment, tmp_path, process, error
):
  places = [
    f'--coordinator=localhost:{_free_port()}',
    '--num_processes=2',
    f'--process_id={process}',
    '--initialization_timeout=2',
  ]
  ended = subprocess.run(
    command('train', _CONFIG, f'--workdir={tmp_path}/run', *places),
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert ended.returncode == 2
  (line,) = ended.stderr.strip().splitlines()
  assert line.startswith(f'r1jax: {error}')
  assert not os.path.exists(tmp_path / 'run')
