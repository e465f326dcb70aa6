"""The scripts of launch/: what they print, and what they do with their tools.

The tools of clouds and clusters are stand-ins here, which log their arguments
and run on this machine what a host would run.
"""

from pathlib import Path
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RUN = ('--', 'train', '--config=r1_zero_tiny', '--workdir=/w', '--a=("b c",)')
TPU = ('--name=zero', '--zone=z')
DRY = [
  ('tpu', 'create', *TPU, '--type=v6e-64', '--spot', '--project=p'),
  ('tpu', 'create', *TPU, '--type=v5p-8', '--slices=2', '--reserved'),
  ('tpu', 'install', *TPU),
  ('tpu', 'run', *TPU, '--env=A=b c', *RUN),
  ('tpu', 'logs', *TPU),
  ('tpu', 'stop', *TPU),
  ('tpu', 'resume', *TPU, '--type=v4-8', *RUN),
  ('tpu', 'delete', *TPU),
  ('gke', 'run', '--cluster=c', '--name=n', '--type=v6e-16', *RUN),
  ('gke', 'list', '--cluster=c', '--name=n'),
  ('gke', 'logs', '--cluster=c', '--name=n'),
  ('gke', 'delete', '--cluster=c', '--name=n', '--zone=z'),
  ('slurm', 'install'),
  ('slurm', 'run', '--nodes=4', '--sbatch=partition=gpu', *RUN),
  ('slurm', 'logs'),
  ('slurm', 'stop'),
  ('slurm', 'delete'),
  ('host', 'install'),
  ('host', 'run', '--hours=8.5', '--earlier=/in', *RUN),
]


def launch(name, *args, code=0, root=ROOT, **options) -> str:
  """Runs a script; returns what it prints, or its error where it fails."""
  done = subprocess.run(
    [sys.executable, str(root / 'launch' / f'{name}.py'), *args],
    capture_output=True,
    text=True,
    **options,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stderr if code else done.stdout


def dry_run(name, action, *args) -> str:
  # Nothing is on this PATH: what would run a tool fails.
  return launch(name, action, '--dry_run', *args, env={'PATH': '/nowhere'})


def commands(text: str) -> list[list[str]]:
  """Returns the commands of a shell script without here-documents."""
  whole = shlex.split(text.replace('\n', ' ; '), comments=False)
  found: list[list[str]] = [[]]
  for word in whole:
    if word == ';':
      found.append([])
    else:
      found[-1].append(word)
  return [command for command in found if command]


@pytest.mark.parametrize('args', DRY, ids=lambda args: '-'.join(args[:2]))
def test_a_dry_run_prints_a_shell_script(args):
  text = dry_run(*args)
  assert text.strip()
  subprocess.run(['bash', '-n'], input=text, text=True, check=True)


def test_the_help_names_every_action():
  for name in ('tpu', 'gke', 'slurm', 'host'):
    text = launch(name, '--help')
    for args in DRY:
      if args[0] == name:
        assert f'{args[1]}: ' in text


def test_a_spot_slice_is_asked_for():
  first, *_ = commands(dry_run(*DRY[0]))
  assert first == [
    *('gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'zero'),
    '--node-id=zero',
    '--accelerator-type=v6e-64',
    '--runtime-version=v2-alpha-tpuv6e',
    '--spot',
    '--zone=z',
    '--project=p',
  ]


def test_several_slices_are_one_queued_resource():
  first, *_ = commands(dry_run(*DRY[1]))
  assert {'--node-count=2', '--node-prefix=zero', '--reserved'} <= set(first)
  assert '--node-id=zero' not in first and '--spot' not in first


def test_a_workload_is_restarted_after_what_is_no_error_of_users():
  [command] = commands(dry_run(*DRY[8]))
  assert command[:3] == ['xpk', 'workload', 'create']
  assert {'--max-restarts=50', '--restart-on-exit-codes=6'} <= set(command)
  # XPK's trap signals the shell of the command: r1jax must be in its place.
  inner = shlex.split(command[-1].removeprefix('--command='))
  assert inner[inner.index('&&') + 1 :] == ['exec', 'r1jax', *RUN[1:]]
  assert 'jobset-name=n,' in dry_run(*DRY[10])


def test_a_batch_script_has_a_process_for_each_gpu():
  text = dry_run('slurm', 'run', '--nodes=4', '--gpus=2', '--hours=1.5', *RUN)
  for line in (
    '#SBATCH --nodes=4',
    '#SBATCH --ntasks-per-node=2',
    '#SBATCH --gpus-per-node=2',
    '#SBATCH --time=1:30:00',
    '#SBATCH --signal=TERM@600',
    '#SBATCH --requeue',
  ):
    assert f'\n{line}\n' in text


@pytest.mark.parametrize(
  'args, error',
  [
    (('tpu', 'run', *TPU), 'give train, pipeline, eval or sample behind --'),
    (('tpu', 'run', *TPU, '--', 'info'), "got 'info'"),
    (('slurm', 'run', '--', 'train'), 'train: give --workdir'),
    (('slurm', 'run', '--env=A', *RUN), '--env=A must be NAME=VALUE'),
    (('slurm', 'run', '--hours=0.1', *RUN), '--hours must be longer'),
    (('tpu', 'create', *TPU), 'create and resume need --type'),
    (('tpu', 'create', *TPU, '--type=v9-8'), 'give its --runtime too'),
    (('gke', 'run', '--cluster=c', '--name=n', *RUN), 'run needs --type'),
    (
      ('gke', 'run', '--cluster=c', '--name=n', '--type=x', *RUN, 'a\nb'),
      'must be one line',
    ),
  ],
)
def test_errors_are_one_line(args, error):
  text = launch(*args, code=2)
  assert error in text and len(text.splitlines()) == 1


def test_a_missing_tool_is_named(tmp_path):
  text = launch('tpu', 'delete', *TPU, code=2, env={'PATH': str(tmp_path)})
  assert text == 'tpu.py: gcloud is not installed here\n'


def tool(folder: Path, name: str, text: str):
  """Writes an executable in Bash that logs its arguments to NAME.log."""
  path = folder / name
  log = f'printf "%q " "$@" >>{folder}/{name}.log; echo >>{folder}/{name}.log\n'
  path.write_text(f'#!/bin/bash\n{log}{text}')
  path.chmod(0o755)


def test_a_command_that_fails_gives_its_exit_code(tmp_path):
  tool(tmp_path, 'gcloud', 'exit 9')
  text = launch('tpu', 'delete', *TPU, code=9, env={'PATH': str(tmp_path)})
  assert text.endswith('has ended with exit code 9\n')


@pytest.fixture
def gcloud(tmp_path):
  """Returns run(state, action): its log with a slice that is in a state."""
  tool(
    tmp_path,
    'gcloud',
    'case $4 in\n'
    f'describe) [ -s {tmp_path}/state ] || exit 1; cat {tmp_path}/state;;\n'
    f'create) echo ACTIVE >{tmp_path}/state;;\n'
    f'delete) rm {tmp_path}/state;;\n'
    'esac',
  )

  def run(state: str, action: str, *args: str, code: int = 0) -> list[str]:
    (tmp_path / 'state').write_text(state)
    (tmp_path / 'gcloud.log').unlink(missing_ok=True)
    path = f'{tmp_path}:/usr/bin:/bin'
    launch('tpu', action, *TPU, *args, code=code, env={'PATH': path})
    log = (tmp_path / 'gcloud.log').read_text()
    return [line.split()[3] for line in log.splitlines()]

  return run


@pytest.mark.parametrize(
  'state, verbs',
  [
    ('ACTIVE', ['describe', 'ssh']),
    ('', ['describe', 'create', 'describe', 'scp', 'ssh', 'ssh']),
    (
      'SUSPENDED',
      ['describe', 'delete', 'create', 'describe', 'scp', 'ssh', 'ssh'],
    ),
  ],
)
def test_a_slice_that_is_gone_is_asked_for_again(gcloud, state, verbs):
  assert gcloud(state, 'resume', '--type=v6e-64', *RUN) == verbs
