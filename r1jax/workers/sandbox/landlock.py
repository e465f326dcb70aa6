"""Landlock: a process gives up the file system but for a few folders.

Needs no privilege; Linux 5.13. Where the kernel knows how, TCP, abstract
sockets and signals to the outside go too. It hides no file's existence: stat
still sees what reading is refused.

This file also runs inside the sandbox: it imports the standard library only.
"""

from collections.abc import Iterable
import ctypes
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# How many kinds of access to files each version knows, and its structure.
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
  """Of the kernel's Landlock; 0 where there is none."""
  return max(0, _syscall(_CREATE, None, 0, 1))


def ruleset(readable: Iterable[str]) -> int:
  """A file descriptor of: nothing but reading below these paths."""
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
    kinds = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _checked(
      'landlock_add_rule',
      _syscall(_ADD, rules, 1, struct.pack('=Qi', kinds, opened), 0),
    )
    os.close(opened)
  return rules


def restrict(rules: int):
  """From now on, for good; needs `seccomp.forbid_privileges` before."""
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
