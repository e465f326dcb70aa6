"""Python as a program finds it in the sandbox.

A program that stays within the limits of the sandbox runs there as it would
elsewhere, although there are no devices, sockets and further processes:

  exit(), quit()          exist, as in a Python that has read its site module
  open('/dev/stdin')      opens the standard input again; also /dev/stdout,
                          /dev/stderr, /dev/null and /dev/fd/0
  threads                 run; a stack that would not fit is made smaller
  asyncio                 its event loop waits for threads and timers, not for
                          sockets
  pools of processes      run their jobs in threads

This file runs inside the sandbox: it imports only the standard library.
"""

import _sitebuiltins
import _thread
import builtins
import contextlib
import errno
import gc
import importlib
import io
import os
import pkgutil
import queue
import selectors
import sys
import threading
from typing import Any
import warnings

# Imported before confinement: later no file can be read to import a module.
PRELOAD = (
  '__future__',
  'abc',
  'array',
  'ast',
  'asyncio',
  'base64',
  'bisect',
  'calendar',
  'cmath',
  'collections',
  'collections.abc',
  'concurrent.futures',
  'concurrent.futures.thread',
  'contextlib',
  'copy',
  'dataclasses',
  'datetime',
  'decimal',
  'difflib',
  'enum',
  'fractions',
  'functools',
  'gc',
  'graphlib',
  'hashlib',
  'heapq',
  'inspect',
  'io',
  'itertools',
  'json',
  'locale',
  'math',
  'multiprocessing.dummy',
  'multiprocessing.pool',
  'numbers',
  'operator',
  'os',
  'pathlib',
  'pprint',
  'queue',
  'random',
  're',
  'secrets',
  'statistics',
  'string',
  'struct',
  'sys',
  'textwrap',
  'threading',
  'time',
  'timeit',
  'traceback',
  'types',
  'typing',
  'unicodedata',
  'unittest',
  'uuid',
  'warnings',
  'weakref',
  'zlib',
  'encodings.ascii',
  'encodings.latin_1',
  'encodings.utf_8',
)
# Modules that packages import when they are first used, where Python has it.
_FOR_PACKAGES = ('bz2', 'gzip', 'lzma', 'pickle', 'tempfile', 'urllib.request')
_STREAMS = {
  f'{folder}{name}': fd
  for fd, stream in enumerate(('stdin', 'stdout', 'stderr'))
  for folder, name in (
    ('/dev/', stream),
    ('/dev/fd/', fd),
    ('/proc/self/fd/', fd),
  )
} | {'/dev/null': 2}  # Descriptor 2 of a program is the null device.


def prepare(packages: list[str], paths: list[str], max_stack_bytes: int):
  """Imports all that programs may import and changes what cannot work here.

  It must run before any file is out of reach.

  Args:
    packages: Names of packages beside the standard library; the modules of
      each, one level deep, are imported with it.
    paths: Folders to import them from.
    max_stack_bytes: The largest stack of a thread; a request for a larger one
      gets this size.

  Raises:
    ImportError: a package does not import; the message names it.
  """
  modules: dict = sys.modules
  modules['ssl'] = None  # asyncio would load it; it is large and of no use.
  for name in PRELOAD:
    importlib.import_module(name)
  del modules['ssl']
  _install_built_ins()
  _limit_stacks(max_stack_bytes)
  _install_event_loop()
  _install_pools()
  sys.path += paths
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for name in _FOR_PACKAGES if packages else ():
      with contextlib.suppress(ImportError):
        importlib.import_module(name)
    for name in packages:
      _import_package(name)


def _import_package(name: str):
  try:
    package = importlib.import_module(name)
  except Exception as error:
    raise ImportError(f'{name} does not import: {error}') from error
  for _, module, _ in pkgutil.iter_modules(
    getattr(package, '__path__', []), f'{name}.'
  ):
    if module.rpartition('.')[2] not in ('conftest', 'setup', 'tests'):
      with contextlib.suppress(Exception):  # It may need what is not here.
        importlib.import_module(module)


def finish_threads():
  """Waits for a script's threads, as an interpreter does at its end."""
  vars(threading)['_shutdown']()


def flush_files():
  """Writes what a script's open files still hold, as an interpreter does."""
  for file in gc.get_objects():
    if type(file) in (io.TextIOWrapper, io.BufferedWriter) and not file.closed:
      try:
        file.flush()
      except (OSError, ValueError):  # It is not open for writing.
        continue


def _install_built_ins():
  """Adds exit() and quit(), and makes paths of the standard streams work."""
  names: dict = vars(builtins)
  for name in ('exit', 'quit'):
    names[name] = _sitebuiltins.Quitter(name, 'Ctrl-D (i.e. EOF)')
  open_file, open_fd, stat_file = io.open, os.open, os.stat

  def open(file, *args, **kwargs):
    fd = _stream(file)
    return open_file(file if fd is None else os.dup(fd), *args, **kwargs)

  def os_open(path, *args, **kwargs):
    fd = _stream(path)
    return open_fd(path, *args, **kwargs) if fd is None else os.dup(fd)

  def stat(path, *args, **kwargs):
    fd = _stream(path)
    return stat_file(path, *args, **kwargs) if fd is None else os.fstat(fd)

  names['open'] = vars(io)['open'] = open
  vars(os)['open'], vars(os)['stat'] = os_open, stat


def _stream(path) -> int | None:
  """Returns the descriptor of the standard stream that a path names."""
  if not isinstance(path, (str, bytes, os.PathLike)):
    return None
  return _STREAMS.get(os.fsdecode(path))


def _limit_stacks(max_bytes: int):
  set_size = _thread.stack_size

  def stack_size(size=0, /):
    return set_size(min(size, max_bytes))

  vars(threading)['stack_size'] = vars(_thread)['stack_size'] = stack_size


# --- asyncio -----------------------------------------------------------------


class _ThreadSelector(selectors.BaseSelector):
  """Waits until a thread wakes it: there are no sockets to wait for."""

  def __init__(self):
    self._woken = threading.Event()

  def wake(self):
    self._woken.set()

  def select(self, timeout=None):
    if timeout is None or timeout > 0:
      self._woken.wait(timeout)
    self._woken.clear()
    return []

  def register(self, fileobj, events, data=None):
    raise PermissionError(errno.EPERM, 'the sandbox has no sockets')

  def unregister(self, fileobj):
    raise KeyError(f'{fileobj!r} is not registered')

  def get_map(self):
    return {}


def _install_event_loop():
  """Makes asyncio's event loops wait for threads and timers alone."""
  import asyncio
  from asyncio import unix_events

  base: Any = asyncio.SelectorEventLoop  # Its attributes have no types.

  class EventLoop(base):
    """An event loop whose wake-up is a lock instead of a pair of sockets."""

    def __init__(self, selector=None):
      super().__init__(_ThreadSelector())

    def _make_self_pipe(self):
      self._internal_fds += 1

    def _close_self_pipe(self):
      self._internal_fds -= 1

    def _write_to_self(self):
      if self._selector is not None:
        self._selector.wake()

  policy: Any = asyncio.DefaultEventLoopPolicy
  policy._loop_factory = EventLoop
  vars(unix_events)['SelectorEventLoop'] = EventLoop
  vars(asyncio)['SelectorEventLoop'] = EventLoop


# --- Pools -------------------------------------------------------------------


class _Queue(queue.SimpleQueue):
  """A queue between threads, where a pool expects one between processes."""

  _reader = None


class _ThreadContext:
  """Stands for the `multiprocessing` context of a pool of threads."""

  SimpleQueue = _Queue


def _install_pools():
  """Makes pools of threads need no pipe, and pools of processes use threads."""
  import concurrent.futures
  from concurrent.futures import thread
  import multiprocessing
  from multiprocessing import pool

  start = pool.Pool.__init__

  class ThreadPool(pool.ThreadPool):
    def __init__(
      self,
      processes=None,
      initializer=None,
      initargs=(),
      maxtasksperchild=None,
      context=None,
    ):
      start(self, processes, initializer, initargs, None, _ThreadContext)

    @staticmethod
    def _wait_for_updates(sentinels, change_notifier, timeout=None):
      change_notifier.get()

  class ProcessPoolExecutor(thread.ThreadPoolExecutor):
    def __init__(
      self,
      max_workers=None,
      mp_context=None,
      initializer=None,
      initargs=(),
      *,
      max_tasks_per_child=None,
    ):
      super().__init__(max_workers, '', initializer, initargs)

  vars(os)['cpu_count'] = lambda: 1  # The same on every machine.
  vars(pool)['Pool'] = vars(pool)['ThreadPool'] = ThreadPool
  vars(multiprocessing)['Pool'] = ThreadPool
  vars(concurrent.futures)['ProcessPoolExecutor'] = ProcessPoolExecutor
