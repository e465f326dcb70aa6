"""What the workers of test_workers.py run: jobs that behave and that do not."""

import os
import sys
import time


def prepare():
  return handle


def handle(job):
  kind, value = job
  if kind == 'sleep':
    time.sleep(value)
  elif kind == 'hang':  # In C, where no signal handler runs.
    return len(str(9 ** 9 ** value))
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
