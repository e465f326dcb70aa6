"""A worker of `workers.py`, in its own process: limits first, then jobs.

  python -m r1jax.rewards.serve MODULE MEMORY_BYTES PARENT_PID

MODULE.prepare() returns the function from job to result. Each message is JSON
behind four bytes of its length. This file imports little: every worker does.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1


def confine(memory_bytes: int, parent_pid: int):
  """Bounds the memory, leaves no core dump, dies with the parent."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if sys.platform == 'linux':
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent_pid:  # It was gone before the line above.
    sys.exit(1)


def main(module: str, memory_bytes: str, parent_pid: str):
  confine(int(memory_bytes), int(parent_pid))
  # What a job prints or reads must not meet the messages.
  jobs, replies = os.fdopen(os.dup(0), 'rb'), os.fdopen(os.dup(1), 'wb')
  nothing = os.open(os.devnull, os.O_RDWR)
  os.dup2(nothing, 0)
  os.dup2(nothing, 1)
  handle = importlib.import_module(module).prepare()
  os.dup2(nothing, 2)  # Until here, for the reason why it does not start.
  _send(replies, {'ready': True})
  while (job := _receive(jobs)) is not None:
    try:
      reply = {'value': handle(job)}
    except MemoryError:  # Nobody knows what else is missing now.
      os._exit(1)
    except Exception as error:
      reply = {'error': f'{type(error).__name__}: {error}'[:500]}
    _send(replies, reply)


def _send(replies: BinaryIO, message: dict):
  text = json.dumps(message).encode('ascii')
  replies.write(len(text).to_bytes(4) + text)
  replies.flush()


def _receive(jobs: BinaryIO) -> Any | None:
  """The next job's JSON, or None at the end of them."""
  head = jobs.read(4)
  if len(head) < 4:
    return None
  return json.loads(jobs.read(int.from_bytes(head)))


if __name__ == '__main__':
  main(*sys.argv[1:])
