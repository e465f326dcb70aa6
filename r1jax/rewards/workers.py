"""Worker processes with deadlines, for code that may hang or eat memory.

  with Pool('r1jax.rewards.math_worker') as pool:
    results = pool.map(jobs)

A job is JSON, and so is its result; `serve.py` is the worker's side of it. The
deadline is kept here, with SIGKILL, because nothing inside a process can stop
a product of huge integers. A worker that is killed or dies is replaced by one
that has started and warmed up in the background.
"""

import atexit
from collections import deque
from collections.abc import Sequence
from concurrent import futures
import dataclasses
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

_ROOT = Path(__file__).parents[2]  # The folder that holds the package.
_MAX_WORKERS = 8
_MAX_REPLY_BYTES = 1 << 24
_STILLBORN = 4  # So many in a row mean that none will start.


class WorkersError(RuntimeError):
  """No worker can be started; the text says what the last one said."""


@dataclasses.dataclass(frozen=True)
class Failure:
  """In a result's place: the job has none.

  Attributes:
    kind: 'timeout' or 'crash'.
    why: For a person.
  """

  kind: str
  why: str


_DIED = Failure('crash', 'the worker died')


class Pool:
  """Some workers, started when first needed.

  Args:
    module: Importable by name, with a function prepare() that returns the
      function from job to result. Workers import nothing else of ours.
    size: How many jobs run at once; None for one on each core, at most 8.
    spares: How many more wait, warm, to replace one that is killed.
    deadline_secs: Of one job, by the clock on the wall.
    memory_bytes: Of one worker's address space.
    start_secs: For a worker to start.
  """

  def __init__(self, module: str, size: int | None = None, spares: int = 1,
               deadline_secs: float = 2.0, memory_bytes: int = 2 << 30,
               start_secs: float = 60.0):
    self._module, self._memory_bytes = module, memory_bytes
    self._size = size or min(_cores(), _MAX_WORKERS)
    self._spares = spares
    self._deadline_secs, self._start_secs = deadline_secs, start_secs
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
    """Of the workers and the spares."""
    return [worker.process.pid for worker in self._workers]

  def map(self, jobs: Sequence[Any], total_secs: float = math.inf) -> list:
    """The jobs' results in their order, a Failure for each that has none.

    Callable from any thread; a second call waits for the first. It takes at
    most total_secs, whatever the jobs do. A job whose worker dies runs once
    more, so it should change nothing outside.

    Raises:
      WorkersError: the workers do not start.
    """
    frames = [_frame(job) for job in jobs]
    with self._lock:
      if self._closed:
        raise RuntimeError(f'workers of {self._module}: the pool is closed')
      try:
        return self._run(frames, time.monotonic() + total_secs)
      finally:  # After an error, nobody waits for what these would say.
        for worker in self._busy():
          self._discard(worker)

  def _run(self, frames: list[bytes], end: float) -> list:
    results: list[Any] = [None] * len(frames)
    waiting = deque(range(len(frames)))
    died: set[int] = set()  # Jobs whose worker died.
    while waiting or self._busy():
      self._staff(min(self._size, len(frames)) + self._spares)
      if time.monotonic() >= end:
        late = Failure('timeout', 'the batch had no time left')
        for job in [*waiting, *(worker.job for worker in self._busy())]:
          results[job] = late
        return results
      self._assign(waiting, frames)
      self._wait(end)
      for worker in list(self._workers):
        job = worker.job
        found = self._heard(worker)
        if found is None or job is None:
          continue
        if found[0] is _DIED and job not in died:
          died.add(job)  # Perhaps not its fault: memory is short, or someone
          waiting.appendleft(job)  # killed it. Once more, elsewhere.
        else:
          results[job] = found[0]
    return results

  def _busy(self) -> list['_Worker']:
    return [worker for worker in self._workers if worker.job is not None]

  def _staff(self, count: int):
    """Starts workers; they warm up by themselves."""
    while len(self._workers) < count:
      started = self._starter.submit(
          _Worker, self._module, self._memory_bytes, self._start_secs)
      self._workers.append(started.result())

  def _assign(self, waiting: deque, frames: list[bytes]):
    free = self._size - len(self._busy())
    for worker in list(self._workers):
      if not waiting or not free:
        return
      if worker.ready and worker.job is None:
        if worker.process.poll() is not None:  # It died between two jobs.
          self._discard(worker)
          continue
        worker.give(waiting.popleft(), frames, self._deadline_secs)
        free -= 1

  def _wait(self, end: float):
    """Until a worker says something, can be told more, or is late."""
    poll = select.poll()
    for worker in self._workers:
      worker.register(poll)
    until = min([end, *(worker.until for worker in self._workers)])
    poll.poll(max(0.0, min(until - time.monotonic(), 3600.0)) * 1000 + 1)

  def _heard(self, worker: '_Worker') -> tuple[Any] | None:
    """What became of a worker's job, in a tuple; None if nothing yet."""
    reply, alive = worker.exchange()
    if reply is not None:
      if not worker.ready:
        worker.ready, self._stillborn = True, 0
        worker.rest()
        return None
      worker.rest()
      if 'error' in reply:
        return Failure('crash', reply['error']),
      return reply['value'],
    late = time.monotonic() >= worker.until
    if alive and not late:
      return None
    self._discard(worker)
    if worker.ready:
      return (_DIED if not alive else Failure(
          'timeout', f'took more than {self._deadline_secs} s')),
    self._stillborn += 1
    if self._stillborn >= _STILLBORN:
      self._stillborn = 0
      raise WorkersError(
          f'workers of {self._module} do not start: '
          + (worker.last_words or f'not within {self._start_secs} s'))
    return None

  def _discard(self, worker: '_Worker'):
    self._workers.remove(worker)
    worker.kill()


class _Worker:
  """One process and what is on its way to and from it; never blocks.

  Attributes:
    ready: It has started.
    job: The index of the job that it works on, or None.
    until: When it is late with what it does.
  """

  def __init__(self, module: str, memory_bytes: int, start_secs: float):
    # By exec, and with nothing of our environment but where modules are. One
    # hash seed, so that the order of sets is not drawn anew in each process.
    paths = [str(_ROOT), *(path for path in sys.path if path)]
    self.process = subprocess.Popen(
        [sys.executable, '-P', '-m', 'r1jax.rewards.serve', module,
         str(memory_bytes), str(os.getpid())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={'PYTHONPATH': os.pathsep.join(paths), 'PYTHONHASHSEED': '0',
             'PATH': os.environ.get('PATH', ''), 'LANG': 'C.UTF-8'},
        cwd='/', bufsize=0,
        start_new_session=True)  # Ctrl-C is for the parent alone.
    for pipe in self._pipes():
      os.set_blocking(pipe.fileno(), False)
    self.ready, self.job = False, None
    self.until = time.monotonic() + start_secs
    self.last_words = ''
    self._outbox, self._inbox = memoryview(b''), bytearray()

  def _pipes(self):
    return self.process.stdin, self.process.stdout, self.process.stderr

  def give(self, job: int, frames: list[bytes], deadline_secs: float):
    self.job, self._outbox = job, memoryview(frames[job])
    self.until = time.monotonic() + deadline_secs

  def rest(self):
    self.job, self.until = None, math.inf

  def register(self, poll):
    poll.register(self.process.stdout, select.POLLIN)
    if self._outbox:
      poll.register(self.process.stdin, select.POLLOUT)

  def exchange(self) -> tuple[dict | None, bool]:
    """Writes and reads what it can: a whole reply or None, and whether the
    worker is alive and makes sense."""
    try:
      while self._outbox and (sent := self.process.stdin.write(self._outbox)):
        self._outbox = self._outbox[sent:]
      while (more := self.process.stdout.read(1 << 16)) is not None:
        if not more:
          return None, False
        self._inbox += more
    except OSError:  # It closed its end.
      return None, False
    if len(self._inbox) < 4:
      return None, True
    size = int.from_bytes(self._inbox[:4])
    if len(self._inbox) < 4 + size:
      return None, size <= _MAX_REPLY_BYTES
    try:
      reply = json.loads(self._inbox[4:4 + size])
    except ValueError:
      return None, False
    self._inbox.clear()
    return reply, True

  def kill(self):
    """Also what it started: it leads a process group."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
    if not self.ready:
      text = (self.process.stderr.read() or b'').decode(errors='replace')
      self.last_words = text.strip().rpartition('\n')[2][:500]
    for pipe in self._pipes():
      pipe.close()


def _cores() -> int:
  """Those that this process may use, where the system can say so."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _frame(message: Any) -> bytes:
  """Length-prefixed JSON; ASCII, so a lone surrogate passes."""
  text = json.dumps(message).encode('ascii')
  return len(text).to_bytes(4) + text
