"""An allow-list of system calls: any other one fails with ENOSYS.

A filter is a BPF program over the number and the arguments of a call. It can only
be tightened later, and forked processes inherit it. A program may start threads
where their number is limited. It may not fork, signal other processes, open a
socket, allocate memory that the limits do not count, or open a file for writing.

The numbers are those of x86_64: on another machine `check` returns an error. This
file also runs inside the sandbox, so it imports the standard library only.
"""

import ctypes
import dataclasses
import errno
import os
import struct


@dataclasses.dataclass(frozen=True)
class Argument:
  """The allowed values of one argument of a call.

  Attributes:
    index: The number of the argument, from 0.
    mask: Bits of its lower 32 that count.
    values: Values of these bits that are allowed.
    error: The error number of a call with another value.
  """

  index: int
  mask: int
  values: tuple[int, ...]
  error: int = errno.EPERM


_WRITES = (
  os.O_WRONLY
  | os.O_RDWR
  | os.O_CREAT
  | os.O_TRUNC
  | os.O_APPEND
  | (os.O_TMPFILE & ~os.O_DIRECTORY)
)
_READ_ONLY = Argument(2, _WRITES, (0,))
_ALL_BITS = 0xFFFFFFFF
_SELF = Argument(0, _ALL_BITS, (0,))  # prlimit64: only the process itself.
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: none sets an owner.
_FCNTL = Argument(1, _ALL_BITS, (0, 1, 2, 3, 1030))
# The flags of a new thread, exactly as glibc and as musl set them: any other
# set, such as one without CLONE_THREAD, would start a process. clone3, whose
# flags a filter cannot see, does not exist here, so both libraries use clone.
_THREAD = Argument(0, _ALL_BITS, (0x3D0F00, 0x7D0F00), errno.ENOSYS)

# Calls of a program: computing, reading, writing to open files, listing.
PROGRAM = {
  'read': 0,
  'write': 1,
  'close': 3,
  'stat': 4,
  'fstat': 5,
  'lstat': 6,
  'lseek': 8,
  'mmap': 9,
  'mprotect': 10,
  'munmap': 11,
  'brk': 12,
  'rt_sigaction': 13,
  'rt_sigprocmask': 14,
  'rt_sigreturn': 15,
  'pread64': 17,
  'readv': 19,
  'writev': 20,
  'access': 21,
  'sched_yield': 24,
  'mremap': 25,
  'madvise': 28,
  'dup': 32,
  'nanosleep': 35,
  'getpid': 39,
  'exit': 60,
  'fcntl': (72, _FCNTL),
  'getcwd': 79,
  'readlink': 89,
  'gettimeofday': 96,
  'getrusage': 98,
  'times': 100,
  'getuid': 102,
  'getgid': 104,
  'geteuid': 107,
  'getegid': 108,
  'getppid': 110,
  'sigaltstack': 131,
  'gettid': 186,
  'time': 201,
  'futex': 202,
  'sched_getaffinity': 204,
  'getdents64': 217,
  'clock_gettime': 228,
  'clock_getres': 229,
  'clock_nanosleep': 230,
  'exit_group': 231,
  'openat': (257, _READ_ONLY),
  'newfstatat': 262,
  'readlinkat': 267,
  'faccessat': 269,
  'prlimit64': (302, _SELF),
  'getrandom': 318,
  'statx': 332,
  'faccessat2': 439,
}
# Further calls of a program where the number of its threads can be limited.
THREADS = {'clone': (56, _THREAD), 'set_robust_list': 273, 'rseq': 334}
# Calls of the server, which also forks the processes of programs.
SERVER = PROGRAM | {
  'poll': 7,
  'dup2': 33,
  'sendto': 44,
  'recvfrom': 45,
  'sendmsg': 46,
  'recvmsg': 47,
  'clone': 56,
  'wait4': 61,
  'kill': 62,
  'fcntl': 72,
  'prctl': 157,
  'setrlimit': 160,
  'set_robust_list': 273,
  'dup3': 292,
  'prlimit64': 302,
  'seccomp': 317,
  'rseq': 334,
  'pidfd_open': 434,
  'close_range': 436,
  'landlock_restrict_self': 446,
}

_X86_64 = 0xC000003E
_X32 = 0x40000000
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_ERRNO = 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06

libc = ctypes.CDLL(None, use_errno=True)


def check() -> str:
  """Returns why the filters do not work on this machine; '' if they do."""
  machine = os.uname().machine
  if machine != 'x86_64':
    return f'the filter has the numbers of x86_64, not of {machine}'
  return ''


def program(allowed: dict) -> bytes:
  """Compiles an allow-list to a BPF program.

  Args:
    allowed: Name of a call to its number, or to (number, Argument).

  Returns:
    An array of `struct sock_filter`.
  """
  steps = [
    (_LOAD, 0, 0, 4),
    (_EQUAL, 1, 0, _X86_64),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, 0),
    (_AT_LEAST, 0, 1, _X32),
    (_RETURN, 0, 0, _KILL),
  ]
  for entry in allowed.values():
    if isinstance(entry, int):
      steps += [(_EQUAL, 0, 1, entry), (_RETURN, 0, 0, _ALLOW)]
      continue
    number, argument = entry
    body = [(_LOAD, 0, 0, 16 + 8 * argument.index), (_AND, 0, 0, argument.mask)]
    for value in argument.values:
      body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    body.append((_RETURN, 0, 0, _ERRNO | argument.error))
    steps += [(_EQUAL, 0, len(body), number), *body]
  steps.append((_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
  return b''.join(struct.pack('HBBI', *step) for step in steps)


def forbid_privileges():
  """Sets no_new_privs: no executed program gains privileges (setuid bits)."""
  _call('prctl', libc.prctl, 38, 1, 0, 0, 0)


def install(filter_bytes: bytes):
  """Applies a filter to this process and its children, irrevocably.

  `forbid_privileges` must have been called.
  """
  array = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
  header = ctypes.create_string_buffer(
    struct.pack('HxxxxxxP', len(filter_bytes) // 8, ctypes.addressof(array))
  )
  _call(
    'seccomp',
    libc.syscall,
    ctypes.c_long(317),
    ctypes.c_long(1),
    ctypes.c_long(0),
    header,
  )


def _call(name: str, function, *args):
  if function(*args) != 0:
    code = ctypes.get_errno()
    raise OSError(code, f'{name}: {os.strerror(code)}')
