"""Three ways to shut a program in, the strongest first, and how each starts.

  bubblewrap  its own namespaces: a file system of the interpreter alone, no
              other process, no network. Needs `bwrap` and root or user
              namespaces; as root, each slot has a user id of its own.
  landlock    no privilege: the file system closes but for the interpreter.
  chroot      root: the standard library's folder is the whole file system,
              and each slot has a user id of its own.

In each, seccomp.py's allow-list and resource limits do most of the work.
"""

import dataclasses
import inspect
import json
import os
import pathlib
import shutil
import sys
import sysconfig

from r1jax.data.code import values as code_values
from r1jax.errors import UserError
from r1jax.workers.sandbox import landlock, seccomp
from r1jax.workers.sandbox import server as sandbox_server

TIERS = ('bubblewrap', 'landlock', 'chroot')
# systemd's range for users that last as long as a service.
_FIRST_UID = 61184
# One order of a set's items for every server.
_ENVIRONMENT = {'PYTHONHASHSEED': '0', 'LC_ALL': 'C.UTF-8'}
# The server's files come by its control socket: inside, no path leads to them.
_LOADER = """
import json, socket, sys, types
control = socket.socket(fileno=0)
try:
  sent = json.loads(control.recv(1 << 20))
  for name in ('r1jax', 'r1jax.data', 'r1jax.data.code', 'r1jax.workers',
               'r1jax.workers.sandbox'):
    sys.modules[name] = types.ModuleType(name)
  for name, text in sent['sources'].items():
    module = sys.modules[name] = types.ModuleType(name)
    package, _, short = name.rpartition('.')
    setattr(sys.modules[package], short, module)
    exec(compile(text, name, 'exec'), module.__dict__)
  module.main(sent['config'], control)
except BaseException as error:
  control.send(json.dumps({'error': repr(error)[:500]}).encode())
"""


class SandboxUnavailable(UserError):
  """Nothing here can shut a program in: none is run, nothing is scored."""


@dataclasses.dataclass(frozen=True)
class Launch:
  """How a slot's server starts.

  Attributes:
    command, environment: Of the process.
    greeting: The first packet on its control socket, its standard input.
  """

  command: list[str]
  environment: dict[str, str]
  greeting: bytes


def launch(tier: str, slot: int) -> Launch:
  """Raises SandboxUnavailable, saying what the tier lacks here."""
  lacks = seccomp.check() or _lacks(tier)
  if lacks:
    raise SandboxUnavailable(f'{tier}: {lacks}')
  root = os.geteuid() == 0
  python = os.path.realpath(sys.executable)
  command = [python, '-sSB', '-c', _LOADER]
  if tier == 'bubblewrap':
    command = _bubblewrap(python, root) + command
  config = {
    'tier': tier,
    'root': sysconfig.get_path('stdlib'),
    'uid': _FIRST_UID + slot if root and tier != 'landlock' else None,
    'readable': _libraries(),
  }
  modules = (code_values, seccomp, landlock, sandbox_server)
  greeting = {
    'config': config,
    'sources': {
      module.__name__: inspect.getsource(module) for module in modules
    },
  }
  return Launch(command, _ENVIRONMENT, json.dumps(greeting).encode())


def _lacks(tier: str) -> str:
  if tier == 'bubblewrap' and not shutil.which('bwrap'):
    return 'there is no bwrap command'
  if tier == 'landlock' and not landlock.version():
    return 'the kernel has no Landlock'
  if tier == 'chroot' and os.geteuid() != 0:
    return 'only root can chroot'
  return ''


def _libraries() -> list[str]:
  """What an interpreter reads: its own library, and the shared ones."""
  places = [
    os.path.join(sys.base_prefix, 'lib'),
    '/usr/lib',
    '/usr/lib64',
    '/lib',
    '/lib64',
    '/etc/ld.so.cache',
  ]
  return [place for place in dict.fromkeys(places) if os.path.exists(place)]


def _bubblewrap(python: str, root: bool) -> list[str]:
  """No /proc, no tmpfs that could be filled, no device but two."""
  # As root without a user namespace: there the server can still give up root
  # for a user id that no other slot has.
  spaces = ['ipc', 'pid', 'net', 'uts', 'cgroup-try'] if root else ['all']
  command = [
    shutil.which('bwrap'),
    *(f'--unshare-{space}' for space in spaces),
    '--die-with-parent',
    '--new-session',
    '--clearenv',
    '--hostname',
    'sandbox',
  ]
  for name, value in _ENVIRONMENT.items():
    command += ['--setenv', name, value]
  for place in [*_libraries(), python]:
    for parent in reversed(pathlib.PurePath(place).parents[:-1]):
      # Root's home is closed to others, and so would be its copy here.
      command += ['--perms', '0755', '--dir', str(parent)]
    command += ['--ro-bind', place, place]
  for device in ('/dev/null', '/dev/urandom'):
    command += ['--dev-bind', device, device]
  command += ['--remount-ro', '/', '--chdir', '/', '--cap-drop', 'ALL']
  if root:
    command += ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID']
  return command
