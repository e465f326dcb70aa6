"""Sweeps in a script: the command that is run, and the runs that come back."""

import subprocess

import pytest

from r1jax.sweeps import plan, script
from tests.sweeps.conftest import lines


def test_a_script_runs_the_command_and_reads_its_runs(folder, monkeypatch):
  with plan.claimed(folder.out, folder.sweep):
    pass
  folder.add(1, 0, lines(0.1, 0.75))
  popen, commands = subprocess.Popen, []

  def started(command, **options):
    commands.append(command[3:])
    return popen(['true'], **options)

  monkeypatch.setattr(subprocess, 'Popen', started)
  runs = script.sweep(
    folder.out,
    'r1_zero_tiny',
    grid=['rl.group_size=4,8'],
    seeds='3',
    changes={'rl.max_steps': 2},
    flags=['--parallel=2'],
  )
  assert commands == [
    [
      'sweep',
      '--config=r1_zero_tiny',
      f'--out={folder.out}',
      '--seeds=3',
      '--grid=rl.group_size=4,8',
      '--config.rl.max_steps=2',
      '--parallel=2',
    ]
  ]
  assert [(run.point, run.seed) for run in runs] == [
    (f'group_size={size}', seed) for size in (4, 8) for seed in range(3)
  ]
  assert [run.value('eval/pass@1') for run in runs] == [
    *(None, None, None),
    *(0.75, None, None),
  ]


def test_a_command_that_fails_ends_the_script(tmp_path, capfd):
  with pytest.raises(SystemExit) as caught:
    script.sweep(tmp_path / 'out', 'no_config', seeds='2')
  assert caught.value.code == 2
  assert "unknown 'no_config'" in capfd.readouterr().err
