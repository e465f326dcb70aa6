"""One slot of a sandbox: a server and the program that runs under it.

The slot's server (`server.py`) forks a process for each program. Deadlines are
enforced here, outside the sandbox, on the clock of workers/clock.py: other load on
the machine does not make a program exceed them. Replies are untrusted data that is
compared here: a program may send anything.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import signal
import socket
import struct
import subprocess
from typing import Any

from r1jax.workers.sandbox import server as sandbox_server
from r1jax.workers.sandbox import tiers
from r1jax.workers.sandbox.packages import Packages
from r1jax.workers.sandbox.process import Deadline, Process, TooLongError
from r1jax.workers.sandbox.tiers import SandboxUnavailable

_START_SECS = 60.0  # A server imports its modules, perhaps on a busy machine.
# The kernel sends these signals to a process that used up its CPU time.
_KILLED = (-signal.SIGXCPU, -signal.SIGKILL)
_SEALS = (
  fcntl.F_SEAL_SEAL
  | fcntl.F_SEAL_SHRINK
  | fcntl.F_SEAL_GROW
  | fcntl.F_SEAL_WRITE
)


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
  """Resource limits of one program.

  Attributes:
    memory_bytes: Address space, including that of the interpreter.
    cpu_secs: CPU-seconds of all its calls together.
    reply_bytes: Size of one returned value or of the standard output.
  """

  memory_bytes: int = 512 << 20
  cpu_secs: int = 30
  reply_bytes: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reply:
  """The outcome of a call or of a script.

  Attributes:
    status: 'ok'; 'error' (the program raised or died), 'forbidden' (it used
      something that is not allowed), 'memory', 'output' (it wrote too much),
      'timeout'; or 'lost' (the sandbox failed, not the program).
    value: The encoded value (data/code/values.py), or the standard output.
    message: Description of the failure.
    alive: Whether the process can run another call.
    secs: Seconds that the program used, on the clock of its deadline.
  """

  status: str
  value: object = None
  message: str = ''
  alive: bool = True
  secs: float = dataclasses.field(default=0.0, compare=False)


class Slot:
  """One server, restarted when it dies, that runs one program at a time.

  Attributes:
    limits: Resource limits of its programs.
    has_threads: Whether its programs may start threads, once it has started.
  """

  def __init__(
    self,
    tier: str,
    number: int,
    limits: SandboxLimits,
    packages: Packages,
    launcher: futures.Executor,
  ):
    self.limits, self.has_threads = limits, False
    self._tier, self._number, self._launcher = tier, number, launcher
    self._packages = packages
    self._server: subprocess.Popen[bytes] | None = None
    self._control: Any = None  # A socket, once the server has been started.

  def start(self):
    """Starts the server.

    Raises:
      SandboxUnavailable: It does not start; has the message of server or bwrap.
    """
    plan = tiers.launch(
      self._tier, self._number, self._packages, self.limits.memory_bytes
    )
    self._control, theirs = socket.socketpair(
      socket.AF_UNIX, socket.SOCK_SEQPACKET
    )
    # One thread that lives as long as the slots starts them, since bwrap's
    # processes die with the thread that started them. Popen without a preexec
    # function is vfork and exec: it copies nothing of a process that holds
    # accelerators.
    with theirs:
      try:
        launch: Any = subprocess.Popen  # submit() cannot type its overloads.
        self._server = self._launcher.submit(
          launch,
          plan.command,
          env=plan.environment,
          stdin=theirs,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.PIPE,
          cwd='/',
          start_new_session=True,
        ).result()
      except OSError as error:
        self._control.close()
        raise SandboxUnavailable(f'{self._tier}: {error}') from error
    self._control.settimeout(_START_SECS)
    try:
      self._control.send(plan.handshake)
      answer = self._control.recv(4096)
    except OSError:
      answer = b''
    errors: Any = self._server.stderr
    if not answer or 'ready' not in json.loads(answer):
      self.stop()
      message = answer or errors.read(500)
      raise SandboxUnavailable(
        f'{self._tier}: did not start: {message.decode(errors="replace")}'
      )
    errors.close()
    self.has_threads = json.loads(answer)['threads']

  def stop(self):
    """Kills the server and all processes that it started."""
    if self._control is not None:
      self._control.close()
    if self._server is not None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._server.pid, signal.SIGKILL)
      self._server.wait()

  def run_script(
    self,
    source: str,
    stdin: str,
    secs: float,
    reply_bytes: int | None = None,
    prelude: str = '',
    wall_end: float = math.inf,
  ) -> Reply:
    """Runs a program as a script and returns its standard output.

    Args:
      source: The program.
      stdin: Its standard input.
      secs: Limit of the time that it uses, see workers/clock.py.
      reply_bytes: Size limit of the output; None for that of `limits`.
      prelude: Source that runs before the program, in the same module.
      wall_end: Value of time.monotonic() that ends its time in any case.
    """
    sources = [('prelude', prelude)] if prelude else []
    with (
      _input_file(stdin.encode(errors='replace')) as file,
      self._process('script', file) as process,
    ):
      deadline = Deadline(process, secs, wall_end)
      try:
        with contextlib.suppress(ConnectionError):  # It ended at once.
          process.send(_frame([*sources, ('program', source)]), deadline)
        output = process.receive_all(
          reply_bytes or self.limits.reply_bytes, deadline
        )
      except TimeoutError:
        return Reply('timeout', alive=False, secs=secs)
      except TooLongError:
        return Reply('output', alive=False, secs=deadline.used_secs())
      used = deadline.used_secs()
      status = process.end(deadline)
    if status is None:
      return Reply('lost', alive=False)
    if status in _KILLED:
      return Reply('timeout', alive=False, secs=secs)
    if status != 0:
      return Reply(
        sandbox_server.EXIT_STATUSES.get(status, 'error'),
        alive=False,
        message=f'exit status {status}',
        secs=used,
      )
    return Reply('ok', output.decode(errors='replace'), alive=False, secs=used)

  @contextlib.contextmanager
  def call_session(
    self,
    sources: Sequence[tuple[str, str]],
    secs: float,
    wall_end: float = math.inf,
  ) -> Iterator['CallSession']:
    """Starts a process, runs sources in it, and yields a session for calls.

    Args:
      sources: Names and texts of Python sources, run one after the other in one
        module.
      secs: Limit of the time that the sources use, see workers/clock.py.
      wall_end: Value of time.monotonic() that ends their time in any case.
    """
    with self._process('calls') as process:
      yield CallSession(
        process, sources, secs, wall_end, self.limits.reply_bytes
      )

  @contextlib.contextmanager
  def _process(self, mode: str, *files: int) -> Iterator[Process]:
    """Starts a process, which gets the descriptors of files."""
    if self._server is None or self._server.poll() is not None:
      self.start()
    ours, theirs = socket.socketpair()
    request = dataclasses.asdict(self.limits) | {'mode': mode}
    with ours:
      with theirs:
        packet = [json.dumps(request).encode()]
        fds = [theirs.fileno(), *files]
        try:
          socket.send_fds(self._control, packet, fds)
        except OSError:  # The server died since its last program.
          self.stop()
          self.start()
          socket.send_fds(self._control, packet, fds)
      process = Process(self._control, ours)
      try:
        yield process
      finally:
        process.end()
        if process.lost:
          self.stop()
          self.start()


@contextlib.contextmanager
def _input_file(data: bytes) -> Iterator[int]:
  """Yields the descriptor of a file in memory that nobody can change.

  A standard input that is a file has a size, which programs ask for.
  """
  fd = os.memfd_create('stdin', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
  try:
    unwritten = memoryview(data)
    while unwritten:
      unwritten = unwritten[os.write(fd, unwritten) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    yield fd
  finally:
    os.close(fd)


class CallSession:
  """A process that evaluates expressions in the module of its sources.

  Attributes:
    loaded: The outcome of running the sources. After a failure no call works.
  """

  def __init__(
    self,
    process: Process,
    sources: Sequence[tuple[str, str]],
    secs: float,
    wall_end: float,
    reply_bytes: int,
  ):
    self._process, self._max_bytes = process, reply_bytes
    self.loaded = self._request(list(sources), secs, wall_end)

  def call(
    self, expression: str, secs: float, wall_end: float = math.inf
  ) -> Reply:
    """Evaluates an expression; fails once a reply was not `alive`.

    Args:
      expression: The expression.
      secs: Limit of the time that it uses, see workers/clock.py.
      wall_end: Value of time.monotonic() that ends its time in any case.
    """
    return self._request(expression, secs, wall_end)

  def _request(self, message, secs: float, wall_end: float) -> Reply:
    """Sends a JSON message and waits for the reply."""
    deadline = Deadline(self._process, secs, wall_end)
    try:
      self._process.send(_frame(message), deadline)
      self._process.restart_clock()  # Until then it waited for this process.
      payload = self._process.receive_frame(self._max_bytes, deadline)
    except TimeoutError:
      return Reply('timeout', alive=False, secs=secs)
    except TooLongError:
      return Reply('output', alive=False, secs=deadline.used_secs())
    except ConnectionError:
      payload = None
    used = deadline.used_secs()
    if payload is not None:
      return dataclasses.replace(_parse_reply(payload), secs=used)
    status = self._process.end(deadline)
    if self._process.lost:
      return Reply('lost', alive=False)
    return Reply(
      'timeout' if status in _KILLED else 'error',
      alive=False,
      message=f'exit status {status}',
      secs=used,
    )


def _frame(message) -> bytes:
  """Encodes a message as JSON after four bytes of length."""
  payload = json.dumps(message).encode()
  return struct.pack('>I', len(payload)) + payload


def _parse_reply(payload: bytes) -> Reply:
  """Parses a reply, which the program may have forged."""
  try:
    reply = json.loads(payload)
    if 'error' not in reply:
      return Reply('ok', reply['value'])
    status, message = reply['error'], str(reply['message'])[:300]
    if status not in ('error', 'forbidden', 'memory', 'output'):
      raise ValueError('no such status')
    return Reply(status, message=message)
  except (ValueError, TypeError, KeyError, RecursionError):
    return Reply('error', message='no reply of this protocol', alive=False)
