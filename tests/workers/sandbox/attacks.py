"""Programs that want out: each defines `attack()`, true if it got its way.

ATTACKS are of every kind, CALLS are single system calls, by number and
arguments. In ATTACKS the names SECRET (a file with a secret), FOLDER (its
folder), REPOSITORY (a file), PARENT (a process id) and `call` (a raw system call)
are given.
"""

PREAMBLE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
  args = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in args]
  return libc.syscall(ctypes.c_long(number), *args)
def in_thread(function):
  import threading
  results = []
  thread = threading.Thread(target=lambda: results.append(function()))
  threading.excepthook = lambda *args: None
  thread.start()
  thread.join()
  return results[0] if results else None
"""

ATTACKS = {
  # Host files.
  'read a file': 'return open(SECRET).read()',
  'read a file by os.open': 'return os.read(os.open(SECRET, 0), 9)',
  'read the repository': 'return open(REPOSITORY).read()',
  'read the users': 'return open("/etc/passwd").read()',
  'list a folder': 'return os.listdir(FOLDER)',
  'read by openat2': 'return call(437, -100, SECRET.encode(), '
  'bytes(24), 24) >= 0',
  'read through a link': """
os.symlink(SECRET, "link")
return open("link").read()""",
  'read through /proc/self/root': 'return open("/proc/self/root" + SECRET)'
  '.read()',
  'climb out of the root': 'return open("../" * 30 + SECRET).read()',
  'chroot and climb': """
os.chroot("/")
return open("../" * 30 + SECRET).read()""",
  'map a file': """
import mmap
return mmap.mmap(os.open(SECRET, 0), 4, prot=mmap.PROT_READ)[:]""",
  'import a file': """
sys.path.insert(0, FOLDER)
import secret_module
return True""",
  # The launcher, other processes.
  'environment of the parent': 'return open(f"/proc/{PARENT}/environ", '
  '"rb").read()',
  'environment of process 1': 'return open("/proc/1/environ", "rb").read()',
  'own environment': 'return any("R1JAX" in k for k in os.environ)',
  'environment of the C library': """
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
i = 0
while environ and environ[i]:
  if b"R1JAX" in environ[i]:
    return True
  i += 1""",
  'see processes': 'return os.listdir("/proc")',
  'command line of the parent': 'return open(f"/proc/{PARENT}/cmdline").read()',
  'maps of the server': 'return open(f"/proc/{os.getppid()}/maps").read()',
  'memory of itself by /proc': 'return open("/proc/self/mem", "rb")',
  'inherited descriptors': """
for fd in range(4, 256):
  try:
    os.fstat(fd)
    return True
  except OSError:
    pass""",
  'descriptors of the server': """
return [os.readlink(f"/proc/{os.getppid()}/fd/{n}") for n in range(3)]""",
  'kill the parent': """
os.kill(PARENT, 0)
return True""",
  'kill the server': """
os.kill(os.getppid(), 0)
return True""",
  'kill everything': """
os.kill(-1, 0)
return True""",
  'kill its group': """
os.killpg(0, 0)
return True""",
  'signal by ownership': """
import fcntl
fcntl.fcntl(3, fcntl.F_SETOWN, PARENT)
return True""",
  'limit the server': """
import resource
resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
return True""",
  # Writing.
  'write to /tmp': 'return open("/tmp/r1jax-escaped", "w")',
  'write beside': 'return open("r1jax-escaped", "w")',
  'write shared memory': 'return open("/dev/shm/r1jax-escaped", "w")',
  'append to a file': 'return open(SECRET, "a")',
  'write an unnamed file': 'return os.open("/tmp", os.O_TMPFILE | 2)',
  'truncate': """
os.truncate(SECRET, 0)
return True""",
  'remove': """
os.remove(SECRET)
return True""",
  'rename': """
os.rename(SECRET, SECRET + "2")
return True""",
  'change a mode': """
os.chmod(SECRET, 0o777)
return True""",
  'change an owner': """
os.chown(SECRET, os.getuid(), -1)
return True""",
  'set an attribute': """
os.setxattr(SECRET, "user.r1jax", b"x")
return True""",
  'set a time': """
os.utime(SECRET, (0, 0))
return True""",
  'make a folder': """
os.mkdir("/tmp/r1jax-escaped")
return True""",
  'make a hard link': """
os.link(SECRET, "/tmp/r1jax-escaped")
return True""",
  'make a fifo': """
os.mkfifo("/tmp/r1jax-escaped")
return True""",
  'a temporary file': """
import tempfile
return tempfile.TemporaryFile()""",
  'a semaphore': """
import multiprocessing
return multiprocessing.Semaphore()""",
  # The network.
  'a socket': """
import socket
return socket.socket()""",
  'an abstract socket': """
import socket
return socket.socket(socket.AF_UNIX).bind("\\0r1jax") is None""",
  'a netlink socket': """
import socket
return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)""",
  'a pair of sockets': """
import socket
return socket.socketpair()""",
  'a message with a descriptor': """
import socket
socket.send_fds(socket.socket(fileno=3), [b"x"], [0])
return True""",
  # Processes.
  'fork': """
if os.fork() == 0:
  os._exit(0)
return True""",
  'a pseudo-terminal': 'return os.forkpty()',
  'a shell': 'return os.system("true") == 0',
  'a subprocess': """
import subprocess
return subprocess.run(["/bin/true"])""",
  'spawn': 'return os.posix_spawn("/bin/true", ["true"], {})',
  'execute': 'os.execv("/bin/true", ["true"])',
  'a process by clone': """
for flags in (17, 0x100, 0x4100 | 17, 0x1000000 | 17, 0x3C0F00, 0x8D0F00,
              0x3D0F00 | 0x8000, 0x3D0F00 | 0x10000000, 0x3D0F00 | 17, 0x10F00,
              0x3D0F00 & ~0x800, 0x3D0F00 | 0x2000):
  if call(56, flags, 0, 0, 0, 0) >= 0:
    return True""",
  'a process by clone3': """
import struct
for flags in (0, 0x3C0F00):
  arguments = struct.pack('8Q', flags, 0, 0, 0, 17, 0, 0, 0)
  if call(435, arguments, 64) >= 0:
    return True""",
  'fork in a thread': """
return in_thread(os.fork) is not None""",
  'read a file in a thread': """
return in_thread(lambda: open(SECRET).read())""",
  'a socket in a thread': """
import socket
return in_thread(socket.socket)""",
  'become root in a thread': """
return in_thread(lambda: os.setuid(0) or True)""",
  'loosen the filter in a thread': """
return in_thread(lambda: call(157, 22, 0, 0, 0) == 0 or None)""",
  'signal in a thread': """
return in_thread(lambda: os.kill(os.getppid(), 0) or True)""",
  'many threads': """
import _thread
gate = _thread.allocate_lock()
gate.acquire()
_thread.stack_size(1 << 15)
for _ in range(2000):
  _thread.start_new_thread(gate.acquire, ())
return True""",
  'many threads of C': """
attributes = ctypes.create_string_buffer(128)
libc.pthread_attr_init(attributes)
libc.pthread_attr_setstacksize(attributes, ctypes.c_long(16384))
thread = ctypes.c_long()
for _ in range(2000):
  if libc.pthread_create(ctypes.byref(thread), attributes, libc.sleep,
                         ctypes.c_long(9)):
    return None
return True""",
  'room for more threads': """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))
return True""",
  'a pool of processes': """
import multiprocessing.context
multiprocessing.get_context("fork").Process(target=print).start()
return True""",
  'a process executor': """
from concurrent.futures import process
with process.ProcessPoolExecutor(1) as pool:
  return pool.submit(os.getpid).result() != os.getpid()""",
  'an event loop with a socket': """
import asyncio, selectors
return asyncio.SelectorEventLoop(selectors.SelectSelector())._selector \
    .register(3, 1)""",
  'a reader of an event loop': """
import asyncio
asyncio.new_event_loop().add_reader(3, print)
return True""",
  'a subprocess of an event loop': """
import asyncio
async def main():
  return await asyncio.create_subprocess_exec("/bin/true")
return asyncio.run(main())""",
  'the file behind /dev/stdin': """
return open("/dev/stdin/../../" + SECRET).read()""",
  # Privileges.
  'become root': """
os.setuid(0)
return True""",
  'change groups': """
os.setgroups([0])
return True""",
  'raise a limit': """
import resource
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
return True""",
  'set the clock': """
import time
time.clock_settime(time.CLOCK_REALTIME, 0)
return True""",
  'a new name for the host': """
import socket
socket.sethostname("r1jax")
return True""",
  'more nice': """
os.setpriority(os.PRIO_PROCESS, 0, -5)
return True""",
  'type into a terminal': """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSTI, b"x")
return True""",
  'calls of 32 bits': """
import mmap  # getpid, by int 0x80: other numbers, which a filter must not pass.
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3")
start = ctypes.addressof(ctypes.c_char.from_buffer(code))
return ctypes.CFUNCTYPE(ctypes.c_int)(start)() > 0""",
  'calls of x32': 'return call(0x40000000 + 39) > 0',
}

# Of those above, what a plain process can do: they are no straw men.
HARMLESS = (
  'read a file',
  'read a file by os.open',
  'read the repository',
  'list a folder',
  'map a file',
  'import a file',
  'climb out of the root',
  'environment of the C library',
  'see processes',
  'own environment',
  'environment of the parent',
  'fork',
  'a socket',
  'a subprocess',
  'spawn',
  'many threads',
  'many threads of C',
  'read a file in a thread',
  'a socket in a thread',
  'a pool of processes',
  'a process executor',
  'a subprocess of an event loop',
  'an abstract socket',
  'a pair of sockets',
  'a temporary file',
  'a semaphore',
  'kill the parent',
  'command line of the parent',
  'a shell',
  'read through /proc/self/root',
  'maps of the server',
)

CALLS = {
  'ptrace': (101, 16, 1, 0, 0),
  'process_vm_readv': (310, 1, 0, 0, 0, 0, 0),
  'process_vm_writev': (311, 1, 0, 0, 0, 0, 0),
  'tkill': (200, 1, 0),
  'tgkill': (234, 1, 1, 0),
  'rt_sigqueueinfo': (129, 1, 0, 0),
  'pidfd_open': (434, 1, 0),
  'pidfd_send_signal': (424, 0, 0, 0, 0),
  'pidfd_getfd': (438, 0, 0, 0),
  'kcmp': (312, 1, 1, 0, 0, 0),
  'vfork': (58,),
  'clone': (56, 17, 0, 0, 0, 0),
  'clone3': (435, 0, 0),
  'execveat': (322, 0, 0, 0, 0, 0x1000),
  'memfd_create': (319, b'x', 0),
  'memfd_secret': (447, 0),
  'shmget': (29, 0, 4096, 0o1600),
  'shmat': (30, 0, 0, 0),
  'msgget': (68, 0, 0o1600),
  'semget': (64, 0, 1, 0o1600),
  'mq_open': (240, b'x', 66, 0o600, 0),
  'pipe': (22, bytes(8)),
  'pipe2': (293, bytes(8), 0),
  'eventfd2': (290, 0, 0),
  'timerfd_create': (283, 0, 0),
  'signalfd4': (289, -1, bytes(8), 8, 0),
  'epoll_create1': (291, 0),
  'inotify_init1': (294, 0),
  'fanotify_init': (300, 0, 0),
  'io_uring_setup': (425, 1, bytes(120)),
  'io_setup': (206, 1, bytes(8)),
  'userfaultfd': (323, 1),
  'perf_event_open': (298, bytes(128), 0, -1, -1, 0),
  'bpf': (321, 0, bytes(128), 128),
  'add_key': (248, b'user', b'x', b'x', 1, -2),
  'keyctl': (250, 0, -2, 1),
  'request_key': (249, b'user', b'x', 0, -2),
  'unshare': (272, 0x10000000),
  'setns': (308, 0, 0),
  'mount': (165, b'x', b'/', b'tmpfs', 0, 0),
  'umount2': (166, b'/', 2),
  'open_tree': (428, -100, b'/', 0),
  'fsopen': (430, b'tmpfs', 0),
  'move_mount': (429, -1, b'', -1, b'', 0),
  'pivot_root': (155, b'/', b'/'),
  'mknod': (133, b'/tmp/r1jax-escaped', 0o10600, 0),
  'name_to_handle_at': (303, -100, b'/', bytes(128), bytes(4), 0),
  'open_by_handle_at': (304, -100, bytes(128), 0),
  'prctl (seccomp)': (157, 22, 0, 0, 0),
  'prctl (dumpable)': (157, 4, 1),
  'seccomp': (317, 0, 0, 0),
  'capset': (126, bytes(8), bytes(24)),
  'setresuid': (117, 0, 0, 0),
  'personality': (135, 0x0040000),
  'ioctl': (16, 0, 0x5401, bytes(64)),
  'iopl': (172, 3),
  'ioperm': (173, 0, 1, 1),
  'modify_ldt': (154, 0, bytes(16), 16),
  'init_module': (175, b'', 0, b''),
  'finit_module': (313, 0, b'', 0),
  'kexec_load': (246, 0, 0, 0, 0),
  'reboot': (169, 0, 0, 0),
  'swapon': (167, b'/', 0),
  'acct': (163, 0),
  'syslog': (103, 10, 0, 0),
  'quotactl': (179, 0, 0, 0, 0),
  'adjtimex': (159, bytes(256)),
  'settimeofday': (164, bytes(16), 0),
  'clock_adjtime': (305, 0, bytes(256)),
  'sethostname': (170, b'x', 1),
  'mlockall': (151, 1),
  'sched_setscheduler': (144, 0, 1, bytes(4)),
  'sched_setaffinity': (203, 0, 8, b'\1' + bytes(7)),
  'setsid': (112,),
  'setpgid': (109, 0, 0),
  'ftruncate': (77, 3, 0),
  'fallocate': (285, 3, 0, 0, 1),
  'splice': (275, 0, 0, 1, 0, 1, 0),
  'vmsplice': (278, 1, 0, 0, 0),
  'sendmsg': (46, 3, bytes(56), 0),
  'recvmsg': (47, 3, bytes(56), 0x40),
  'uname': (63, bytes(400)),
  'landlock_create_ruleset': (444, 0, 0, 1),
  'dup2': (33, 3, 9),
  'process_madvise': (440, 0, 0, 0, 0, 0),
  'membarrier': (324, 0, 0),
  'remap_file_pages': (216, 0, 0, 0, 0, 0),
  'lookup_dcookie': (212, 0, 0, 0),
  'creat': (85, b'/tmp/r1jax-escaped', 0o600),
  'open': (2, b'/', 0, 0),
}
