"""The server inside the sandbox, which forks one process per program.

Started by exec with an empty environment, it imports the modules that programs
may import, drops all privileges that it does not need, and forks on request. A
child drops the remaining privileges before it reads a line of the program. The
server itself never reads anything that a program wrote.

  control  socket for requests and exit statuses, one JSON packet each; never open
           in a child
  data     socket that comes with a request, for one child: frames of four bytes
           of length and JSON; for scripts one frame, followed by the program's
           standard input and output

This file runs inside the sandbox: it imports only the standard library and files
that do the same.
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
from typing import Any

from r1jax.data.code import values as code_values
from r1jax.workers.sandbox import landlock, seccomp

# Imported before confinement: later no file can be read to import a module.
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
# Exit statuses of a script and their meaning: a script sends no reply frame.
EXIT_STATUSES = {1: 'error', 78: 'forbidden', 79: 'memory'}


def main(config: dict, control: socket.socket):
  """Confines this process as `config` says and serves until `control` closes.

  Args:
    config: tier; root, the folder for chroot; uid, a user id or None; readable,
      the paths that Landlock leaves readable.
    control: The control socket; see the module's docstring.
  """
  for name in PRELOAD:
    importlib.import_module(name)
  sys.path[:] = [path for path in sys.path if path]
  null = os.open('/dev/null', os.O_RDWR)
  rules = None
  if config['tier'] == 'landlock':
    _drop_capabilities()
    seccomp.forbid_privileges()
    rules = landlock.ruleset(config['readable'])
    landlock.restrict(rules)
  if config['tier'] == 'chroot':
    _chroot(config['root'])
  os.chdir('/')
  if config['uid'] is not None:
    os.setgroups([])
    os.setresgid(*[config['uid']] * 3)
    os.setresuid(*[config['uid']] * 3)
    _drop_capabilities()
  seccomp.forbid_privileges()
  seccomp.libc.prctl(4, 0, 0, 0, 0)  # Not dumpable: /proc hides its memory.
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
      continue  # A kill request that came after the child had ended.
    child = os.fork()
    if child == 0:
      exit_now = os._exit  # Bound early: the program may replace os._exit.
      try:
        control.close()
        _child(request, fds[0], null, rules, child_filter)
      finally:
        exit_now(70)
    os.close(fds[0])
    if not _watch(child, control):
      return


def _watch(child: int, control: socket.socket) -> bool:
  """Waits for a child to end and reports its exit status.

  Returns:
    False if `control` was closed, which ends the server.
  """
  exit_fd = os.pidfd_open(child)
  poll = select.poll()
  poll.register(exit_fd, select.POLLIN)
  poll.register(control.fileno(), select.POLLIN)
  is_open = True
  while exit_fd not in (ready := [fd for fd, _ in poll.poll()]):
    if control.fileno() in ready:
      is_open = is_open and bool(control.recv(4096))
      os.kill(child, signal.SIGKILL)
      if not is_open:
        break
  os.close(exit_fd)
  _, status = os.waitpid(child, 0)
  if is_open:
    control.send(
      json.dumps({'exit': os.waitstatus_to_exitcode(status)}).encode()
    )
  return is_open


def _chroot(root: str):
  """Makes the folder of the standard library the root of the file system."""
  os.chroot(root)
  sys.path[:] = ['/', '/lib-dynload']
  for module in list(sys.modules.values()):
    if isinstance(paths := getattr(module, '__path__', None), list):
      paths[:] = [path.removeprefix(root) for path in paths]


def _drop_capabilities():
  """Drops all capabilities, also from the bounding set, so none can return."""
  for capability in range(64):
    seccomp.libc.prctl(24, capability, 0, 0, 0)
  header = struct.pack('Ii', 0x20080522, 0)
  if seccomp.libc.syscall(ctypes.c_long(126), header, bytes(24)) != 0:
    raise OSError(ctypes.get_errno(), 'capset')


# --- In the child ------------------------------------------------------------


def _child(
  request: dict, data: int, null: int, rules: int | None, child_filter: bytes
):
  """Confines this process irrevocably, then runs one program."""
  seccomp.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # Dies with the server.
  if rules is not None:
    landlock.restrict(
      rules
    )  # A new domain: its signals do not reach the server.
  for fd in range(3):
    os.dup2(null, fd)
  os.dup2(data, 3)
  if request['mode'] == 'script':
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
  random.seed(0)  # Verdicts are reproducible.
  if request['mode'] == 'calls':
    _serve_calls(request['reply_bytes'])
  else:
    _run_script()


def _serve_calls(reply_bytes: int):
  """Runs the sources in the first frame, then evaluates one expression a frame."""
  module = _module('program')
  dumps, values, failure = json.dumps, code_values.encode, _failure

  def reply(make):
    try:
      text = dumps(make())
    except BaseException as error:
      text = dumps(failure(error))
    if len(text) > reply_bytes:
      text = dumps({'error': 'output', 'message': 'the value is too long'})
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


def _run_script():
  """Runs a program as __main__, with the rest of the data as standard input."""
  source = json.loads(_receive())
  os.close(3)
  streams: Any = sys  # Typed as final, but a program must see these.
  streams.stdin = streams.__stdin__ = open(0, encoding='utf-8', closefd=False)
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    stream = open(number, 'w', encoding='utf-8', closefd=False)
    setattr(sys, name, stream)
    setattr(sys, f'__{name}__', stream)
  sys.argv[:] = ['program']
  exit_now, status = os._exit, 0
  statuses = {kind: number for number, kind in EXIT_STATUSES.items()}
  try:
    exec(compile(source, '<program>', 'exec'), _module('__main__').__dict__)
  except SystemExit as error:
    status = 0 if error.code in (None, 0) else 1
  except BaseException as error:
    status = statuses[_failure(error)['error']]
  try:
    atexit._run_exitfuncs()
    sys.stdout.flush()
  except BaseException:
    status = status or 1
  exit_now(status)


def _module(name: str) -> types.ModuleType:
  """Creates a module in sys.modules, where dataclasses looks it up."""
  module = types.ModuleType(name)
  module.__dict__['__builtins__'] = builtins
  sys.modules[name] = module
  return module


def _failure(error: BaseException) -> dict:
  """Describes how a program failed, for the report only: it never passes."""
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
  except BaseException:  # str(error) may run the program's code.
    pass
  return {'error': kind, 'message': message}


def _send(payload: bytes):
  """Sends a frame on the data socket, descriptor 3."""
  unsent = struct.pack('>I', len(payload)) + payload
  while unsent:
    unsent = unsent[os.write(3, unsent) :]


def _receive() -> bytes:
  """Receives a frame; b'' if the socket is closed."""
  header = _read_exactly(4)
  return _read_exactly(struct.unpack('>I', header)[0]) if header else b''


def _read_exactly(count: int) -> bytes:
  data = b''
  while len(data) < count:
    part = os.read(3, count - len(data))
    if not part:
      return b''
    data += part
  return data
