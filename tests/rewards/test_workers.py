"""Whatever a job does, its worker's pool answers in time and goes on."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from r1jax.rewards.workers import Failure, Pool, WorkersError
from tests.conftest import ROOT

_JOBS = 'tests.rewards.jobs'


@pytest.fixture(scope='module')
def pool():
  with Pool(_JOBS, size=2, deadline_secs=1.0, memory_bytes=256 << 20) as made:
    yield made


def _alive(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def _until(condition, secs: float = 10.0):
  end = time.monotonic() + secs
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_results_keep_the_order_of_the_jobs(pool):
  jobs = [('sleep', 0.03 * (i % 3 == 0)) for i in range(12)] + [
      ('echo', i) for i in range(200)]
  assert pool.map(jobs) == [value for _, value in jobs]
  assert pool.map([]) == []


@pytest.mark.parametrize('value', [
    None, '\x00', '\ud800', {'a': [1.5, True]}, 'x' * 1_000_000])
def test_any_json_goes_there_and_back(pool, value):
  assert pool.map([('echo', value)]) == [value]


def test_a_job_that_misbehaves_costs_itself_alone(pool):
  jobs = [('hang', 9), ('exit', 3), ('eat', 0), ('raise', 'no'), ('talk', 'x')]
  began = time.monotonic()
  found = pool.map([job for bad in jobs for job in (bad, ('echo', 1))])
  assert found[1::2] == [1] * 5
  hang, left, eat, raised, talk = found[::2]
  assert hang.kind == 'timeout' and '1.0 s' in hang.why
  assert left.kind == 'crash' and 'died' in left.why
  assert eat.kind in ('crash', 'timeout')  # As fast as memory is had.
  assert raised == Failure('crash', 'ValueError: no')
  assert talk == ''  # It printed to nobody, and read from nobody.
  assert time.monotonic() - began < 15


def test_jobs_run_at_once(pool):
  pool.map([('echo', 0)] * 2)
  began = time.monotonic()
  pool.map([('sleep', 0.4)] * 4)
  assert time.monotonic() - began < 1.5  # One after another, 1.6.


def test_a_batch_ends_when_its_time_is_over(pool):
  began = time.monotonic()
  found = pool.map([('echo', 1)] + [('sleep', 0.9)] * 20, total_secs=1.5)
  assert time.monotonic() - began < 3
  assert found[0] == 1 and found[-1] == Failure(
      'timeout', 'the batch had no time left')
  assert pool.map([('echo', 2)]) == [2]  # Nothing old is in the pipes.


def test_a_worker_killed_from_outside_costs_no_job(pool):
  timer = threading.Timer(
      0.3, lambda: os.kill(pool.pids()[0], signal.SIGKILL))
  timer.start()
  assert pool.map([('sleep', 0.1)] * 20) == [0.1] * 20
  for pid in pool.pids():  # Now all of them, while none works.
    os.kill(pid, signal.SIGKILL)
  assert pool.map([('echo', i) for i in range(5)]) == list(range(5))


def test_a_stopped_worker_is_late_like_any_other(pool):
  pool.map([('echo', 0)])
  for pid in pool.pids():
    os.kill(pid, signal.SIGSTOP)
  found = pool.map([('echo', 'x' * 1_000_000)] * 4)  # More than a pipe holds.
  assert {each.kind for each in found if isinstance(each, Failure)} == {
      'timeout'}


def test_any_thread_may_ask_and_two_at_once(pool):
  found = {}

  def ask(name):
    found[name] = pool.map([('echo', [name, i]) for i in range(50)])

  threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {
      name: [[name, i] for i in range(50)] for name in range(4)}


def test_workers_know_nothing_of_the_parent(pool, monkeypatch):
  monkeypatch.setenv('SECRET', 'x')
  [names] = pool.map([('env', 0)])
  assert set(names) <= {'PATH', 'PYTHONPATH', 'PYTHONHASHSEED', 'LANG',
                        'LC_CTYPE'}
  assert pool.map([('modules', ['jax', 'numpy', 'flax'])]) == [[]]


def test_closing_ends_all_and_a_closed_pool_says_so():
  with Pool(_JOBS, size=1) as made:
    made.map([('echo', 0)])
    pids = made.pids()
    assert len(pids) == 2 and all(map(_alive, pids))
  assert not any(map(_alive, pids)) and made.pids() == []
  with pytest.raises(RuntimeError, match='closed'):
    made.map([('echo', 0)])
  made.close()


def test_workers_that_cannot_start_say_why():
  with Pool('tests.rewards.no_such_module', size=1) as made:
    with pytest.raises(WorkersError, match='No module named .*no_such'):
      made.map([0])


@pytest.mark.parametrize('ends', [
    'os.kill(os.getpid(), 9)', 'sys.exit()', 'raise RuntimeError'])
def test_workers_die_with_the_parent(ends):
  """Also while they work: it waits in a thread of its own meanwhile."""
  program = (
      'import os, sys, threading, time\n'
      'from r1jax.rewards.workers import Pool\n'
      f'pool = Pool({_JOBS!r}, size=1, deadline_secs=60)\n'
      'pool.map([("echo", 0)])\n'
      'threading.Thread(target=pool.map, args=([("hang", 9)],),'
      ' daemon=True).start()\n'
      'time.sleep(0.2)\n'
      'print(*pool.pids(), flush=True)\n' + ends)
  done = subprocess.run(
      [sys.executable, '-c', program], cwd=ROOT, capture_output=True,
      text=True, timeout=30)
  pids = [int(pid) for pid in done.stdout.split()]
  assert len(pids) == 2, done.stderr
  _until(lambda: not any(map(_alive, pids)))
