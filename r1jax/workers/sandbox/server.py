"""The server inside the sandbox, which forks one process per program.

Started by exec with an empty environment, it imports the modules that programs
may import, drops all privileges that it does not need, and forks on request. A
child drops the remaining privileges before it reads a line of the program. The
server itself never reads anything that a program wrote.

  control  socket for requests and exit statuses, one JSON packet each; never open
           in a child
  data     socket that comes with a request, for one child: frames of four bytes
           of length and JSON; for scripts one frame, followed by the program's
           standard output, whose standard input is a file that comes too

This file runs inside the sandbox: it imports only the standard library and files
that do the same.
"""

import _thread
import atexit
import builtins
import ctypes
import errno
import gc
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
from typing import Any, NamedTuple

from r1jax.data.code import values as code_values
from r1jax.workers.sandbox import landlock, runtime, seccomp

# Threads that a program may have, besides those of other programs of its user.
_MAX_THREADS = 256
_NEW_USER_NAMESPACE = 0x10000000
# Exit statuses of a script and their meaning: a script sends no reply frame.
EXIT_STATUSES = {1: 'error', 78: 'forbidden', 79: 'memory'}


def main(config: dict, control: socket.socket):
  """Confines this process as `config` says and serves until `control` closes.

  Args:
    config: tier; root, the folder for chroot; uid, a user id or None; readable,
      the paths that Landlock leaves readable; packages, paths and
      max_stack_bytes, see runtime.prepare.
    control: The control socket; see the module's docstring.
  """
  null = os.open(os.devnull, os.O_RDWR)  # Before `open` is changed.
  runtime.prepare(
    config['packages'], config['paths'], config['max_stack_bytes']
  )
  sys.path[:] = [path for path in sys.path if path]
  rules = None
  host_root = _is_host_root()
  own_user = _change_user(config, host_root)
  if config['tier'] == 'landlock':
    _drop_capabilities()
    seccomp.forbid_privileges()
    rules = landlock.ruleset(config['readable'])
    landlock.restrict(rules)
  os.chdir('/')
  seccomp.forbid_privileges()
  seccomp.libc.prctl(4, 0, 0, 0, 0)  # Not dumpable: /proc hides its memory.
  os.environ.clear()
  # The kernel does not limit the threads of root.
  has_threads = own_user or not host_root
  child_filter = seccomp.program(
    seccomp.PROGRAM | seccomp.THREADS if has_threads else seccomp.PROGRAM
  )
  seccomp.install(seccomp.program(seccomp.SERVER))
  gc.collect()
  gc.freeze()
  control.send(json.dumps({'ready': True, 'threads': has_threads}).encode())
  confinement = _Confinement(null, rules, child_filter, has_threads, own_user)
  while True:
    packet, fds, _, _ = socket.recv_fds(control, 4096, 2)
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
        _child(request, fds, confinement)
      finally:
        exit_now(70)
    for fd in fds:
      os.close(fd)
    if not _watch(child, control):
      return


class _Confinement(NamedTuple):
  """How each child gives up what the server may still do.

  Attributes:
    null: Descriptor of the null device.
    rules: Descriptor of a Landlock ruleset, or None.
    child_filter: Its seccomp filter.
    has_threads: Whether the filter allows threads.
    own_user: Whether no other process has its user id.
  """

  null: int
  rules: int | None
  child_filter: bytes
  has_threads: bool
  own_user: bool


def _watch(child: int, control: socket.socket) -> bool:
  """Sends a child's pidfd, waits for its end and reports its exit status.

  Returns:
    False if `control` was closed, which ends the server.
  """
  exit_fd = os.pidfd_open(child)
  socket.send_fds(control, [b'{"started": true}'], [exit_fd])
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


def _is_host_root() -> bool:
  """Whether this process is root, and not only that of a user namespace."""
  if os.getuid() != 0:
    return False
  try:
    with open('/proc/self/uid_map') as file:
      return file.read().split()[1] == '0'
  except FileNotFoundError:  # There is no /proc under bubblewrap.
    return True


def _change_user(config: dict, host_root: bool) -> bool:
  """Leaves the host's files and user, as far as the tier does.

  Landlock needs the owner's access to the interpreter's files, so there root
  changes its real user id alone, for which the kernel counts threads. Another user
  enters a namespace, if the kernel allows it: threads are counted in each alone, so
  those of one program leave room for those of the next slot.

  Returns:
    Whether this process has a user id of its own.
  """
  uid = config['uid']
  if config['tier'] == 'landlock':
    try:
      if uid is not None:
        os.setresuid(uid, 0, 0)
        return True
    except OSError:  # Without CAP_SETUID, or a user namespace lacks the id.
      pass
    if not host_root:
      seccomp.libc.unshare(_NEW_USER_NAMESPACE)
    return False
  if config['tier'] == 'chroot':
    _chroot(config['root'])
  if uid is None:
    return False
  os.setgroups([])
  os.setresgid(uid, uid, uid)
  os.setresuid(uid, uid, uid)
  _drop_capabilities()
  return True


def _chroot(root: str):
  """Makes the folder of the standard library the root of the file system."""
  os.chroot(root)
  os.chdir('/')
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


def _child(request: dict, fds: list[int], confinement: _Confinement):
  """Confines this process irrevocably, then runs one program."""
  seccomp.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # Dies with the server.
  if confinement.rules is not None:
    # A new domain: its signals do not reach the server.
    landlock.restrict(confinement.rules)
  data, *stdin = fds
  for fd in range(3):
    os.dup2(confinement.null, fd)
  if stdin:
    os.dup2(stdin[0], 0)
    os.dup2(data, 1)
  os.dup2(data, 3)
  os.closerange(4, 1024)
  tasks = 0
  if confinement.has_threads:
    tasks = _MAX_THREADS + (0 if confinement.own_user else _user_tasks())
  for kind, limit in (
    ('AS', request['memory_bytes']),
    ('CPU', request['cpu_secs']),
    ('FSIZE', 0),
    ('CORE', 0),
    ('NOFILE', 32),
    ('NPROC', tasks),
    ('MEMLOCK', 0),
    ('MSGQUEUE', 0),
  ):
    resource.setrlimit(getattr(resource, f'RLIMIT_{kind}'), (limit, limit))
  seccomp.install(confinement.child_filter)
  for name in [name for name in sys.modules if name.startswith('r1jax')]:
    del sys.modules[name]
  random.seed(0)  # Verdicts are reproducible.
  if request['mode'] == 'calls':
    _serve_calls(request['reply_bytes'])
  else:
    _run_script()


def _user_tasks() -> int:
  """Counts the processes and threads of this process's user.

  The kernel tells in no other way what RLIMIT_NPROC counts: this finds the
  smallest limit, to within eight, at which a thread starts.
  """
  _, most = resource.getrlimit(resource.RLIMIT_NPROC)
  most = (1 << 22) if most < 0 else most
  ended = _thread.allocate_lock()

  def starts(limit: int) -> bool:
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, most))
    ended.acquire()
    try:
      _thread.start_new_thread(ended.release, ())
    except RuntimeError:
      ended.release()
      return False
    ended.acquire()
    ended.release()
    return True

  low, high = 0, 64
  while high < most and not starts(high):
    low, high = high, 2 * high
  while high - low > 8:
    middle = (low + high) // 2
    low, high = (low, middle) if starts(middle) else (middle, high)
  return min(high, most - _MAX_THREADS)


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
  """Runs a program as __main__, after the sources that prepare its module."""
  sources = json.loads(_receive())
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
  space = _module('__main__').__dict__
  try:
    for name, text in sources:
      exec(compile(text, f'<{name}>', 'exec'), space)
  except SystemExit as error:
    status = 0 if error.code in (None, 0) else 1
  except BaseException as error:
    exit_now(statuses[_failure(error)['error']])  # Its threads do not matter.
  try:
    runtime.finish_threads()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    runtime.flush_files()
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
