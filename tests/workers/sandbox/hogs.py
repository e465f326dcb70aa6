"""Programs that take time, memory or room, and what a sandbox may report."""

# Name → (program, the statuses that a sandbox may report).
HOGS = {
  'an endless loop': ('while True: pass', ('timeout',)),
  'ignored signals': (
    """
import signal
for n in range(1, 65):
  try:
    signal.signal(n, signal.SIG_IGN)
  except (OSError, ValueError):
    pass
while True: pass""",
    ('timeout',),
  ),
  'an endless sleep': (
    """
import time
while True:
  try: time.sleep(1000)
  except BaseException: pass""",
    ('timeout',),
  ),
  'a loop in C': (
    'import re; re.match(r"(a+)+$", "a" * 60 + "b")',
    ('timeout',),
  ),
  'an endless exit': (
    """
import atexit
@atexit.register
def stay():
  while True: pass""",
    ('timeout',),
  ),
  'waiting for more input': ('while True: input()', ('error',)),
  'memory': ('x = bytearray(1 << 30)', ('memory',)),
  'much memory, slowly': (
    """
x = []
while True: x.append(bytearray(1 << 24))""",
    ('memory',),
  ),
  'mapped memory': (
    """
import mmap
x = [mmap.mmap(-1, 1 << 26) for _ in range(64)]""",
    ('error', 'memory'),
  ),
  'shared memory': (
    """
import mmap
x = [mmap.mmap(-1, 1 << 26, mmap.MAP_SHARED) for _ in range(64)]""",
    ('error', 'memory'),
  ),
  'a flood': ('while True: print("x" * 10000)', ('output',)),
  'a flood of bytes': (
    """
import os
while True: os.write(1, b"\\0" * 60000)""",
    ('output',),
  ),
  'a deep recursion': (
    """
import sys
sys.setrecursionlimit(10**9)
def f(): return [f()]
f()""",
    ('error', 'memory', 'timeout'),
  ),
  'a deep recursion in C': (
    """
import sys
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**5): x = [x]
repr(x)""",
    ('error', 'memory'),
  ),
  'a fork bomb': (
    """
import os
while True: os.fork()""",
    ('forbidden',),
  ),
  'many threads': (
    """
import threading, time
for _ in range(10**6): threading.Thread(target=time.sleep, args=[99]).start()
""",
    ('forbidden', 'memory'),
  ),
  'a thread that stays': (
    """
import threading
def stay():
  while True: pass
threading.Thread(target=stay).start()""",
    ('timeout',),
  ),
  'a thread that sleeps': (
    """
import threading, time
threading.Thread(target=time.sleep, args=[1000]).start()""",
    ('timeout',),
  ),
  'a thread that outlives the main one': (
    """
import ctypes, threading
def stay():
  while True: pass
threading.Thread(target=stay).start()
ctypes.CDLL(None).syscall(60, 0)""",
    ('timeout',),
  ),
  'threads that respawn': (
    """
import threading
def spawn():
  while True:
    try: threading.Thread(target=spawn, daemon=True).start()
    except RuntimeError: pass
spawn()""",
    ('timeout', 'memory'),
  ),
  'a deadlock': (
    """
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()""",
    ('timeout',),
  ),
  'short naps': ('import time\nwhile True: time.sleep(0.001)', ('timeout',)),
  'an event loop without an end': (
    """
import asyncio
asyncio.new_event_loop().run_forever()""",
    ('timeout',),
  ),
  'the memory of threads': (
    """
import threading
def take(): x.append(bytearray(1 << 27))
x = []
for _ in range(64):
  thread = threading.Thread(target=take)
  thread.start()
  thread.join()
assert len(x) < 8
raise MemoryError""",
    ('memory',),
  ),
  'a flood of threads': (
    """
import threading
def flood():
  while True: print("x" * 10000)
for _ in range(8): threading.Thread(target=flood).start()""",
    ('output',),
  ),
  'many descriptors': (
    """
import os
while True: os.dup(0)""",
    ('error',),
  ),
  'a crash': ('import ctypes; ctypes.string_at(0)', ('error',)),
  'an abort': ('import os; os.abort()', ('error',)),
}
