"""Worker processes with deadlines, for code that may hang or eat memory.

  with WorkerPool('r1jax.graders.math_worker', limits) as pool:
    results = pool.map(jobs)

A job is JSON, and so is its result. `forkserver.py` is the worker's side of it: a
process of its own, started by exec, whose forks run the jobs, and which kills
with SIGKILL those that are late, because nothing inside a process can stop a
product of huge integers. `turns.py` says who runs when, and for how long.
"""

import atexit
from collections.abc import Sequence
from concurrent import futures
import json
import math
import os
from pathlib import Path
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from r1jax.workers import forkserver
from r1jax.workers.job_queue import (
  Attempt,
  CpuBudget,
  JobFailure,
  JobQueue,
  WorkerLimits,
)

_ROOT = Path(__file__).parents[2]  # The folder that holds the package.
_MAX_WORKERS = 8
_STILLBORN = 4  # So many in a row mean that none will start.
_GRACE_SECS = 5.0  # A worker that is later than its fork may be is broken.


class WorkerStartError(RuntimeError):
  """No worker can be started; the text says what the last one said."""


class WorkerPool:
  """Some workers, started when first needed.

  Args:
    module: Importable by name, with a function prepare() that returns the
      function from job to result. Workers import nothing else of ours.
    limits: Of the CPU time of jobs.
    size: How many jobs run at once; None for one on each core, at most 8.
    wall_secs: Of one try, by the clock on the wall, for a job that waits
      instead of working. Far above the limits: a machine may be busy.
    memory_bytes: Of a process's address space.
    start_secs: For a worker to start.
  """

  def __init__(
    self,
    module: str,
    limits: WorkerLimits,
    size: int | None = None,
    wall_secs: float = 20.0,
    memory_bytes: int = 2 << 30,
    start_secs: float = 60.0,
  ):
    self._module, self._memory_bytes = module, memory_bytes
    self._size = size or min(_cores(), _MAX_WORKERS)
    self._limits, self._account = limits, CpuBudget(limits)
    self._wall_secs, self._start_secs = wall_secs, start_secs
    self._workers: list[_Worker] = []
    self._stillborn = 0
    self._lock = threading.Lock()
    # The kernel kills a worker when the THREAD that started it ends, which is
    # why one thread that lives as long as the pool starts them all.
    self._starter = futures.ThreadPoolExecutor(1, 'workers')
    self._closed = False
    atexit.register(self.close)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    """Kills the workers. A second time it does nothing."""
    with self._lock:
      self._closed = True
      while self._workers:
        self._workers.pop().kill()
    self._starter.shutdown()
    atexit.unregister(self.close)

  def pids(self) -> list[int]:
    """Of the workers; not of their forks."""
    return [worker.process.pid for worker in self._workers]

  def map(self, jobs: Sequence[Any], total_secs: float = math.inf) -> list:
    """The jobs' results in their order, a JobFailure for each that has none.

    Callable from any thread; a second call waits for the first. It takes at
    most total_secs, whatever the jobs do. A job may run more than once, so it
    should change nothing outside.

    Raises:
      WorkerStartError: the workers do not start.
    """
    texts = [json.dumps(job).encode('ascii') for job in jobs]
    with self._lock:
      if self._closed:
        raise RuntimeError(f'workers of {self._module}: the pool is closed')
      turns = JobQueue(len(texts), self._limits, self._account)
      try:
        self._run(turns, texts, time.monotonic() + total_secs)
      finally:  # After an error, nobody waits for what these would say.
        for worker in self._busy():
          self._discard(worker)
        self._account.rest(len(texts))
      return turns.results

  def _run(self, turns: JobQueue, texts: list[bytes], end: float):
    while not turns.over:
      self._staff(min(self._size, len(texts)))
      if time.monotonic() >= end:
        return turns.stop('the batch had no time left')
      self._assign(turns, texts)
      if turns.over:  # The last ones that waited may not run any more.
        return
      self._wait(end)
      for worker in list(self._workers):
        self._hear(worker, turns)

  def _busy(self) -> list['_Worker']:
    return [worker for worker in self._workers if worker.turn]

  def _staff(self, count: int):
    """Starts workers; they load what they need by themselves."""
    for worker in list(self._workers):
      if worker.ready and not worker.turn and worker.process.poll() is not None:
        self._discard(worker)  # It died between two jobs.
    while len(self._workers) < count:
      started = self._starter.submit(
        _Worker, self._module, self._memory_bytes, self._start_secs
      )
      self._workers.append(started.result())

  def _assign(self, turns: JobQueue, texts: list[bytes]):
    for worker in self._workers:
      if worker.ready and not worker.turn and (turn := turns.take()):
        worker.give(turn, texts[turn.job], self._wall_secs)

  def _wait(self, end: float):
    """Until a worker says something, can be told more, or is late."""
    poll = select.poll()
    for worker in self._workers:
      worker.register(poll)
    until = min([end, *(worker.until for worker in self._workers)])
    poll.poll(max(0.0, min(until - time.monotonic(), 3600.0)) * 1000 + 1)

  def _hear(self, worker: '_Worker', turns: JobQueue):
    """What a worker says of its job, or that it says nothing any more."""
    told, alive = worker.exchange()
    if told is None:
      if not alive or time.monotonic() >= worker.until:
        self._lost(worker, turns)
      return
    turn = worker.turn
    happened, secs, text = told
    worker.rest()
    if happened == forkserver.READY:
      worker.ready, self._stillborn = True, 0
    elif happened == forkserver.LATE:
      turns.late(turn)
    elif happened == forkserver.DIED or (reply := _read(text)) is None:
      turns.died(turn, secs)
    elif 'error' in reply:
      turns.done(turn, secs, JobFailure('crash', reply['error']))
    else:
      turns.done(turn, secs, reply['value'])

  def _lost(self, worker: '_Worker', turns: JobQueue):
    self._discard(worker)
    if worker.turn:
      turns.lost(worker.turn, self._size)
    if worker.ready:
      return
    self._stillborn += 1
    if self._stillborn >= _STILLBORN:
      self._stillborn = 0
      raise WorkerStartError(
        f'workers of {self._module} do not start: '
        + (worker.last_words or f'not within {self._start_secs} s')
      )

  def _discard(self, worker: '_Worker'):
    self._workers.remove(worker)
    worker.kill()


class _Worker:
  """One process and what is on its way to and from it; never blocks.

  Attributes:
    ready: It has started.
    turn: What it works on, or None.
    until: When it is late with what it does.
  """

  def __init__(self, module: str, memory_bytes: int, start_secs: float):
    # By exec, and with nothing of our environment but where modules are. One
    # hash seed, so that the order of sets is not drawn anew in each process.
    paths = [str(_ROOT), *(path for path in sys.path if path)]
    self.process = subprocess.Popen(
      [
        sys.executable,
        '-P',
        '-m',
        'r1jax.workers.forkserver',
        module,
        str(memory_bytes),
        str(os.getpid()),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={
        'PYTHONPATH': os.pathsep.join(paths),
        'PYTHONHASHSEED': '0',
        'PATH': os.environ.get('PATH', ''),
        'LANG': 'C.UTF-8',
      },
      cwd='/',
      bufsize=0,
      start_new_session=True,
    )  # Ctrl-C is for the parent alone.
    for pipe in self._pipes():
      os.set_blocking(pipe.fileno(), False)
    self.ready, self.turn = False, None
    self.until = time.monotonic() + start_secs
    self.last_words = ''
    self._outbox, self._inbox = memoryview(b''), bytearray()

  def _pipes(self):
    return self.process.stdin, self.process.stdout, self.process.stderr

  def give(self, turn: Attempt, text: bytes, wall_secs: float):
    self.turn = turn
    self._outbox = memoryview(
      forkserver.ASK.pack(turn.secs, wall_secs, len(text)) + text
    )
    self.until = time.monotonic() + wall_secs + _GRACE_SECS

  def rest(self):
    self.turn, self.until = None, math.inf

  def register(self, poll):
    poll.register(self.process.stdout, select.POLLIN)
    if self._outbox:
      poll.register(self.process.stdin, select.POLLOUT)

  def exchange(self) -> tuple[tuple[bytes, float, bytes] | None, bool]:
    """Writes and reads what it can: a whole message or None, and whether the
    worker is alive."""
    try:
      while self._outbox and (sent := self.process.stdin.write(self._outbox)):
        self._outbox = self._outbox[sent:]
      while (more := self.process.stdout.read(1 << 16)) is not None:
        if not more:
          return None, False
        self._inbox += more
    except OSError:  # It closed its end.
      return None, False
    head = forkserver.TELL.size
    if len(self._inbox) < head:
      return None, True
    happened, secs, size = forkserver.TELL.unpack_from(self._inbox)
    if len(self._inbox) < head + size:
      return None, True
    text = bytes(self._inbox[head:])
    self._inbox.clear()
    return (happened, secs, text), True

  def kill(self):
    """Also its fork: it leads a process group."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
    if not self.ready:
      text = (self.process.stderr.read() or b'').decode(errors='replace')
      self.last_words = text.strip().rpartition('\n')[2][:500]
    for pipe in self._pipes():
      pipe.close()


def _read(text: bytes) -> dict | None:
  """A fork's reply, if it makes sense."""
  try:
    reply = json.loads(text)
  except ValueError:
    return None
  known = isinstance(reply, dict) and reply.keys() <= {'value', 'error'}
  return reply if reply and known else None


def _cores() -> int:
  """Those that this process may use, where the system can say so."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
