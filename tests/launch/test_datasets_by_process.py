"""Datasets that several processes sample together equal that of one process."""

import base64
from collections.abc import Callable
import json
from pathlib import Path
import re
import shutil
import signal
import time

import numpy as np
import pytest

from r1jax.train import metrics
from tests.conftest import ROOT
from tests.launch.test_processes import _Run
from tests.stages.conftest import run as run_alone

pytestmark = pytest.mark.slow

_SMALL = f'--config={ROOT}/tests/configs/small.py'
_VOCABULARY = '--config.model.vocab_size=106'  # Every id has a text.
_REJECTION_SAMPLING = (
  _VOCABULARY,
  '--config.stages=("rejection_sampling",)',
  '--config.rl.max_new_tokens=60',
  '--config.rejection_sampling.num_prompts=14',
  '--config.rejection_sampling.num_samples=4',
  '--config.rejection_sampling.prompts_per_chunk=5',  # Four in the last one.
  '--config.rejection_sampling.require_correct=False',
  '--config.rejection_sampling.require_format=False',
  '--config.rejection_sampling.top_logprobs=4',
)
_LABEL_STEPS = (
  _VOCABULARY,
  '--config.stages=("label_steps",)',
  '--config.rl.max_new_tokens=60',
  '--config.label_steps.num_prompts=10',
  '--config.label_steps.num_samples=3',
  '--config.label_steps.num_continuations=2',
  '--config.label_steps.prompts_per_chunk=4',
)
_STAGES = {
  'rejection_sampling': (_REJECTION_SAMPLING, 'accepted.jsonl'),
  'label_steps': (_LABEL_STEPS, 'steps.jsonl'),
}
_MESH = '--config.mesh.fsdp=2', '--config.mesh.data=-1'
_BY_HOST = *_MESH, '--config.rollout.scope=host'
_SCOPES = {
  'global': _MESH,
  'host': _BY_HOST,
  'two hosts': (*_BY_HOST, '--config.rollout.replica_hosts=2'),
}

# A process writes how many answers it grades, and how many it samples.
_COUNT = """
from r1jax.graders import dispatch
from r1jax.rollout.session import Session

def counted(name, number, function):
  def call(*args, **kwargs):
    with open('{folder}/' + name, 'a') as file:
      print(number(*args), file=file)
    return function(*args, **kwargs)
  return call

dispatch.verdicts = counted('graded', len, dispatch.verdicts)
Session.submit = counted('sampled', lambda *_: 1, Session.submit)
"""
# Chunks take so long that the second one is interrupted.
_SLOW = """
import time
from r1jax.stages.rejection_sampling import RejectionSampler
make_rows = RejectionSampler.make_rows
RejectionSampler.make_rows = lambda *args: (time.sleep(3), make_rows(*args))[1]
"""
_BROKEN_GRADER = """
from r1jax.graders import dispatch
def verdicts(items):
  raise RuntimeError('it broke')
dispatch.verdicts = verdicts
"""
_BROKEN_SAMPLER = """
from r1jax.rollout import continuation
def generate(session, requests):
  raise RuntimeError('it broke')
continuation.generate = generate
"""
_FULL_DISK = """
import errno, os
from r1jax.stages import dataset_stage
append = dataset_stage.append
def full(file, rows, done, counts):
  if done > 5:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  append(file, rows, done, counts)
dataset_stage.append = full
"""


@pytest.fixture(scope='module')
def base(environment, tmp_path_factory) -> str:
  """The flag of weights to sample from."""
  workdir = tmp_path_factory.mktemp('base') / 'run'
  flags = '--config.stages=("pretrain",)', _VOCABULARY
  run_alone(environment, 'train', _SMALL, f'--workdir={workdir}', *flags)
  return f'--config.init={workdir}/pretrain/model.safetensors'


@pytest.fixture(scope='module')
def finished(environment, base, tmp_path_factory) -> Callable[..., Path]:
  """Returns the folder of the run of a stage, and of its counts."""
  folders: dict[tuple, Path] = {}

  def folder(
    stage: str, scope: str = 'global', processes: int = 1, devices: int = 2
  ) -> Path:
    key = stage, scope, processes, devices
    if key not in folders:
      place = tmp_path_factory.mktemp(stage)
      counts = [place / f'counts_{i}' for i in range(processes)]
      for each in counts:
        each.mkdir()
      run = _Run(
        environment,
        place / 'run',
        base,
        *_STAGES[stage][0],
        *_SCOPES[scope],
        processes=processes,
        devices=devices,
        code={i: _COUNT.format(folder=each) for i, each in enumerate(counts)},
      )
      assert [code for code, _ in run.ended()] == [0] * processes
      folders[key] = place
    return folders[key]

  return folder


def _teachers(rows: list[dict]) -> list[np.ndarray]:
  """Takes the top log-probabilities out of rows."""
  return [
    np.frombuffer(base64.b64decode(row.pop('teacher')['logp']), '<f4')
    for row in rows
  ]


def _rows(path: Path) -> list[dict]:
  return list(map(json.loads, path.read_text().splitlines()))


@pytest.mark.parametrize(
  'stage, scope, processes',
  [
    ('rejection_sampling', 'global', 2),
    ('rejection_sampling', 'host', 2),
    ('rejection_sampling', 'two hosts', 4),
    ('label_steps', 'global', 2),
    ('label_steps', 'host', 2),
  ],
)
def test_several_processes_write_the_dataset_of_one(
  finished, stage, scope, processes
):
  """The bytes are the same if all processes decode together.

  A host that decodes alone has other sequences in its batch, which rounds
  log-probabilities otherwise.
  """
  want = finished(stage, devices=processes) / 'run' / stage
  got = finished(stage, scope, processes, devices=1) / 'run' / stage
  # Only the first process writes, and nothing is left over.
  name = _STAGES[stage][1]
  assert {path.name for path in got.iterdir()} == {name, 'report.json'}
  assert (got / 'report.json').read_bytes() == (
    want / 'report.json'
  ).read_bytes()
  ours, theirs = _rows(got / name), _rows(want / name)
  assert len(ours) > 10
  if scope == 'global':
    assert (got / name).read_bytes() == (want / name).read_bytes()
  if stage == 'rejection_sampling':
    for a, b in zip(_teachers(ours), _teachers(theirs), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
  assert ours == theirs


@pytest.mark.parametrize('stage', _STAGES)
@pytest.mark.parametrize('scope', ['global', 'host'])
def test_each_process_does_its_share(finished, stage, scope):
  def total(name: str, folder: Path) -> int:
    return sum(map(int, (folder / name).read_text().split()))

  alone = finished(stage) / 'counts_0'
  place = finished(stage, scope, 2, devices=1)
  both = [place / 'counts_0', place / 'counts_1']
  graded = [total('graded', folder) for folder in both]
  assert sum(graded) == total('graded', alone)
  sampled = [total('sampled', folder) for folder in both]
  if scope == 'global':  # Every process decodes all of them.
    assert sampled == [total('sampled', alone)] * 2
  else:
    assert sum(sampled) == total('sampled', alone)
  for parts in (graded, sampled):
    assert min(parts) > sum(parts) / 4


def _await_chunk(workdir: Path, run: _Run):
  """Waits until the rows of the first chunk are on the disk."""
  partial = workdir / 'rejection_sampling/partial.jsonl'
  deadline = time.monotonic() + 300
  while not (partial.exists() and '"done": 5' in partial.read_text()):
    assert time.monotonic() < deadline
    assert all(process.poll() is None for process in run.processes)
    time.sleep(0.05)


def _assert_goes_on(environment, base, workdir: Path, want: Path, **sizes):
  """Runs the same command to its end, and compares what it leaves."""
  run = _Run(environment, workdir, base, *_REJECTION_SAMPLING, *_MESH, **sizes)
  outputs = [process.communicate(timeout=600) for process in run.processes]
  assert {process.returncode for process in run.processes} == {0}, outputs
  assert 'rejection_sampling goes on after prompt' in outputs[0][0]
  for name in ('accepted.jsonl', 'report.json'):
    name = f'rejection_sampling/{name}'
    assert (workdir / name).read_bytes() == (want / name).read_bytes(), name
  assert not (workdir / 'rejection_sampling/partial.jsonl').exists()


def test_a_killed_process_ends_all_and_the_same_command_goes_on(
  environment, base, finished, tmp_path
):
  want, workdir = finished('rejection_sampling') / 'run', tmp_path / 'run'
  slow = {0: _SLOW, 1: _SLOW}
  run = _Run(
    environment, workdir, base, *_REJECTION_SAMPLING, *_MESH, code=slow
  )
  _await_chunk(workdir, run)
  run.processes[0].kill()  # The one that writes.
  code, line = run.ended(60)[1]
  assert code == 6
  assert line.startswith('r1jax: process 0 has ended: it was killed')
  _assert_goes_on(environment, base, workdir, want)


def test_sigterm_to_one_ends_all_after_the_chunk(
  environment, base, finished, tmp_path
):
  """One process goes on where two have ended."""
  want, workdir = finished('rejection_sampling') / 'run', tmp_path / 'run'
  slow = {0: _SLOW, 1: _SLOW}
  run = _Run(
    environment, workdir, base, *_REJECTION_SAMPLING, *_MESH, code=slow
  )
  _await_chunk(workdir, run)
  run.processes[1].send_signal(signal.SIGTERM)
  for code, line in run.ended(60):
    assert code == 143
    assert re.search(r'the rows of (5|10) of 14 prompts are kept', line), line
  _assert_goes_on(environment, base, workdir, want, processes=1, devices=2)


def test_a_full_disk_of_the_first_process_ends_all(environment, base, tmp_path):
  workdir, code = tmp_path / 'run', {0: _FULL_DISK}
  run = _Run(
    environment, workdir, base, *_REJECTION_SAMPLING, *_MESH, code=code
  )
  for code, line in run.ended():
    assert code == 5
    assert re.search(
      'is full; the rows of 5 of 14 prompts are kept, and the same', line
    ), line
  assert not list(workdir.rglob('accepted.jsonl'))


@pytest.mark.parametrize(
  'scope, broken',
  [('global', _BROKEN_GRADER), ('host', _BROKEN_SAMPLER)],
  ids=['grader', 'sampler'],
)
def test_an_error_in_one_process_ends_all(
  environment, base, tmp_path, scope, broken
):
  run = _Run(
    environment,
    tmp_path / 'run',
    base,
    *_REJECTION_SAMPLING,
    *_SCOPES[scope],
    code={1: broken},
  )
  first, second = run.ended()
  assert first == (1, 'r1jax: process 1: RuntimeError: it broke')
  assert second == (1, 'r1jax: RuntimeError: it broke')
  assert not list((tmp_path / 'run').rglob('accepted.jsonl'))


def _run_twice(
  environment, tmp_path, config: str, copied, flags, only=()
) -> list[Path]:
  """Runs a pipeline in two processes, and in one from some of its stages.

  Args:
    environment: The environment of the processes.
    tmp_path: A folder for both.
    config: Name of the pipeline's file.
    copied: The stages that the one process takes from the two.
    flags: Flags of both.
    only: Flags of the one process.
  """
  two, one = tmp_path / 'two', tmp_path / 'one'
  options = dict(
    name='pipeline', config=f'--config={ROOT}/tests/configs/{config}.py'
  )
  flags = (*flags, '--config.evaluations=()')
  run = _Run(environment, two, *flags, **options)
  assert [code for code, _ in run.ended()] == [0, 0]
  for name in copied:
    shutil.copytree(two / name, one / name)
  alone = _Run(
    environment, one, *flags, *only, **options, processes=1, devices=2
  )
  assert alone.ended()[0][0] == 0
  return [two, one]


def test_a_pipeline_with_rejection_sampling_runs_in_two_processes(
  environment, tmp_path
):
  """The dataset is that of one process, and a student learns from it."""
  copied = 'base', 'cold_start', 'reasoning'
  two, one = _run_twice(
    environment, tmp_path, 'small_pipeline', copied, (), ['--only=kept']
  )
  for name in ('accepted.jsonl', 'report.json'):
    name = f'kept/rejection_sampling/{name}'
    assert (two / name).read_bytes() == (one / name).read_bytes(), name
  assert (two / 'student/sft/model.safetensors').exists()


def test_a_pipeline_with_labelled_steps_runs_in_two_processes(
  environment, tmp_path
):
  """The labels are those of one process, and so is a model that learns them."""
  stages = ['--config.stages=("base","labels","prm")']
  two, one = _run_twice(
    environment, tmp_path, 'small_process', ['base'], stages
  )
  for name in ('steps.jsonl', 'report.json'):
    name = f'labels/label_steps/{name}'
    assert (two / name).read_bytes() == (one / name).read_bytes(), name
  ours, theirs = (
    metrics.read(folder / 'prm/prm/metrics.jsonl') for folder in (two, one)
  )
  for a, b in zip(ours, theirs, strict=True):
    unknown = {name for name, value in b.items() if value is None}
    assert unknown == {name for name, value in a.items() if value is None}
    known = a.keys() - unknown
    assert known == b.keys() - unknown
    for name in known:
      assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4), name
