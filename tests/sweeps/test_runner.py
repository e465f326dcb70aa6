"""Runs of a sweep as processes: short commands stand for those that train."""

import os
import subprocess
import sys
import time

import pytest

from r1jax.interrupts import Interrupted
from r1jax.sweeps import attempts, results, runner

# Commands of the package that end at once: well, and with an error of a user.
_WELL, _BADLY = ['help'], ['no_command']


@pytest.fixture
def fake(folder, monkeypatch):
  """Returns use(fails), where fails(point, seed) says which runs fail."""
  begun: list[str] = []

  def use(fails=lambda point, seed: False):
    def command(sweep, point, seed, place):
      begun.append(f'{point.name}/seed_{seed}')
      if fails(point, seed):
        return _BADLY
      folder.lineage(place)
      return _WELL

    begun.clear()
    monkeypatch.setattr(runner, 'command', command)
    # The folder is there before its record, so that the fake may write to it.
    for *_, place in folder.sweep.run_folders(folder.out):
      place.mkdir(parents=True, exist_ok=True)
    return begun

  return use


def test_a_run_that_fails_stops_no_other(folder, fake, caplog):
  fake(lambda point, seed: point.values['rl.group_size'] == '8' and seed == 0)
  with caplog.at_level('INFO', 'r1jax'):
    failed = runner.run_all(folder.sweep, folder.out, parallel=2)
  assert failed == ['group_size=8/seed_0']
  (warning,) = (r for r in caplog.records if r.levelname == 'WARNING')
  text = warning.getMessage()
  assert 'group_size=8/seed_0 has failed' in text
  assert "(exit code 2): unknown command 'no_command'" in text
  states = [r.state for r in results.read(folder.sweep, folder.out)]
  assert states == ['finished'] * 3 + ['failed'] + ['finished'] * 2
  log = (folder.place(1, 0) / attempts.LOG).read_text()
  assert log.startswith('$ r1jax no_command\n')


def test_finished_runs_are_skipped_and_failed_ones_tried_again(folder, fake):
  fake(lambda point, seed: seed == 1)
  assert len(runner.run_all(folder.sweep, folder.out, parallel=3)) == 2
  begun = fake()
  assert runner.run_all(folder.sweep, folder.out, parallel=3) == []
  assert begun == ['group_size=4/seed_1', 'group_size=8/seed_1']
  assert len(attempts.read(folder.place(0, 1))) == 2
  begun = fake()
  assert runner.run_all(folder.sweep, folder.out, parallel=1) == []
  assert begun == []


def test_seeds_come_one_after_another_over_all_points(folder, fake):
  begun = fake()
  runner.run_all(folder.sweep, folder.out, parallel=1)
  assert begun == [
    f'group_size={size}/seed_{seed}' for seed in (0, 1, 2) for size in (4, 8)
  ]


def test_a_signal_ends_the_runs_that_are_going_on(folder, monkeypatch):
  """They are told to by SIGTERM, and waited for."""
  script = (
    'import signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(143)))\n'
    'print("ready", flush=True)\n'
    'time.sleep(600)\n'
  )
  monkeypatch.setattr(runner, '_PROGRAM', (sys.executable, '-c', script))
  logs = [folder.place(i, 0) / attempts.LOG for i in (0, 1)]

  def sleep(secs):
    if all(log.exists() and 'ready' in log.read_text() for log in logs):
      raise Interrupted(15)

  monkeypatch.setattr(runner.time, 'sleep', sleep)
  with pytest.raises(Interrupted) as caught:
    runner.run_all(folder.sweep, folder.out, parallel=2)
  assert caught.value.kept.startswith('0 of 6 runs are finished, and the same')
  for i, log in enumerate(logs):
    assert log.read_text().endswith('saved\n')
    (attempt,) = attempts.read(folder.place(i, 0))
    assert attempt.exit_code == 143
  states = [r.state for r in results.read(folder.sweep, folder.out)]
  assert states.count('unfinished') == 2 and states.count('not begun') == 4


@pytest.mark.skipif(
  not hasattr(os, 'sched_getaffinity'), reason='the system has no affinity'
)
@pytest.mark.parametrize(
  'cores, parallel, shares, text',
  [
    ({0, 1, 2, 3}, 2, [[0, 1], [2, 3]], '2 at once, 2 of 4 cores each'),
    ({2, 5, 7}, 2, [[2], [5]], '2 at once, 1 of 3 cores each'),
    ({0, 1}, 1, [[0, 1]], '1 at once, 2 of 2 cores each'),
    ({0, 1}, 3, [[0], [1], [0]], '1 of 2 cores each, which they share'),
  ],
)
def test_cores_are_divided_evenly(monkeypatch, cores, parallel, shares, text):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: cores)
  assert runner.shares(parallel) == shares
  assert text in runner.shares_text(parallel)


@pytest.mark.skipif(
  len(getattr(os, 'sched_getaffinity', lambda pid: ())(0)) < 2,
  reason='needs two cores',
)
def test_runs_at_once_have_cores_of_their_own(folder, monkeypatch):
  script = 'import os; print(sorted(os.sched_getaffinity(0)))'
  monkeypatch.setattr(runner, '_PROGRAM', (sys.executable, '-c', script))
  before = os.sched_getaffinity(0)
  runner.run_all(folder.sweep, folder.out, parallel=2)
  assert os.sched_getaffinity(0) == before
  seen = {
    (place / attempts.LOG).read_text().split('\n')[1]
    for *_, place in folder.sweep.run_folders(folder.out)
  }
  assert seen == {str(share) for share in runner.shares(2)}


def test_the_command_of_a_run_is_a_public_one(folder):
  point, seed, place = folder.sweep.run_folders(folder.out)[1]
  assert runner.command(folder.sweep, point, seed, place) == [
    'train',
    '--config=r1_zero_tiny',
    f'--workdir={folder.out}/group_size=8/seed_0',
    '--config.rl.max_steps=2',
    '--config.rl.group_size=8',
    '--config.seed=0',
  ]


def test_a_record_that_a_kill_has_cut_is_read(folder):
  place = folder.place(0, 0)
  attempts.begin(place, 1)
  with open(place / attempts.FILE, 'a') as file:
    file.write('{"ended": 5')
  (attempt,) = attempts.read(place)
  assert attempt.ended is None and attempts.secs([attempt]) is None
  attempts.begin(place, 1)
  attempts.end(place, 0)
  first, second = attempts.read(place)
  assert first == attempt and second.exit_code == 0


@pytest.mark.skipif(sys.platform != 'linux', reason='a feature of Linux')
def test_a_sweep_that_is_killed_ends_its_runs(tmp_path):
  """The kernel sends them SIGTERM, on which they save and end."""
  script = (
    'import signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit()))\n'
    'print("ready", flush=True)\n'
    'time.sleep(600)\n'
  )
  parent = (
    'import os, subprocess, sys\n'
    'with open(sys.argv[1], "w") as log:\n'
    '  subprocess.Popen([sys.executable, "-m", "r1jax.sweeps.exec_run",'
    ' str(os.getpid()), "", sys.executable, "-c", sys.argv[2]],'
    ' stdout=log, process_group=0).wait()\n'
  )
  log = tmp_path / 'log'
  process = subprocess.Popen([sys.executable, '-c', parent, str(log), script])
  _wait_for('ready\n', log)
  process.kill()
  process.wait()
  _wait_for('saved\n', log)


def _wait_for(end: str, log):
  for _ in range(600):
    if log.exists() and log.read_text().endswith(end):
      return
    time.sleep(0.1)
  raise AssertionError(f'{log} does not end with {end!r}')
