"""One slot of a sandbox: a server and the program that runs under it.

The slot's server (`server.py`) forks a process for each program. Deadlines are
enforced here, outside the sandbox, by the wall clock. Replies are untrusted data
that is compared here: a program may send anything.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import time
from typing import Any

from r1jax.workers.sandbox import server as sandbox_server
from r1jax.workers.sandbox import tiers
from r1jax.workers.sandbox.tiers import SandboxUnavailable

_START_SECS = 60.0  # A server imports its modules, perhaps on a busy machine.
_END_SECS = 5.0  # A killed process normally ends within milliseconds.


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
  """Resource limits of one program.

  Attributes:
    memory_bytes: Address space, including the 60 MB of the interpreter.
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
  """

  status: str
  value: object = None
  message: str = ''
  alive: bool = True


class _TooLong(Exception):
  """A reply exceeds its size limit."""


class Slot:
  """One server, restarted when it dies, that runs one program at a time.

  Attributes:
    limits: Resource limits of its programs.
  """

  def __init__(
    self,
    tier: str,
    number: int,
    limits: SandboxLimits,
    launcher: futures.Executor,
  ):
    self.limits = limits
    self._tier, self._number, self._launcher = tier, number, launcher
    self._server: subprocess.Popen[bytes] | None = None
    self._control: Any = None  # A socket, once the server has been started.

  def start(self):
    """Starts the server.

    Raises:
      SandboxUnavailable: It does not start; has the message of server or bwrap.
    """
    plan = tiers.launch(self._tier, self._number)
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

  def stop(self):
    """Kills the server and all processes that it started."""
    if self._control is not None:
      self._control.close()
    if self._server is not None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._server.pid, signal.SIGKILL)
      self._server.wait()

  def run_script(
    self, source: str, stdin: str, secs: float, reply_bytes: int | None = None
  ) -> Reply:
    """Runs a program as a script and returns its standard output.

    Args:
      source: The program.
      stdin: Its standard input.
      secs: Wall-clock limit.
      reply_bytes: Size limit of the output; None for that of `limits`.
    """
    deadline = time.monotonic() + secs
    with self._process('script') as process:
      try:
        output = process.communicate(
          _frame(source) + stdin.encode(errors='replace'),
          deadline,
          reply_bytes or self.limits.reply_bytes,
        )
      except TimeoutError:
        return Reply('timeout', alive=False)
      except _TooLong:
        return Reply('output', alive=False)
      status = process.end(deadline)
    if status is None:
      return Reply('lost', alive=False)
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
      return Reply('timeout', alive=False)
    if status != 0:
      return Reply(
        sandbox_server.EXIT_STATUSES.get(status, 'error'),
        alive=False,
        message=f'exit status {status}',
      )
    return Reply('ok', output.decode(errors='replace'), alive=False)

  @contextlib.contextmanager
  def call_session(
    self, sources: Sequence[tuple[str, str]], secs: float
  ) -> Iterator['CallSession']:
    """Starts a process, runs sources in it, and yields a session for calls.

    Args:
      sources: Names and texts of Python sources, run one after the other in one
        module.
      secs: Wall-clock limit of running the sources.
    """
    with self._process('calls') as process:
      yield CallSession(process, sources, secs, self.limits.reply_bytes)

  @contextlib.contextmanager
  def _process(self, mode: str) -> Iterator['_Process']:
    if self._server is None or self._server.poll() is not None:
      self.start()
    ours, theirs = socket.socketpair()
    request = dataclasses.asdict(self.limits) | {'mode': mode}
    with ours:
      with theirs:
        packet = [json.dumps(request).encode()]
        try:
          socket.send_fds(self._control, packet, [theirs.fileno()])
        except OSError:  # The server died since its last program.
          self.stop()
          self.start()
          socket.send_fds(self._control, packet, [theirs.fileno()])
      process = _Process(self._control, ours)
      try:
        yield process
      finally:
        process.end(deadline=0)
        if process.lost:
          self.stop()
          self.start()


class _Process:
  """The process of one program, controlled from outside the sandbox.

  Attributes:
    lost: Whether the server no longer answers.
  """

  def __init__(self, control: socket.socket, data: socket.socket):
    self._control, self._data = control, data
    self._status: int | None = None
    self.lost = False

  def end(self, deadline: float) -> int | None:
    """Waits for the process until the deadline, then kills it.

    Returns:
      Its exit status, or −signal; None if the server is lost.
    """
    if self._status is None and not self.lost:
      message = self._receive_status(deadline - time.monotonic())
      if message is None:
        with contextlib.suppress(OSError):
          self._control.send(b'{"kill": true}')
        message = self._receive_status(_END_SECS)
      self.lost = not message
      self._status = json.loads(message)['exit'] if message else None
    return self._status

  def _receive_status(self, secs: float) -> bytes | None:
    """Receives the server's packet; b'' if it is gone, None on a timeout."""
    self._control.settimeout(max(secs, 1e-4))
    try:
      return self._control.recv(4096)
    except TimeoutError:
      return None
    except OSError:
      return b''

  def send(self, payload: bytes, deadline: float):
    """Sends bytes to the process; raises TimeoutError after the deadline."""
    self._set_timeout(deadline)
    self._data.sendall(payload)

  def receive(self, max_bytes: int, deadline: float) -> bytes | None:
    """Receives one frame; None if the process ended.

    Raises:
      TimeoutError: The deadline passed.
      _TooLong: The frame announces more than max_bytes.
    """
    header = self._read_exactly(4, deadline)
    if not header:
      return None
    (length,) = struct.unpack('>I', header)
    if length > max_bytes:
      raise _TooLong
    return self._read_exactly(length, deadline)

  def _read_exactly(self, count: int, deadline: float) -> bytes | None:
    parts, missing = [], count
    while missing:
      self._set_timeout(deadline)
      try:
        part = self._data.recv(min(missing, 1 << 16))
      except ConnectionError:
        part = b''
      if not part:
        return None
      parts.append(part)
      missing -= len(part)
    return b''.join(parts)

  def communicate(
    self, payload: bytes, deadline: float, max_bytes: int
  ) -> bytes:
    """Sends the payload and receives until the end; raises as `receive`."""
    unsent: memoryview | None = memoryview(payload)
    parts: list[bytes] = []
    count = 0
    self._data.setblocking(False)
    with selectors.DefaultSelector() as selector:
      selector.register(
        self._data, selectors.EVENT_READ | selectors.EVENT_WRITE
      )
      while True:
        ready = selector.select(self._secs_left(deadline))
        events = ready[0][1] if ready else 0
        try:
          if unsent is not None and events & selectors.EVENT_WRITE:
            unsent = unsent[self._data.send(unsent[: 1 << 16]) :]
            if not unsent:
              unsent = None
              self._data.shutdown(socket.SHUT_WR)
              selector.modify(self._data, selectors.EVENT_READ)
          if events & selectors.EVENT_READ:
            part = self._data.recv(1 << 16)
            if not part:
              return b''.join(parts)
            parts.append(part)
            count += len(part)
            if count > max_bytes:
              raise _TooLong
        except BlockingIOError:
          continue
        except BrokenPipeError:  # The program ended before it read all input.
          unsent = None
          selector.modify(self._data, selectors.EVENT_READ)
        except ConnectionError:
          return b''.join(parts)

  def _set_timeout(self, deadline: float):
    self._data.settimeout(self._secs_left(deadline))

  def _secs_left(self, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
      raise TimeoutError
    return left


class CallSession:
  """A process that evaluates expressions in the module of its sources.

  Attributes:
    loaded: The outcome of running the sources. After a failure no call works.
  """

  def __init__(
    self,
    process: _Process,
    sources: Sequence[tuple[str, str]],
    secs: float,
    reply_bytes: int,
  ):
    self._process, self._max_bytes = process, reply_bytes
    self.loaded = self._request(list(sources), secs)

  def call(self, expression: str, secs: float) -> Reply:
    """Evaluates an expression; fails once a reply was not `alive`."""
    return self._request(expression, secs)

  def _request(self, message, secs: float) -> Reply:
    """Sends a JSON message and waits for the reply."""
    deadline = time.monotonic() + secs
    try:
      self._process.send(_frame(message), deadline)
      payload = self._process.receive(self._max_bytes, deadline)
    except TimeoutError:
      return Reply('timeout', alive=False)
    except _TooLong:
      return Reply('output', alive=False)
    except ConnectionError:
      payload = None
    if payload is not None:
      return _parse_reply(payload)
    status = self._process.end(deadline)
    if self._process.lost:
      return Reply('lost', alive=False)
    # The kernel sends these signals to a process that used up its CPU time.
    timed_out = status in (-signal.SIGXCPU, -signal.SIGKILL)
    return Reply(
      'timeout' if timed_out else 'error',
      alive=False,
      message=f'exit status {status}',
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
