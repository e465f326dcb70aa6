"""Worker processes with deadlines, for code that may hang or exhaust memory.

  with WorkerPool('r1jax.graders.math_worker', limits) as pool:
    results = pool.map(jobs)

A job is JSON, and so is its result. Each worker is a fork server
(`forkserver.py`), started by exec, whose forks run the jobs. It kills a fork
that exceeds its limit with SIGKILL, because nothing inside a process can stop a
product of huge integers. `job_queue.py` decides which job runs next and for how
long.
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
_MAX_FAILED_STARTS = 4  # So many in a row mean that no worker will start.
_GRACE_SECS = 5.0  # A worker that exceeds its fork's limit by more is broken.


class WorkerStartError(RuntimeError):
  """No worker starts; the message has the last line that one wrote to stderr."""


class WorkerPool:
  """A pool of worker processes, which start at the first call of `map`.

  Args:
    module: Name of an importable module with a function prepare(*arguments)
      that returns the function from job to result. Workers import nothing else
      of r1jax.
    limits: CPU-time limits of the jobs.
    size: Number of workers; None for one per core, at most 8.
    wall_secs: Wall-clock limit of one attempt, for a job that waits instead of
      computing. Choose it far above the CPU limits: a machine may be busy.
    memory_bytes: Address space of one process.
    start_secs: Wall-clock limit for a worker to start.
    arguments: Arguments of prepare().
    trusted: Whether workers run the user's own code, which sees the user's
      environment and current folder; other workers get neither.
  """

  def __init__(
    self,
    module: str,
    limits: WorkerLimits,
    size: int | None = None,
    wall_secs: float = 20.0,
    memory_bytes: int = 2 << 30,
    start_secs: float = 60.0,
    arguments: Sequence[str] = (),
    trusted: bool = False,
  ):
    self._module, self._memory_bytes = module, memory_bytes
    self._arguments, self._trusted = tuple(arguments), trusted
    self._size = size or min(_num_cores(), _MAX_WORKERS)
    self._limits, self._budget = limits, CpuBudget(limits)
    self._wall_secs, self._start_secs = wall_secs, start_secs
    self._workers: list[_Worker] = []
    self._failed_starts = 0
    self._lock = threading.Lock()
    # The kernel kills a worker when the THREAD that started it ends, so one
    # thread that lives as long as the pool starts them all.
    self._starter = futures.ThreadPoolExecutor(1, 'workers')
    self._closed = False
    atexit.register(self.close)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    """Kills the workers. Calling it again does nothing."""
    with self._lock:
      self._closed = True
      while self._workers:
        self._workers.pop().kill()
    self._starter.shutdown()
    atexit.unregister(self.close)

  def pids(self) -> list[int]:
    """Returns the process ids of the workers, without those of their forks."""
    return [worker.process.pid for worker in self._workers]

  def map(
    self,
    jobs: Sequence[Any],
    total_secs: float = math.inf,
    wall_secs: float | None = None,
  ) -> list:
    """Runs the jobs and returns their results in order.

    Any thread may call it; a second call waits for the first. A job may run
    more than once, so it should have no side effects.

    Args:
      jobs: JSON-serialisable jobs.
      total_secs: Wall-clock limit of the call, whatever the jobs do.
      wall_secs: Wall-clock limit of one attempt in this call; None for the
        pool's own.

    Returns:
      One result per job, a JobFailure for a job that has none.

    Raises:
      WorkerStartError: The workers do not start.
    """
    texts = [json.dumps(job).encode('ascii') for job in jobs]
    with self._lock:
      if self._closed:
        raise RuntimeError(f'workers of {self._module}: the pool is closed')
      queue = JobQueue(len(texts), self._limits, self._budget)
      wall_secs = self._wall_secs if wall_secs is None else wall_secs
      try:
        self._run(queue, texts, time.monotonic() + total_secs, wall_secs)
      finally:  # After an error nobody reads the replies of busy workers.
        for worker in self._busy():
          self._discard(worker)
        self._budget.end_batch(len(texts))
      return queue.results

  def _run(
    self, queue: JobQueue, texts: list[bytes], end: float, wall_secs: float
  ):
    while not queue.is_finished:
      self._start_workers(min(self._size, len(texts)))
      if time.monotonic() >= end:
        return queue.cancel('the batch had no time left')
      self._assign(queue, texts, wall_secs)
      if (
        queue.is_finished
      ):  # The last waiting jobs have failed for lack of time.
        return
      self._wait(end)
      for worker in list(self._workers):
        self._handle_reply(worker, queue)

  def _busy(self) -> list['_Worker']:
    return [worker for worker in self._workers if worker.attempt]

  def _start_workers(self, count: int):
    """Replaces dead idle workers and starts new ones, without waiting for them."""
    for worker in list(self._workers):
      idle = worker.ready and not worker.attempt
      if idle and worker.process.poll() is not None:
        self._discard(worker)
    while len(self._workers) < count:
      started = self._starter.submit(
        _Worker,
        [self._module, str(self._memory_bytes), str(os.getpid())],
        self._arguments,
        self._start_secs,
        self._trusted,
      )
      self._workers.append(started.result())

  def _assign(self, queue: JobQueue, texts: list[bytes], wall_secs: float):
    """Gives each idle worker an attempt, as long as the queue has one."""
    for worker in self._workers:
      idle = worker.ready and not worker.attempt
      if idle and (attempt := queue.pop()):
        worker.submit(attempt, texts[attempt.job], wall_secs)

  def _wait(self, end: float):
    """Blocks until a worker can be read or written, or a deadline passes."""
    poll = select.poll()
    for worker in self._workers:
      worker.register(poll)
    deadline = min([end, *(worker.deadline for worker in self._workers)])
    timeout_secs = max(0.0, min(deadline - time.monotonic(), 3600.0))
    poll.poll(timeout_secs * 1000 + 1)

  def _handle_reply(self, worker: '_Worker', queue: JobQueue):
    """Reads a worker's reply, if it is there, and records it in the queue."""
    reply, alive = worker.exchange()
    if reply is None:
      if not alive or time.monotonic() >= worker.deadline:
        self._handle_lost(worker, queue)
      return
    attempt: Any = worker.attempt  # None before the worker is ready.
    status, secs, text = reply
    worker.set_idle()
    if status == forkserver.READY:
      worker.ready, self._failed_starts = True, 0
    elif status == forkserver.TIMEOUT:
      queue.time_out(attempt)
    elif status == forkserver.CRASHED or (result := _parse(text)) is None:
      queue.crash(attempt, secs)
    elif 'error' in result:
      queue.complete(attempt, secs, JobFailure('crash', result['error']))
    else:
      queue.complete(attempt, secs, result['value'])

  def _handle_lost(self, worker: '_Worker', queue: JobQueue):
    """Discards a worker that died or missed its deadline."""
    self._discard(worker)
    if worker.attempt:
      queue.lose_worker(worker.attempt, self._size)
    if worker.ready:
      return
    self._failed_starts += 1
    if self._failed_starts >= _MAX_FAILED_STARTS:
      self._failed_starts = 0
      raise WorkerStartError(
        f'workers of {self._module} do not start: '
        + (worker.start_error or f'not within {self._start_secs} s')
      )

  def _discard(self, worker: '_Worker'):
    self._workers.remove(worker)
    worker.kill()


class _Worker:
  """One worker process and the bytes on their way to and from it.

  No method blocks on the process.

  Attributes:
    process: The process.
    ready: Whether it has started.
    attempt: The attempt that it runs, or None.
    deadline: time.monotonic() after which it counts as lost.
    start_error: Last line of its stderr, if it was killed before it was ready.
  """

  def __init__(
    self,
    command: Sequence[str],
    arguments: Sequence[str],
    start_secs: float,
    trusted: bool,
  ):
    # Started by exec, with none of our environment but the module paths unless
    # it is trusted. A fixed hash seed gives sets the same order in every process.
    paths = [str(_ROOT), *(path for path in sys.path if path)]
    # A plugin that imports JAX must not take the accelerator from the run.
    inherited = dict(os.environ, JAX_PLATFORMS='cpu') if trusted else {}
    self.process = process = subprocess.Popen(
      [
        sys.executable,
        '-P',
        '-m',
        'r1jax.workers.forkserver',
        *command,
        *arguments,
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=inherited
      | {
        'PYTHONPATH': os.pathsep.join(paths),
        'PYTHONHASHSEED': '0',
        'PATH': os.environ.get('PATH', ''),
        'LANG': 'C.UTF-8',
      },
      cwd=None if trusted else '/',
      bufsize=0,
      start_new_session=True,  # Ctrl-C reaches the parent alone.
    )
    assert process.stdin and process.stdout and process.stderr
    self._stdin, self._stdout = process.stdin, process.stdout
    self._stderr = process.stderr
    for pipe in self._pipes():
      os.set_blocking(pipe.fileno(), False)
    self.ready = False
    self.attempt: Attempt | None = None
    self.deadline = time.monotonic() + start_secs
    self.start_error = ''
    self._outbox, self._inbox = memoryview(b''), bytearray()

  def _pipes(self):
    return self._stdin, self._stdout, self._stderr

  def submit(self, attempt: Attempt, job: bytes, wall_secs: float):
    """Queues a job for writing; `exchange` sends it."""
    self.attempt = attempt
    self._outbox = memoryview(
      forkserver.REQUEST.pack(attempt.limit_secs, wall_secs, len(job)) + job
    )
    self.deadline = time.monotonic() + wall_secs + _GRACE_SECS

  def set_idle(self):
    """Marks the worker as free for the next attempt."""
    self.attempt, self.deadline = None, math.inf

  def register(self, poll):
    """Registers the pipes that `exchange` would use with a poll object."""
    poll.register(self._stdout, select.POLLIN)
    if self._outbox:
      poll.register(self._stdin, select.POLLOUT)

  def exchange(self) -> tuple[tuple[bytes, float, bytes] | None, bool]:
    """Writes and reads as much as the pipes take and hold.

    Returns:
      A whole reply (status, CPU-seconds, JSON) or None, and whether the worker
      is alive.
    """
    try:
      while self._outbox and (sent := self._stdin.write(self._outbox)):
        self._outbox = self._outbox[sent:]
      while (part := self._stdout.read(1 << 16)) is not None:
        if not part:
          return None, False
        self._inbox += part
    except OSError:  # The worker closed its end.
      return None, False
    header_bytes = forkserver.REPLY.size
    if len(self._inbox) < header_bytes:
      return None, True
    status, secs, size = forkserver.REPLY.unpack_from(self._inbox)
    if len(self._inbox) < header_bytes + size:
      return None, True
    text = bytes(self._inbox[header_bytes:])
    self._inbox.clear()
    return (status, secs, text), True

  def kill(self):
    """Kills the worker and its forks: it leads a process group."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
    if not self.ready:
      text = (self._stderr.read() or b'').decode(errors='replace')
      self.start_error = text.strip().rpartition('\n')[2][:500]
    for pipe in self._pipes():
      pipe.close()


def _parse(text: bytes) -> dict | None:
  """Parses the JSON of a runner; None if it does not follow the protocol."""
  try:
    reply = json.loads(text)
  except ValueError:
    return None
  known = isinstance(reply, dict) and reply.keys() <= {'value', 'error'}
  return reply if reply and known else None


def _num_cores() -> int:
  """Counts the cores that this process may use, where the system says so."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
