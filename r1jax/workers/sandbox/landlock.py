"""Landlock: a process gives up access to all but a few folders.

It needs no privileges and Linux 5.13. Where the kernel supports it, TCP, abstract
sockets and signals to outside processes are forbidden as well. It does not hide
the existence of files: stat still works on a file that cannot be read.

This file also runs inside the sandbox: it imports the standard library only.
"""

from collections.abc import Iterable
import ctypes
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# Number of file-access rights that each version of the ABI knows.
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
  """Returns the version of the kernel's Landlock ABI; 0 without Landlock."""
  return max(0, _syscall(_CREATE, None, 0, 1))


def ruleset(readable: Iterable[str]) -> int:
  """Creates a ruleset that allows only reading below the given paths.

  Returns:
    Its file descriptor.
  """
  abi = version()
  attributes = struct.pack(
    'QQQ', (1 << _FILE_BITS[min(abi, 5)]) - 1, 0b11, 0b11
  )
  size = 8 if abi < 4 else 16 if abi < 6 else 24
  rules = _checked(
    'landlock_create_ruleset', _syscall(_CREATE, attributes, size, 0)
  )
  for path in readable:
    if not os.path.exists(path):
      continue
    rights = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _checked(
      'landlock_add_rule',
      _syscall(_ADD, rules, 1, struct.pack('=Qi', rights, opened), 0),
    )
    os.close(opened)
  return rules


def restrict(rules: int):
  """Applies a ruleset to this process and its children, irrevocably.

  `seccomp.forbid_privileges` must have been called.
  """
  _checked('landlock_restrict_self', _syscall(_RESTRICT, rules, 0))


def _syscall(number: int, *args) -> int:
  return libc.syscall(
    ctypes.c_long(number),
    *(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args),
  )


def _checked(name: str, result: int) -> int:
  if result < 0:
    code = ctypes.get_errno()
    raise OSError(code, f'{name}: {os.strerror(code)}')
  return result
