"""The three tiers of confinement, the strongest first, and how each starts.

  bubblewrap  separate namespaces: the file system holds the interpreter alone,
              no other process is visible, no network. Needs `bwrap` and root
              or user namespaces; as root, each slot has its own user id.
  landlock    needs no privileges: only the interpreter's files are readable.
  chroot      needs root: the folder of the standard library is the whole file
              system, and each slot has its own user id.

In every tier the allow-list of seccomp.py and resource limits do most of the work.
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
from r1jax.workers.sandbox import landlock, runtime, seccomp
from r1jax.workers.sandbox import server as sandbox_server
from r1jax.workers.sandbox.packages import Packages

TIERS = ('bubblewrap', 'landlock', 'chroot')
# systemd's range of dynamic user ids. A slot takes one that depends on this
# process, since the kernel counts the threads of a user on the whole machine.
_FIRST_UID, _NUM_UIDS = 61184, 4336
_ENVIRONMENT = {
  'PYTHONHASHSEED': '0',  # The same order of sets in every server.
  'LC_ALL': 'C.UTF-8',
  # Each arena, one a thread, would take 64 MB of a program's address space.
  'MALLOC_ARENA_MAX': '1',
  # Libraries of numpy would start a thread for each core.
  'OPENBLAS_NUM_THREADS': '1',
  'OMP_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
}
# The sources arrive through the control socket, since the sandbox does not see
# their files. Each package that holds one of them is listed here.
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
  """No sandbox is available on this machine, so no program may run."""


@dataclasses.dataclass(frozen=True)
class Launch:
  """How to start the server of a slot.

  Attributes:
    command: Command line of the process.
    environment: Environment variables of the process.
    handshake: First packet for its control socket, which is its standard input.
  """

  command: list[str]
  environment: dict[str, str]
  handshake: bytes


def launch(
  tier: str, slot: int, packages: Packages, memory_bytes: int
) -> Launch:
  """Returns how to start the server of a slot in a tier.

  Args:
    tier: One of TIERS.
    slot: Number of the slot.
    packages: Packages that programs may import beside the standard library.
    memory_bytes: Address space of a program.

  Raises:
    SandboxUnavailable: This machine lacks something that the tier needs.
  """
  missing = seccomp.check() or _missing(tier)
  if missing:
    raise SandboxUnavailable(f'{tier}: {missing}')
  root = os.geteuid() == 0
  python = os.path.realpath(sys.executable)
  command = [python, '-sSB', '-c', _LOADER]
  readable = [*_libraries(), *packages.files]
  if tier == 'bubblewrap':
    command = _bubblewrap(python, readable, root) + command
  uid = _FIRST_UID + (os.getpid() * 16 + slot) % _NUM_UIDS
  config = {
    'tier': tier,
    'root': sysconfig.get_path('stdlib'),
    'uid': uid if root else None,
    'readable': readable,
    'packages': packages.names,
    'paths': packages.paths,
    'max_stack_bytes': memory_bytes // 2,
  }
  modules = (code_values, seccomp, landlock, runtime, sandbox_server)
  handshake = {
    'config': config,
    'sources': {
      module.__name__: inspect.getsource(module) for module in modules
    },
  }
  return Launch(command, _ENVIRONMENT, json.dumps(handshake).encode())


def _missing(tier: str) -> str:
  """Returns what a tier needs and this machine lacks; '' if nothing."""
  if tier == 'bubblewrap' and not shutil.which('bwrap'):
    return 'there is no bwrap command'
  if tier == 'landlock' and not landlock.version():
    return 'the kernel has no Landlock'
  if tier == 'chroot' and os.geteuid() != 0:
    return 'only root can chroot'
  return ''


def _libraries() -> list[str]:
  """Returns the paths that an interpreter reads: its own and shared libraries."""
  paths = [
    os.path.join(sys.base_prefix, 'lib'),
    '/usr/lib',
    '/usr/lib64',
    '/lib',
    '/lib64',
    '/etc/ld.so.cache',
  ]
  return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def _bubblewrap(python: str, readable: list[str], root: bool) -> list[str]:
  """Returns the bwrap command: no /proc, no tmpfs to fill, two devices.

  Run by root, it uses no user namespace, so that the server can change from root
  to a user id that no other slot has.
  """
  namespaces = ['ipc', 'pid', 'net', 'uts', 'cgroup-try'] if root else ['all']
  command = [
    shutil.which('bwrap') or 'bwrap',
    *(f'--unshare-{namespace}' for namespace in namespaces),
    '--die-with-parent',
    '--new-session',
    '--clearenv',
    '--hostname',
    'sandbox',
  ]
  for name, value in _ENVIRONMENT.items():
    command += ['--setenv', name, value]
  for path in [*readable, python]:
    for parent in reversed(pathlib.PurePath(path).parents[:-1]):
      # Root's home is not readable for other users, and its copy would not be.
      command += ['--perms', '0755', '--dir', str(parent)]
    command += ['--ro-bind', path, path]
  for device in ('/dev/null', '/dev/urandom'):
    command += ['--dev-bind', device, device]
  command += ['--remount-ro', '/', '--chdir', '/', '--cap-drop', 'ALL']
  if root:
    command += ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID']
  return command
