"""The jobs that test_pool.py runs in workers, well-behaved ones and others."""

import os
import signal
import sys
import time


def prepare():
  return handle


_CACHE = []


def _sockets():
  return [
    fd
    for fd in range(3, 32)
    if os.path.exists(f'/proc/self/fd/{fd}')
    and os.readlink(f'/proc/self/fd/{fd}').startswith('socket')
  ]


def handle(job):
  kind, value = job
  if kind == 'sleep':
    time.sleep(value)
  elif kind == 'work':  # CPU-seconds.
    end = time.process_time() + value
    while time.process_time() < end:
      pass
  elif kind == 'cache':
    _CACHE.append(value)
    return len(_CACHE)
  elif kind == 'pid':
    return os.getpid()
  elif kind == 'stop':
    os.kill(os.getpid(), signal.SIGSTOP)
  elif kind == 'garble':  # Writes into the channel of its replies.
    os.write(max(_sockets()), b'\0\0\0\0\0\0\0\7garbage')
  elif kind == 'hang':  # In C, where no signal handler runs.
    return len(str(9**9**value))
  elif kind == 'eat':
    kept = []
    while True:
      kept.append(bytearray(1 << 24))
  elif kind == 'exit':
    os._exit(value)
  elif kind == 'raise':
    raise ValueError(value)
  elif kind == 'talk':
    print(value)
    print(value, file=sys.stderr)
    return sys.stdin.read()
  elif kind == 'modules':
    return [name for name in value if name in sys.modules]
  elif kind == 'env':
    return sorted(os.environ)
  return value
