"""A worker of `workers.py`, in its own process: it forks those that run jobs.

  python -m r1jax.workers.forkserver MODULE MEMORY_BYTES PARENT_PID

  this process ── template ── template … ── runner

MODULE.prepare() returns the function from job to result; it and all that it
imports are loaded once. A runner runs job after job. Where one takes too long
or kills it, the template that it was forked from forks the next, within
milliseconds. After some jobs a runner becomes a template itself: what it has
learned, as the tables of a parser, is lost with no later runner.

This process keeps the time, on the runner's CPU clock, and passes bytes on: it
reads nothing that a job wrote, and runs nothing of it. This file imports
little: every worker does.

  there   ASK, and a job: JSON
  back    TELL, and JSON, if it is DONE: {"value": …} or {"error": …}
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

ASK = struct.Struct('>ddI')  # Seconds by the CPU, by the wall; bytes behind.
TELL = struct.Struct('>cdI')  # What happened, CPU-seconds, bytes behind.
READY, DONE, LATE, DIED = b'r', b'd', b'l', b'x'
MAX_BYTES = 1 << 24  # Of a result.

_PR_SET_PDEATHSIG = 1
_BIRTH = struct.Struct('>I')  # Of a runner: its process; its channel comes too.
_FRAME = struct.Struct('>II')  # Number of the job, the same back; bytes behind.
_LOOK_SECS = 0.001  # The shortest wait between two looks at the clock.
_BIRTH_SECS = 10.0  # Longer than any fork takes.
# After so many jobs a runner becomes a template; after twice as many the next,
# and so on, up to the last.
_LEARNED, _LEARNED_LAST = 16, 4096


def confine(memory_bytes: int, parent_pid: int):
  """Bounds the memory, leaves no core dump, dies with the parent."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if sys.platform == 'linux':
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
  _die_with(parent_pid)


def main(module: str, memory_bytes: str, parent_pid: str):
  confine(int(memory_bytes), int(parent_pid))
  # What a job prints or reads must not meet the messages.
  jobs, told = os.fdopen(os.dup(0), 'rb'), os.fdopen(os.dup(1), 'wb')
  nothing = os.open(os.devnull, os.O_RDWR)
  os.dup2(nothing, 0)
  os.dup2(nothing, 1)
  handle = importlib.import_module(module).prepare()
  os.dup2(nothing, 2)  # Until here, for the reason why it does not start.
  gc.collect()
  runner = _Runner(handle)
  _tell(told, READY)
  while len(head := jobs.read(ASK.size)) == ASK.size:
    cpu_secs, wall_secs, size = ASK.unpack(head)
    happened, secs, result = runner.run(jobs.read(size), cpu_secs, wall_secs)
    _tell(told, happened, secs, result)
    runner.settle(happened)


class _Runner:
  """The process that runs jobs now, watched from outside."""

  def __init__(self, handle: Callable[[Any], Any]):
    self._births, theirs = socket.socketpair()
    self._births.settimeout(_BIRTH_SECS)
    self._learned = _LEARNED
    parent = os.getpid()
    if not os.fork():
      try:
        _die_with(parent)
        _stand(handle, theirs)
      finally:
        os._exit(1)
    theirs.close()  # Without a template this process ends, and so does all.
    self._born()

  def _born(self):
    """Takes the next runner."""
    packet, (channel,), _, _ = socket.recv_fds(self._births, _BIRTH.size, 1)
    (self._pid,) = _BIRTH.unpack(packet)
    self._channel = socket.socket(fileno=channel)
    self._clock = _cpu_clock(self._pid)
    self._number = 0  # Of its jobs.

  def run(
    self, job: bytes, cpu_secs: float, wall_secs: float
  ) -> tuple[bytes, float, bytes]:
    """What happened, the CPU-seconds that it took, and the result."""
    self._number += 1
    took, found, want = 0.0, bytearray(), _FRAME.size
    try:
      began, end = self._clock(), time.monotonic() + wall_secs
      self._channel.settimeout(wall_secs)
      self._channel.sendall(_FRAME.pack(self._number, len(job)) + job)
      while len(found) < want:
        took = self._clock() - began
        left = min(cpu_secs - took, end - time.monotonic())
        if left <= 0:
          return LATE, took, b''
        # One thread uses no more CPU time than passes on the wall.
        self._channel.settimeout(max(left, _LOOK_SECS))
        try:
          some = self._channel.recv(1 << 16)
        except TimeoutError:
          continue
        found += some
        if len(found) >= _FRAME.size:
          number, size = _FRAME.unpack_from(found)
          want = _FRAME.size + size
          if number != self._number or size > MAX_BYTES:
            return DIED, took, b''
        if not some or len(found) > want:
          return DIED, took, b''
      return DONE, self._clock() - began, bytes(found[_FRAME.size :])
    except TimeoutError:  # It is stopped, and does not even take the job.
      return LATE, took, b''
    except OSError:  # It is gone, and so is its clock.
      return DIED, took, b''

  def settle(self, happened: bytes):
    """After a job: the runner goes on, becomes a template, or is killed."""
    if happened == DONE and self._number < self._learned:
      return
    if happened == DONE:
      self._learned = (
        2 * self._learned if self._learned < _LEARNED_LAST else sys.maxsize
      )
    else:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self._pid, signal.SIGKILL)
    self._channel.close()
    self._born()


def _cpu_clock(pid: int) -> Callable[[], float]:
  """The CPU-seconds of a process; the wall's where it has no such clock."""
  clock = ctypes.c_int()
  if sys.platform == 'linux' and not ctypes.CDLL(None).clock_getcpuclockid(
    pid, ctypes.byref(clock)
  ):
    return lambda: time.clock_gettime(clock.value)
  return time.monotonic


def _die_with(parent_pid: int):
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent_pid:  # It was gone before the line above.
    os._exit(1)


def _tell(
  told: BinaryIO, happened: bytes, secs: float = 0.0, result: bytes = b''
):
  told.write(TELL.pack(happened, secs, len(result)) + result)
  told.flush()


# --- In templates and runners ------------------------------------------------


def _stand(handle: Callable[[Any], Any], births: socket.socket):
  """A template: forks runners, one after another, each as good as itself."""
  os.dup2(births.fileno(), 3)  # And nothing else of the parent's.
  os.closerange(4, 1024)
  births = socket.socket(fileno=3)
  while True:
    gc.freeze()  # What is loaded stays one copy in all forks.
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if pid := os.fork():
      socket.send_fds(births, [_BIRTH.pack(pid)], [ours.fileno()])
      ours.close()
      theirs.close()
      os.waitpid(pid, 0)
    else:
      _die_with(parent)
      ours.close()
      with theirs:
        _work(handle, theirs.fileno())  # Until it is to be a template itself.


def _work(handle: Callable[[Any], Any], channel: int):
  stream = open(channel, 'r+b', buffering=0, closefd=False)
  while len(head := _exactly(stream, _FRAME.size)) == _FRAME.size:
    number, size = _FRAME.unpack(head)
    job = json.loads(_exactly(stream, size))
    try:
      reply = {'value': handle(job)}
    except MemoryError:  # Nobody knows what else is missing now.
      os._exit(1)
    except Exception as error:
      reply = {'error': f'{type(error).__name__}: {error}'[:500]}
    text = json.dumps(reply).encode('ascii')
    left = memoryview(_FRAME.pack(number, len(text)) + text)
    while left:
      left = left[stream.write(left) :]


def _exactly(stream: BinaryIO, size: int) -> bytes:
  found = bytearray()
  while len(found) < size and (some := stream.read(size - len(found))):
    found += some
  return bytes(found)


if __name__ == '__main__':
  main(*sys.argv[1:])
