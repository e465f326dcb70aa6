"""Canaries: attacks that a sandbox must stop before it may run any program."""

import os
import tempfile

from r1jax.workers.sandbox.tiers import SandboxUnavailable

# Each function is one attack: to be stopped, it must raise or return None.
_ATTACKS = """
import ctypes, os, socket, subprocess, mmap
libc = ctypes.CDLL(None, use_errno=True)

def syscall(*args):
  return libc.syscall(*map(ctypes.c_long, args)) != -1 or None

def reads_a_file(): return open(SECRET).read()
def reads_etc(): return open('/etc/passwd').read()
def reads_the_repository(): return open(REPOSITORY).read()
def lists_a_folder(): return os.listdir(os.path.dirname(SECRET))
def reads_environment_of_parent(): return open(f'/proc/{PARENT}/environ').read()
def sees_processes(): return os.listdir('/proc')
def reads_memory_of_server(): return open(f'/proc/{os.getppid()}/mem').read(1)
def writes(): return open('/tmp/r1jax-canary', 'w')
def writes_beside(): return open('r1jax-canary', 'w')
def writes_shared_memory(): return open('/dev/shm/r1jax-canary', 'w')
def makes_a_folder(): return os.mkdir('/tmp/r1jax-canary') or True
def opens_a_socket(): return socket.socket()
def opens_a_unix_socket(): return socket.socket(socket.AF_UNIX)
def forks(): return os.fork() or os._exit(0)
def has_many_threads():
  import _thread
  gate = _thread.allocate_lock()
  gate.acquire()
  _thread.stack_size(1 << 16)
  for _ in range(1000):
    _thread.start_new_thread(gate.acquire, ())
  return True
def starts_a_program(): return subprocess.run(['/bin/true'])
def executes(): return os.execv('/bin/true', ['true'])
def signals_the_server(): return os.kill(os.getppid(), 0) or True
def signals_the_parent(): return os.kill(PARENT, 0) or True
def has_memory_beyond_limits(): return os.memfd_create('canary')
def has_much_memory(): return mmap.mmap(-1, MEMORY)
def shares_memory(): return syscall(29, 0, 4096, 0o1600)
def traces(): return syscall(101, 16, os.getppid(), 0, 0)
def has_namespaces(): return syscall(272, 0x10000000)
def mounts(): return syscall(165, 0, 0, 0, 0, 0)
def loosens_the_filter(): return syscall(157, 22, 0, 0, 0, 0)
def raises_a_limit():
  import resource
  resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
  return True
def is_root_again(): return os.setuid(0) or True

def leaks():
  succeeded = []
  for name, attack in attacks:
    try:
      result = attack()
    except BaseException:
      continue
    if result is not None:
      succeeded.append(name)
  return succeeded
"""
_COLLECT = """
attacks = [(name, value) for name, value in list(globals().items())
           if type(value).__name__ == 'function'
           and name not in ('syscall', 'leaks')]
"""
_STUBBORN = """
import signal
for number in range(1, 65):
  try:
    signal.signal(number, signal.SIG_IGN)
  except (OSError, ValueError):
    pass
while True:
  pass
"""


def check(slot):
  """Runs all attacks in a slot.

  Raises:
    SandboxUnavailable: An attack was not stopped; names it.
  """
  with tempfile.TemporaryDirectory(prefix='canary') as folder:
    secret = os.path.join(folder, 'secret')
    os.chmod(folder, 0o755)
    with open(secret, 'w') as file:
      file.write('secret')
    facts = (
      f'SECRET, REPOSITORY, PARENT, MEMORY = {secret!r}, {__file__!r}, '
      f'{os.getpid()}, {slot.limits.memory_bytes}'
    )
    sources = [('facts', facts), ('attacks', _ATTACKS), ('all', _COLLECT)]
    with slot.call_session(sources, secs=20) as session:
      reply = session.call('leaks()', secs=20)
  if reply.status != 'ok':
    raise SandboxUnavailable(f'a canary did not report: {reply}')
  escaped = list(reply.value)
  if slot.run_script('print(6 * 7)', '', secs=20).value != '42\n':
    escaped.append('runs_no_program')
  if slot.run_script(_STUBBORN, '', secs=0.2).status != 'timeout':
    escaped.append('outlives_its_time')
  if (
    slot.run_script('while True: print("x" * 9999)', '', 20).status != 'output'
  ):
    escaped.append('floods')
  if escaped:
    raise SandboxUnavailable(f'not stopped: {", ".join(escaped)}')
