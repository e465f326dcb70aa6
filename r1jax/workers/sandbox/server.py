"""Inside the sandbox: a server that forks one process for each program.

Started by exec with an empty environment, it loads what programs import,
gives up all that it does not need, and forks on request. A child then gives
up the rest before it reads a line of the program. The server itself never
reads anything that a program wrote.

  control  requests and exits, one JSON packet each; never open in a child
  data     comes with a request, for one child: frames of four bytes of length
           and JSON; for whole programs one frame, and then the program's
           standard input and output

This file runs inside: it imports the standard library and files that do too.
"""

import atexit
import builtins
import ctypes
import errno
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import types

from r1jax.data.code import values as code_values
from r1jax.workers.sandbox import landlock, seccomp

# Loaded before the doors close: where no file can be read there is no import.
PRELOAD = (
  '__future__',
  'abc',
  'array',
  'ast',
  'base64',
  'bisect',
  'calendar',
  'cmath',
  'collections',
  'collections.abc',
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
  'hashlib',
  'heapq',
  'inspect',
  'io',
  'itertools',
  'json',
  'locale',
  'math',
  'numbers',
  'operator',
  'os',
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
# The exit status of a whole program, which has no frame to tell in.
EXITS = {1: 'error', 78: 'forbidden', 79: 'memory'}


def main(config: dict, control: socket.socket):
  """Confines itself as `config` says and serves until `control` closes.

  Args:
    config: tier, root (of the chroot), uid or None, readable (paths).
  """
  for name in PRELOAD:
    importlib.import_module(name)
  sys.path[:] = [place for place in sys.path if place]
  null = os.open('/dev/null', os.O_RDWR)
  rules = None
  if config['tier'] == 'landlock':
    _drop_capabilities()
    seccomp.forbid_privileges()
    rules = landlock.ruleset(config['readable'])
    landlock.restrict(rules)
  if config['tier'] == 'chroot':
    _enter(config['root'])
  os.chdir('/')
  if config['uid'] is not None:
    os.setgroups([])
    os.setresgid(*[config['uid']] * 3)
    os.setresuid(*[config['uid']] * 3)
    _drop_capabilities()
  seccomp.forbid_privileges()
  seccomp.libc.prctl(4, 0, 0, 0, 0)  # No memory of it to be had by /proc.
  os.environ.clear()
  child_filter = seccomp.program(seccomp.PROGRAM)
  seccomp.install(seccomp.program(seccomp.SERVER))
  gc.collect()
  gc.freeze()
  control.send(b'{"ready": true}')
  while True:
    packet, (*fds,), _, _ = socket.recv_fds(control, 4096, 1)
    if not packet:
      return
    request = json.loads(packet)
    if not fds:
      continue  # A kill that came when the child had just ended.
    child = os.fork()
    if child == 0:
      leave = os._exit
      try:
        control.close()
        _child(request, fds[0], null, rules, child_filter)
      finally:
        leave(70)
    os.close(fds[0])
    if not _watch(child, control):
      return


def _watch(child: int, control: socket.socket) -> bool:
  """Waits for a child and reports its end; False if control closed."""
  ended = os.pidfd_open(child)
  poll = select.poll()
  poll.register(ended, select.POLLIN)
  poll.register(control.fileno(), select.POLLIN)
  served = True
  while ended not in (ready := [fd for fd, _ in poll.poll()]):
    if control.fileno() in ready:
      served = served and bool(control.recv(4096))
      os.kill(child, signal.SIGKILL)
      if not served:
        break
  os.close(ended)
  _, status = os.waitpid(child, 0)
  if served:
    control.send(
      json.dumps({'exit': os.waitstatus_to_exitcode(status)}).encode()
    )
  return served


def _enter(root: str):
  """Makes the standard library's folder the whole file system."""
  os.chroot(root)
  sys.path[:] = ['/', '/lib-dynload']
  for module in list(sys.modules.values()):
    if isinstance(places := getattr(module, '__path__', None), list):
      places[:] = [place.removeprefix(root) for place in places]


def _drop_capabilities():
  """All of them, and the way back: also the bounding set."""
  for capability in range(64):
    seccomp.libc.prctl(24, capability, 0, 0, 0)
  header = struct.pack('Ii', 0x20080522, 0)
  if seccomp.libc.syscall(ctypes.c_long(126), header, bytes(24)) != 0:
    raise OSError(ctypes.get_errno(), 'capset')


# --- In the child ------------------------------------------------------------


def _child(
  request: dict, data: int, null: int, rules: int | None, child_filter: bytes
):
  """Confines itself for good, then runs one program."""
  seccomp.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # Dies with the server.
  if rules is not None:
    landlock.restrict(rules)  # Again: signals do not reach the server.
  for fd in range(3):
    os.dup2(null, fd)
  os.dup2(data, 3)
  if request['mode'] == 'whole':
    os.dup2(data, 0)
    os.dup2(data, 1)
  os.closerange(4, 1024)
  for kind, limit in (
    ('AS', request['memory_bytes']),
    ('CPU', request['cpu_secs']),
    ('FSIZE', 0),
    ('CORE', 0),
    ('NOFILE', 32),
    ('NPROC', 0),
    ('MEMLOCK', 0),
    ('MSGQUEUE', 0),
  ):
    resource.setrlimit(getattr(resource, f'RLIMIT_{kind}'), (limit, limit))
  seccomp.install(child_filter)
  for name in [name for name in sys.modules if name.startswith('r1jax')]:
    del sys.modules[name]
  random.seed(0)  # A verdict does not hang on luck.
  if request['mode'] == 'calls':
    _serve_calls(request['reply_bytes'])
  else:
    _run_whole()


def _serve_calls(reply_bytes: int):
  """First frame: the sources to run; further ones: an expression each."""
  module = _module('program')
  dumps, values, failure = json.dumps, code_values.encode, _failure

  def reply(make):
    try:
      text = dumps(make())
    except BaseException as error:
      text = dumps(failure(error))
    if len(text) > reply_bytes:
      text = dumps({'error': 'output', 'message': 'too long a value'})
    _send(text.encode())

  def load():
    for name, text in sources:
      exec(compile(text, name, 'exec'), module.__dict__)
    return {'value': None}

  sources = json.loads(_receive())
  reply(load)
  while frame := _receive():
    call = json.loads(frame)
    reply(
      lambda: {
        'value': values(eval(compile(call, '<call>', 'eval'), module.__dict__))
      }
    )
  os._exit(0)


def _run_whole():
  """Runs a program as __main__, on the rest of the data as standard input."""
  source = json.loads(_receive())
  os.close(3)
  sys.stdin = sys.__stdin__ = open(0, encoding='utf-8', closefd=False)
  sys.stdout = sys.__stdout__ = open(1, 'w', encoding='utf-8', closefd=False)
  sys.stderr = sys.__stderr__ = open(2, 'w', encoding='utf-8', closefd=False)
  sys.argv[:] = ['program']
  leave, status = os._exit, 0
  kinds = {kind: number for number, kind in EXITS.items()}
  try:
    exec(compile(source, '<program>', 'exec'), _module('__main__').__dict__)
  except SystemExit as error:
    status = 0 if error.code in (None, 0) else 1
  except BaseException as error:
    status = kinds[_failure(error)['error']]
  try:
    atexit._run_exitfuncs()
    sys.stdout.flush()
  except BaseException:
    status = status or 1
  leave(status)


def _module(name: str) -> types.ModuleType:
  """A module that is found under its name, as dataclasses wants."""
  module = types.ModuleType(name)
  module.__dict__['__builtins__'] = builtins
  sys.modules[name] = module
  return module


def _failure(error: BaseException) -> dict:
  """How a program failed, for the report: never a reason to let it pass."""
  kind, message = 'error', type(error).__name__
  try:
    message = f'{message}: {error}'[:300]
    if isinstance(error, OSError) and error.errno in (
      errno.EPERM,
      errno.EACCES,
      errno.ENOSYS,
    ):
      kind = 'forbidden'
    elif isinstance(error, MemoryError):
      kind = 'memory'
    elif message == "RuntimeError: can't start new thread":
      kind = 'forbidden'
  except BaseException:  # Its text may be the program's code.
    pass
  return {'error': kind, 'message': message}


def _send(payload: bytes):
  left = struct.pack('>I', len(payload)) + payload
  while left:
    left = left[os.write(3, left) :]


def _receive() -> bytes:
  header = _exactly(4)
  return _exactly(struct.unpack('>I', header)[0]) if header else b''


def _exactly(count: int) -> bytes:
  found = b''
  while len(found) < count:
    part = os.read(3, count - len(found))
    if not part:
      return b''
    found += part
  return found
