"""Commands that a signal or a full disk ends, in processes of their own."""

import re
import resource
import signal
import subprocess
import time

import pytest

from r1jax.checkpoints.storage import SafetensorsReader
from tests.conftest import ROOT
from tests.stages.conftest import command

pytestmark = pytest.mark.slow

_TOY = f'--config={ROOT}/tests/runs/toy.py'


def _heed_ctrl_c():
  """Ends what a shell does for commands in the background."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def _started(environment, workdir, *args, **options):
  return subprocess.Popen(
    command('train', _TOY, f'--workdir={workdir}', *args),
    env=environment,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **{'preexec_fn': _heed_ctrl_c} | options,
  )


def _wait_for_line(process, start: str):
  for line in process.stdout:
    if line.startswith(start):
      return
  raise AssertionError(f'no line {start!r}: {process.stderr.read()}')


def _wait_for(path, process):
  while not path.exists():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.02)


def _ended(process, code: int) -> str:
  """The one line that it prints to stderr."""
  _, stderr = process.communicate(timeout=240)
  assert process.returncode == code, stderr
  # A busy machine may make XLA say that a compilation takes long.
  (line,) = (
    each
    for each in stderr.split('\n')
    if each
    and not re.match(r'E\d+ .*slow_operation|\*+$|\[Compiling module', each)
  )
  assert line.startswith('r1jax: ')
  return line


def test_ctrl_c_in_a_compilation_ends_in_one_line(environment, tmp_path):
  """XLA needs minutes for this program; nothing crashes, and nothing hangs."""
  process = _started(
    environment, tmp_path / 'run', '--config.toy.compiled_ops=2000'
  )
  _wait_for_line(process, 'toy begins')
  time.sleep(3)
  process.send_signal(signal.SIGINT)
  began = time.monotonic()
  line = _ended(process, 130)
  assert 'interrupted' in line and time.monotonic() - began < 60


@pytest.mark.parametrize('delay', [0.0, 0.3, 1.0])
def test_ctrl_c_before_anything_is_saved_says_so(environment, tmp_path, delay):
  process = _started(
    environment, tmp_path / 'run', '--config.toy.save_steps=99'
  )
  _wait_for_line(process, 'toy begins')
  time.sleep(delay)
  process.send_signal(signal.SIGINT)
  assert 'no checkpoint yet' in _ended(process, 130)


@pytest.mark.parametrize('times', [1, 2])
def test_sigterm_saves_one_checkpoint_and_the_same_command_goes_on(
  environment, tmp_path, times
):
  workdir = tmp_path / 'run'
  process = _started(environment, workdir, '--config.toy.save_steps=30')
  metrics = workdir / 'toy/metrics.jsonl'
  _wait_for(metrics, process)
  while metrics.read_text().count('\n') < 3:
    time.sleep(0.02)
  for _ in range(times):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
  line = _ended(process, 143)
  (saved,) = (workdir / 'toy/checkpoints').iterdir()
  assert f'the checkpoint of step {saved.name} is kept' in line
  done = subprocess.run(
    command(
      'train', _TOY, f'--workdir={workdir}', '--config.toy.save_steps=30'
    ),
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f'goes on after step {saved.name}' in done.stdout
  weights = SafetensorsReader(workdir / 'toy/model.safetensors')
  assert weights.read('w').tolist() == [sum(range(41))]


def test_sigterm_before_training_ends_at_once(environment, tmp_path):
  process = _started(environment, tmp_path / 'run')
  time.sleep(2)  # It imports, or builds the model.
  process.send_signal(signal.SIGTERM)
  assert 'terminated' in _ended(process, 143)


def test_a_full_disk_is_one_line(environment, tmp_path):
  """A file may have one megabyte, and a checkpoint needs eight."""
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
  process = _started(
    environment,
    tmp_path / 'run',
    '--config.toy.width=2000000',
    preexec_fn=limit,
  )
  line = _ended(process, 5)
  assert f'toy: the disk of {tmp_path}/run/toy is full' in line
  assert 'there is no checkpoint yet' in line


def test_a_disk_that_metrics_fill_ends_the_run_too(environment, tmp_path):
  """A file may have 20 KB: TensorBoard's is the first that has them."""
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
  process = _started(
    environment,
    tmp_path / 'run',
    '--config.toy.step_secs=0.0',
    '--config.toy.num_steps=4000',
    '--config.toy.save_steps=4000',
    preexec_fn=limit,
  )
  line = _ended(process, 5)
  assert f'toy: the disk of {tmp_path}/run/toy is full' in line
