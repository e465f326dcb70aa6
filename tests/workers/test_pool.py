"""The worker pool returns in time and goes on, whatever its jobs do."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from r1jax.workers import pool as workers
from r1jax.workers.job_queue import JobFailure, WorkerLimits
from r1jax.workers.pool import WorkerPool, WorkerStartError
from tests.conftest import ROOT

_JOBS = 'tests.workers.jobs'
# An 'echo' takes next to nothing, so 0.1 s is the unit of the limits.
_LIMITS = WorkerLimits(
  first_attempt=1,
  deadline=4,
  budget_capacity=16,
  budget_refill=1,
  typical_job_secs=0.1,
)


@pytest.fixture(scope='module')
def pool():
  with WorkerPool(
    _JOBS, _LIMITS, size=2, wall_secs=2.0, memory_bytes=256 << 20
  ) as worker_pool:
    yield worker_pool


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
    ('echo', i) for i in range(200)
  ]
  assert pool.map(jobs) == [value for _, value in jobs]
  assert pool.map([]) == []


@pytest.mark.parametrize(
  'value', [None, '\x00', '\ud800', {'a': [1.5, True]}, 'x' * 1_000_000]
)
def test_any_json_goes_there_and_back(pool, value):
  assert pool.map([('echo', value)]) == [value]


def test_a_job_that_misbehaves_costs_itself_alone(pool):
  jobs = [
    ('hang', 9),
    ('exit', 3),
    ('eat', 0),
    ('raise', 'no'),
    ('talk', 'x'),
    ('stop', 0),
    ('garble', 0),
  ]
  found = pool.map([job for bad in jobs for job in (bad, ('echo', 1))])
  assert found[1::2] == [1] * len(jobs)
  hang, left, eat, raised, talk, stopped, garbled = found[::2]
  assert hang.kind == 'timeout' and '0.4 s of CPU time' in hang.message
  assert left.kind == 'crash' and 'died' in left.message
  assert eat.kind in ('crash', 'timeout')  # As fast as memory is had.
  assert raised == JobFailure('crash', 'ValueError: no')
  assert talk == ''  # It printed to nobody, and read from nobody.
  assert stopped.kind == 'timeout'
  assert garbled.kind == 'crash'


def _below(pid: int) -> list[int]:
  """Process ids of all descendants."""
  with open(f'/proc/{pid}/task/{pid}/children') as file:
    children = list(map(int, file.read().split()))
  return children + [deeper for child in children for deeper in _below(child)]


def test_a_job_that_ends_its_process_costs_a_fork_and_no_worker():
  with WorkerPool(_JOBS, _LIMITS, size=1) as worker_pool:
    [before] = worker_pool.map([('pid', 0)])
    workers_before = worker_pool.pids()
    found = worker_pool.map(
      [('pid', 0), ('exit', 1), ('pid', 1), ('exit', 1), ('pid', 2), ('pid', 3)]
    )
    # Each 'exit' gets a second attempt, at the end; five forks, four of them new.
    first, second, third = found[0], found[2], found[4]
    assert first == before and len({first, second, third}) == 3
    assert found[5] == third
    assert [each.kind for each in (found[1], found[3])] == ['crash'] * 2
    assert worker_pool.pids() == workers_before
    [last] = worker_pool.map([('pid', 0)])
    zygote, runner = _below(workers_before[0])  # And no zombie.
    assert runner == last and zygote != last
    assert not any(map(_alive, (first, second, third)))


def test_later_runners_inherit_what_a_runner_cached():
  with WorkerPool(_JOBS, _LIMITS, size=1) as worker_pool:
    assert worker_pool.map([('cache', 0)] * 20) == list(range(1, 21))
    assert worker_pool.map([('exit', 1)])[0].kind == 'crash'
    assert worker_pool.map([('cache', 0)]) == [17]  # As after 16 jobs.
    assert len(_below(worker_pool.pids()[0])) == 3


def test_an_honest_slow_job_has_its_result_among_some_that_hang():
  jobs = [('echo', 1), ('hang', 9), ('work', 0.2), ('hang', 9), ('echo', 2)]
  with WorkerPool(_JOBS, _LIMITS, size=1) as worker_pool:
    found = worker_pool.map(jobs)
  assert [found[0], found[2], found[4]] == [1, 0.2, 2]
  assert [found[i].kind for i in (1, 3)] == ['timeout'] * 2


def test_waiting_is_not_working(pool):
  [first] = pool.map([('pid', 0)])[:1]
  found = pool.map(
    [('sleep', 0.3), ('sleep', 0.3)]
  )  # More than a first attempt.
  assert found == [0.3, 0.3]
  assert _alive(first)  # Nobody was late.


def test_jobs_run_at_once(pool):
  pool.map([('echo', 0)] * 2)
  began = time.monotonic()
  pool.map([('sleep', 1.0)] * 4)
  assert time.monotonic() - began < 3.8  # One after another, 4.


def test_a_batch_ends_when_its_time_is_over(pool):
  began = time.monotonic()
  found = pool.map([('echo', 1)] + [('sleep', 0.9)] * 20, total_secs=1.5)
  assert time.monotonic() - began < 9  # All of them take longer.
  assert found[0] == 1 and found[-1] == JobFailure(
    'timeout', 'the batch had no time left'
  )
  assert pool.map([('echo', 2)]) == [2]  # Nothing old is in the pipes.


def test_a_worker_killed_from_outside_costs_no_job(pool):
  timer = threading.Timer(0.3, lambda: os.kill(pool.pids()[0], signal.SIGKILL))
  timer.start()
  assert pool.map([('sleep', 0.1)] * 20) == [0.1] * 20
  for pid in pool.pids():  # Now all of them, while none works.
    os.kill(pid, signal.SIGKILL)
  assert pool.map([('echo', i) for i in range(5)]) == list(range(5))


def test_a_worker_that_stops_costs_no_job(monkeypatch):
  monkeypatch.setattr(workers, '_GRACE_SECS', 0.1)
  with WorkerPool(_JOBS, _LIMITS, size=1, wall_secs=0.5) as worker_pool:
    worker_pool.map([('echo', 0)])
    [stopped] = worker_pool.pids()
    os.kill(stopped, signal.SIGSTOP)
    long = 'x' * 1_000_000  # More than a pipe holds.
    assert worker_pool.map([('echo', long)] * 4) == [long] * 4
    assert stopped not in worker_pool.pids()


def test_several_threads_may_map_at_once(pool):
  found = {}

  def ask(name):
    found[name] = pool.map([('echo', [name, i]) for i in range(50)])

  threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {name: [[name, i] for i in range(50)] for name in range(4)}


def test_workers_inherit_nothing_of_the_parent(pool, monkeypatch):
  monkeypatch.setenv('SECRET', 'x')
  [names] = pool.map([('env', 0)])
  assert set(names) <= {
    'PATH',
    'PYTHONPATH',
    'PYTHONHASHSEED',
    'LANG',
    'LC_CTYPE',
  }
  assert pool.map([('modules', ['jax', 'numpy', 'flax'])]) == [[]]


def test_closing_ends_all_and_a_closed_pool_says_so():
  with WorkerPool(_JOBS, _LIMITS, size=1) as worker_pool:
    worker_pool.map([('echo', 0)])
    pids = [*worker_pool.pids(), *worker_pool.map([('pid', 0)])]
    assert len(pids) == 2 and all(map(_alive, pids))
  _until(lambda: not any(map(_alive, pids)))
  assert worker_pool.pids() == []
  with pytest.raises(RuntimeError, match='closed'):
    worker_pool.map([('echo', 0)])
  worker_pool.close()


def test_workers_that_cannot_start_say_why():
  with WorkerPool(
    'tests.rewards.no_such_module', _LIMITS, size=1
  ) as worker_pool:
    with pytest.raises(WorkerStartError, match='No module named .*no_such'):
      worker_pool.map([0])


@pytest.mark.parametrize(
  'ends',
  ['os.kill(os.getpid(), 9)', 'sys.exit()', 'raise RuntimeError'],
  ids=['killed', 'exits', 'raises'],
)
def test_workers_die_with_the_parent(ends):
  """And their forks, also while these work."""
  program = (
    'import os, sys, threading, time\n'
    'from r1jax.workers.pool import WorkerPool\n'
    'from r1jax.workers.job_queue import WorkerLimits\n'
    f'pool = WorkerPool({_JOBS!r}, WorkerLimits(60, 60, 60, 1, 1), size=1)\n'
    'fork = pool.map([("pid", 0)])\n'
    'threading.Thread(target=pool.map, args=([("hang", 9)],),'
    ' daemon=True).start()\n'
    'time.sleep(0.2)\n'
    'print(*pool.pids(), *fork, flush=True)\n' + ends
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=30,
  )
  pids = [int(pid) for pid in done.stdout.split()]
  assert len(pids) == 2, done.stderr
  _until(lambda: not any(map(_alive, pids)))
