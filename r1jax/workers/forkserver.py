"""The fork server: one worker process, whose forks run the jobs.

  python -m r1jax.workers.forkserver MODULE MEMORY_BYTES PARENT_PID [ARGUMENT…]

  this process (monitor) ── zygote ── zygote … ── runner

MODULE.prepare(ARGUMENT…) returns the function from job to result; that function and all
that it imports are loaded once, in the first zygote (a process that only forks
others, as on Android). A runner is a fork of the zygote and runs one job after
another. If a job takes too long or kills its runner, the zygote forks the next
runner within milliseconds. After a number of jobs a runner is promoted to a
zygote itself, so that later runners inherit what it has cached, such as the
tables of a parser.

The monitor measures time on the runner's CPU clock and passes bytes on. It
parses nothing that a job wrote and runs none of its code. This file imports
little, since every worker imports it.

Messages on standard input and output:

  request   REQUEST header, then the job as JSON
  reply     REPLY header, then, for DONE, JSON: {"value": …} or {"error": …}
"""

from collections.abc import Callable
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from typing import Any, BinaryIO

from r1jax.workers import clock

# Limit in CPU-seconds, limit in wall-clock seconds, bytes that follow.
REQUEST = struct.Struct('>ddI')
# Status, CPU-seconds taken, bytes that follow.
REPLY = struct.Struct('>cdI')
READY, DONE, TIMEOUT, CRASHED = b'r', b'd', b't', b'c'  # The statuses.
MAX_RESULT_BYTES = 1 << 24

_PR_SET_PDEATHSIG = 1
_NEW_RUNNER = struct.Struct('>I')  # Process id; its channel's fd comes along.
_FRAME = struct.Struct('>II')  # Job number (echoed back), bytes that follow.
_MIN_POLL_SECS = 0.001  # The shortest wait between two looks at the clock.
_FORK_SECS = 10.0  # Longer than any fork takes.
# A runner is promoted to a zygote after so many jobs, the next one after twice
# as many, and so on; beyond the last number none is.
_PROMOTE_JOBS, _PROMOTE_JOBS_LAST = 16, 4096


def limit_process(memory_bytes: int, parent_pid: int):
  """Limits this process's memory, forbids core dumps, ties it to its parent."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if sys.platform == 'linux':
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
  _die_with(parent_pid)


def main(module: str, memory_bytes: str, parent_pid: str, *arguments: str):
  """Serves requests until standard input closes; see the module's docstring."""
  limit_process(int(memory_bytes), int(parent_pid))
  # Output and input of a job must not mix with the messages.
  requests, replies = os.fdopen(os.dup(0), 'rb'), os.fdopen(os.dup(1), 'wb')
  devnull = os.open(os.devnull, os.O_RDWR)
  os.dup2(devnull, 0)
  os.dup2(devnull, 1)
  run_job = importlib.import_module(module).prepare(*arguments)
  os.dup2(devnull, 2)  # Until here, stderr says why a worker does not start.
  gc.collect()
  monitor = _RunnerMonitor(run_job)
  _send_reply(replies, READY)
  while len(header := requests.read(REQUEST.size)) == REQUEST.size:
    cpu_secs, wall_secs, size = REQUEST.unpack(header)
    status, secs, result = monitor.run(requests.read(size), cpu_secs, wall_secs)
    _send_reply(replies, status, secs, result)
    monitor.recycle(status)


class _RunnerMonitor:
  """Sends jobs to the current runner and watches it from outside."""

  def __init__(self, run_job: Callable[[Any], Any]):
    self._new_runners, zygote_end = socket.socketpair()
    self._new_runners.settimeout(_FORK_SECS)
    self._promote_after = _PROMOTE_JOBS
    parent = os.getpid()
    if not os.fork():
      try:
        _die_with(parent)
        _zygote_loop(run_job, zygote_end)
      finally:
        os._exit(1)
    zygote_end.close()  # If the zygote dies, receiving fails and all ends.
    self._accept_runner()

  def _accept_runner(self):
    """Receives the next runner from the zygote."""
    packet, (channel,), _, _ = socket.recv_fds(
      self._new_runners, _NEW_RUNNER.size, 1
    )
    (self._pid,) = _NEW_RUNNER.unpack(packet)
    self._channel = socket.socket(fileno=channel)
    self._clock = clock.cpu_clock(self._pid)
    self._num_jobs = 0

  def run(
    self, job: bytes, cpu_secs: float, wall_secs: float
  ) -> tuple[bytes, float, bytes]:
    """Runs a job; returns its status, its CPU-seconds and its result."""
    self._num_jobs += 1
    used, reply, reply_bytes = 0.0, bytearray(), _FRAME.size
    try:
      start, end = self._clock(), time.monotonic() + wall_secs
      self._channel.settimeout(wall_secs)
      self._channel.sendall(_FRAME.pack(self._num_jobs, len(job)) + job)
      while len(reply) < reply_bytes:
        used = self._clock() - start
        left = min(cpu_secs - used, end - time.monotonic())
        if left <= 0:
          return TIMEOUT, used, b''
        # One thread uses no more CPU time than passes on the wall clock.
        self._channel.settimeout(max(left, _MIN_POLL_SECS))
        try:
          part = self._channel.recv(1 << 16)
        except TimeoutError:
          continue
        reply += part
        if len(reply) >= _FRAME.size:
          number, size = _FRAME.unpack_from(reply)
          reply_bytes = _FRAME.size + size
          if number != self._num_jobs or size > MAX_RESULT_BYTES:
            return CRASHED, used, b''
        if not part or len(reply) > reply_bytes:
          return CRASHED, used, b''
      return DONE, self._clock() - start, bytes(reply[_FRAME.size :])
    except TimeoutError:  # The runner is stopped and does not take the job.
      return TIMEOUT, used, b''
    except OSError:  # The runner is gone, and so is its clock.
      return CRASHED, used, b''

  def recycle(self, status: bytes):
    """After a job: keeps the runner, promotes it to a zygote, or kills it."""
    if status == DONE and self._num_jobs < self._promote_after:
      return
    if status == DONE:
      self._promote_after = (
        2 * self._promote_after
        if self._promote_after < _PROMOTE_JOBS_LAST
        else sys.maxsize
      )
    else:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self._pid, signal.SIGKILL)
    self._channel.close()  # A living runner becomes a zygote when it closes.
    self._accept_runner()


def _die_with(parent_pid: int):
  """Makes the kernel kill this process when its parent ends."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent_pid:  # It was gone before the line above.
    os._exit(1)


def _send_reply(
  replies: BinaryIO, status: bytes, secs: float = 0.0, result: bytes = b''
):
  replies.write(REPLY.pack(status, secs, len(result)) + result)
  replies.flush()


# --- In zygotes and runners ---------------------------------------------------


def _zygote_loop(run_job: Callable[[Any], Any], new_runners: socket.socket):
  """Forks one runner after another; a promoted runner goes on with this loop."""
  os.dup2(new_runners.fileno(), 3)  # No other descriptor of the parent stays.
  os.closerange(4, 1024)
  new_runners = socket.socket(fileno=3)
  while True:
    gc.freeze()  # Forks share the loaded modules' memory.
    monitor_end, runner_end = socket.socketpair()
    parent = os.getpid()
    if pid := os.fork():
      socket.send_fds(
        new_runners, [_NEW_RUNNER.pack(pid)], [monitor_end.fileno()]
      )
      monitor_end.close()
      runner_end.close()
      os.waitpid(pid, 0)
    else:
      _die_with(parent)
      monitor_end.close()
      with runner_end:
        _run_jobs(run_job, runner_end.fileno())  # Returns when promoted.


def _run_jobs(run_job: Callable[[Any], Any], channel: int):
  """Runs jobs from a channel until it closes."""
  stream = open(channel, 'r+b', buffering=0, closefd=False)
  while len(header := _read_exactly(stream, _FRAME.size)) == _FRAME.size:
    number, size = _FRAME.unpack(header)
    job = json.loads(_read_exactly(stream, size))
    try:
      reply = {'value': run_job(job)}
    except MemoryError:  # Other parts of the process may be damaged by now.
      os._exit(1)
    except Exception as error:
      reply = {'error': f'{type(error).__name__}: {error}'[:500]}
    text = json.dumps(reply).encode('ascii')
    unsent = memoryview(_FRAME.pack(number, len(text)) + text)
    while unsent:
      unsent = unsent[stream.write(unsent) :]


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
  """Reads `size` bytes, or fewer where the stream ends."""
  data = bytearray()
  while len(data) < size and (part := stream.read(size - len(data))):
    data += part
  return bytes(data)


if __name__ == '__main__':
  main(*sys.argv[1:])
