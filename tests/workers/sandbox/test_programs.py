"""A program runs in each tier as it would elsewhere."""

import os
import subprocess
import sys

import pytest

from r1jax.errors import UserError
from r1jax.workers.sandbox.sandbox import Sandbox
from tests.workers.sandbox.processes import SECS


def test_programs_run_as_programs_do(sandbox):
  source = """
import sys, dataclasses, heapq, collections, bisect, functools, decimal, email
from typing import List, Optional
@dataclasses.dataclass(order=True)
class Pair:
  a: int
  b: Optional[int] = None
if __name__ == '__main__':
  n = int(input())
  print(n, Pair(n), *sys.stdin.read().split())
  print('é', file=sys.stderr)
  sys.exit()
"""
  with sandbox.slot() as slot:
    reply = slot.run_script(source, '1\na b\nc é', SECS)
    assert reply.value == '1 Pair(a=1, b=None) a b c é\n', reply
    read = 'print(open(0).read().split())'
    assert slot.run_script(read, 'a\nb', SECS).value == "['a', 'b']\n"
    big = 'x' * (1 << 20)
    assert (
      slot.run_script('print(len(input()))', big, SECS).value == '1048576\n'
    )
    assert slot.run_script('print("unread")', big, SECS).value == 'unread\n'
    assert (
      slot.run_script('import sys; sys.exit(3)', '', SECS).status == 'error'
    )
    assert slot.run_script('1/0', '', SECS).status == 'error'
    assert slot.run_script('x = "\0"', '', SECS).status == 'error'
    assert slot.run_script('x = "\ud800"', '', SECS).status == 'error'


# Name → (program, its output) with the input 'hello world\\n7\\n'.
ORDINARY = {
  'exit': ('print(1); exit()', '1\n'),
  'exit with a status': ('print(1); exit(0)', '1\n'),
  'quit': ('print(1); quit()', '1\n'),
  'exit in a function': (
    """
def main():
  print(input())
  exit()
main()""",
    'hello world\n',
  ),
  'exit is a name': ('print(callable(exit), callable(quit))', 'True True\n'),
  '/dev/stdin': ('print(open("/dev/stdin").readline())', 'hello world\n\n'),
  '/dev/stdin as sys.stdin': (
    'import sys; sys.stdin = open("/dev/stdin"); print(input(), input())',
    'hello world 7\n',
  ),
  '/dev/stdin in binary': (
    'print(open("/dev/stdin", "rb").read()[:5])',
    "b'hello'\n",
  ),
  '/dev/stdin of a path': (
    'import pathlib; print(pathlib.Path("/dev/stdin").read_text()[:5])',
    'hello\n',
  ),
  '/dev/stdin of os.open': (
    'import os; print(os.read(os.open("/dev/stdin", os.O_RDONLY), 5))',
    "b'hello'\n",
  ),
  '/dev/stdin exists': (
    'import os; print(os.path.exists("/dev/stdin"), os.stat(0).st_size, '
    'os.path.getsize("/dev/stdin"))',
    'True 14 14\n',
  ),
  '/dev/fd/0': ('print(len(open("/dev/fd/0").readlines()))', '2\n'),
  '/proc/self/fd/0': ('print(open("/proc/self/fd/0").read(5))', 'hello\n'),
  'descriptor 0': ('print(open(0).read(5))', 'hello\n'),
  '/dev/stdout': ('open("/dev/stdout", "w").write("7")', '7'),
  '/dev/stdout kept open': ('f = open("/dev/stdout", "w"); f.write("7")', '7'),
  '/dev/null': (
    'import sys; sys.stderr = open("/dev/null", "w"); print(1); '
    'print(2, file=sys.stderr)',
    '1\n',
  ),
  'the size of the input': (
    'import io, os; read = io.BytesIO(os.read(0, os.fstat(0).st_size))\n'
    'print(read.readline(), int(read.readline()))',
    "b'hello world\\n' 7\n",
  ),
  'fileinput': (
    'import fileinput; print([line.strip() for line in fileinput.input()])',
    "['hello world', '7']\n",
  ),
  'the output wrapped': (
    """
import io, os, sys
class Writer(io.IOBase):
  def __init__(self): self.buffer = io.BytesIO(); self.writable = lambda: True
  def write(self, text): self.buffer.write(text.encode())
  def flush(self): os.write(1, self.buffer.getvalue())
sys.stdout = Writer()
sys.stdout.write('7')""",
    '7',
  ),
  'recursion in a thread': (
    """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(1 << 27)
def depth(n): return 0 if n == 0 else 1 + max([depth(n - 1)])
thread = threading.Thread(target=lambda: print(depth(50000)))
thread.start()
thread.join()""",
    '50000\n',
  ),
  'a thread that nobody joins': (
    """
import sys, threading
sys.setrecursionlimit(1 << 25)
threading.stack_size(1 << 29)
def main(): print(input())
threading.Thread(target=main).start()""",
    'hello world\n',
  ),
  'a thread that fails': (
    """
import threading
threading.Thread(target=lambda: 1 / 0).start()
print(1)""",
    '1\n',
  ),
  'a queue of threads': (
    """
import queue, threading
tasks, results = queue.Queue(), []
def work():
  while (task := tasks.get()) is not None: results.append(task * task)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for task in range(20): tasks.put(task)
for _ in threads: tasks.put(None)
for thread in threads: thread.join()
print(sum(results))""",
    '2470\n',
  ),
  'a timer': (
    'import threading; threading.Timer(0.01, lambda: print(1)).start()',
    '1\n',
  ),
  'asyncio': (
    """
import asyncio
async def square(x):
  await asyncio.sleep(0.001 * (5 - x))
  return x * x
async def main(): print(await asyncio.gather(*map(square, range(5))))
asyncio.run(main())""",
    '[0, 1, 4, 9, 16]\n',
  ),
  'asyncio with a time limit': (
    """
import asyncio
async def main():
  try: await asyncio.wait_for(asyncio.sleep(9), 0.01)
  except asyncio.TimeoutError: print('late')
asyncio.run(main())""",
    'late\n',
  ),
  'asyncio in threads': (
    """
import asyncio
async def main(): print(await asyncio.to_thread(input))
asyncio.run(main())""",
    'hello world\n',
  ),
  'an event loop of old': (
    """
import asyncio
loop = asyncio.new_event_loop()
async def seven(): return 7
print(loop.run_until_complete(seven()))
loop.close()""",
    '7\n',
  ),
  'a queue of asyncio': (
    """
import asyncio
async def main():
  tasks = asyncio.Queue()
  async def put():
    for i in range(3): await tasks.put(i)
  asyncio.create_task(put())
  print([await tasks.get() for _ in range(3)])
asyncio.run(main())""",
    '[0, 1, 2]\n',
  ),
  'a pool of threads': (
    """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(40) as pool:
  print(sum(pool.map(lambda x: x * x, range(100))))""",
    '328350\n',
  ),
  'futures as they complete': (
    """
from concurrent import futures
with futures.ThreadPoolExecutor() as pool:
  jobs = [pool.submit(pow, 2, n) for n in range(9)]
  print(sum(job.result() for job in futures.as_completed(jobs)))""",
    '511\n',
  ),
  'a process executor': (
    """
from concurrent.futures import ProcessPoolExecutor
def square(x): return x * x
if __name__ == '__main__':
  with ProcessPoolExecutor(4) as pool: print(list(pool.map(square, [1, 2])))""",
    '[1, 4]\n',
  ),
  'a pool of processes': (
    """
import multiprocessing
def square(x): return x * x
if __name__ == '__main__':
  with multiprocessing.Pool(2) as pool: print(pool.map(square, range(3)))""",
    '[0, 1, 4]\n',
  ),
  'a thread pool of multiprocessing': (
    """
from multiprocessing.pool import ThreadPool
pool = ThreadPool(4)
print(pool.apply_async(len, ('ab',)).get(), pool.starmap(pow, [(2, 3)]))
pool.close()
pool.join()""",
    '2 [8]\n',
  ),
}


@pytest.mark.parametrize('name', ORDINARY)
def test_ordinary_programs_run(sandbox, name):
  program, output = ORDINARY[name]
  with sandbox.slot() as slot:
    reply = slot.run_script(program, 'hello world\n7\n', SECS)
  assert (reply.status, reply.value) == ('ok', output), reply.message


def test_the_streams_of_calls_are_null_devices(sandbox):
  source = """
import os, sys
def streams():
  sys.stdout.write('x' * 99999)
  sys.stderr.write('x' * 99999)
  return [os.read(0, 9), open('/dev/stdin').read(), os.fstat(0).st_size]"""
  with (
    sandbox.slot() as slot,
    slot.call_session([('p', source)], SECS) as calls,
  ):
    assert calls.call('streams()', SECS).value == [{'bytes': ''}, '', 0]


def test_a_prelude_runs_before_a_script_in_its_module(sandbox):
  with sandbox.slot() as slot:
    reply = slot.run_script(
      'from __future__ import annotations\n'
      'def f(x: List[int]) -> deque: print(gcd(4, 6), __name__)\nf([])',
      '',
      SECS,
      prelude='from math import *',
    )
    assert reply.value == '2 __main__\n', reply.message


@pytest.mark.slow
def test_time_that_a_program_waits_for_a_core_does_not_count(sandbox):
  work = 'import time\nwhile time.process_time() < 0.4: pass\nprint(1)'
  others = [
    subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    for _ in range(3 * os.cpu_count())
  ]
  try:
    with sandbox.slot() as slot:
      reply = slot.run_script(work, '', 1.0)
      assert reply.status == 'ok' and 0.2 < reply.secs < 1
      reply = slot.run_script('while True: pass', '', 0.2)
      assert reply.status == 'timeout'
  finally:
    for other in others:
      other.kill()
      other.wait()


@pytest.mark.skipif(
  os.geteuid() != 0
  and subprocess.run(['unshare', '--user', 'true']).returncode != 0,
  reason='without user namespaces, the threads of a user count together',
)
def test_a_program_may_start_threads_whatever_another_one_starts(sandbox):
  source = """
import _thread
gate = _thread.allocate_lock()
gate.acquire()
_thread.stack_size(1 << 16)
def start(count):
  try:
    for number in range(count):
      _thread.start_new_thread(gate.acquire, ())
  except RuntimeError:
    return number
  return count"""
  with (
    Sandbox(slots=2, tier=sandbox.tier) as made,
    made.slot() as slot,
    made.slot() as other_slot,
    slot.call_session([('p', source)], SECS) as calls,
    other_slot.call_session([('p', source)], SECS) as other_calls,
  ):
    assert 200 < other_calls.call('start(2000)', SECS).value < 400
    assert calls.call('start(100)', SECS).value == 100


def test_programs_import_the_packages_that_an_option_names(
  sandbox, target, tmp_path, monkeypatch
):
  folder = tmp_path / 'packages'
  (folder / 'seven').mkdir(parents=True)
  (folder / 'seven/__init__.py').write_text('from seven.inner import VALUE')
  (folder / 'seven/inner.py').write_text('VALUE = 7')
  (folder / 'seven/later.py').write_text('VALUE = 8')
  (folder / 'other.py').write_text('')
  monkeypatch.syspath_prepend(str(folder))
  numpy = """
import numpy as np
a = np.loadtxt('/dev/stdin', dtype=int)
print(a.sum(), np.linalg.det(np.eye(3)), (np.ones((200, 200)) @ np.ones(200))[0],
      np.sort(np.random.default_rng(0).permutation(3)), np.fft.fft([1, 0])[0])"""
  programs = {
    numpy: '6 1.0 200.0 [0 1 2] (1+0j)\n',
    'import seven, seven.later; print(seven.VALUE, seven.later.VALUE)': '7 8\n',
  }
  with (
    Sandbox(1, sandbox.tier, packages=('numpy', 'seven')) as made,
    made.slot() as slot,
  ):
    assert made.packages == ('numpy', 'seven')
    for program, output in programs.items():
      reply = slot.run_script(program, '1 2 3', SECS)
      assert (reply.status, reply.value) == ('ok', output), reply.message
    for program in (
      'import other',
      'import pytest',
      f'open({str(folder / "seven/new.py")!r}, "w")',
      f'open({str(target)!r})',
      'import numpy, os; os.fork()',
      'import numpy; numpy.memmap("/tmp/r1jax-escaped", mode="w+", shape=9)',
    ):
      assert slot.run_script(program, '', SECS).status in ('error', 'forbidden')
  with sandbox.slot() as slot:
    assert slot.run_script('import numpy', '', SECS).status == 'error'


@pytest.mark.parametrize('name', ['no_such_package', 'a b', '../numpy', ''])
def test_a_package_that_is_not_installed_is_named(name):
  with pytest.raises(UserError, match='data.code_packages'):
    Sandbox(1, packages=(name,))


def test_a_set_has_one_order_and_random_one_seed(sandbox):
  source = 'import random; print({"a", "b", "c", "d"}, random.random())'
  with sandbox.slot() as slot:
    first = slot.run_script(source, '', SECS)
    slot.stop()
    assert slot.run_script(source, '', SECS) == first and first.status == 'ok'
