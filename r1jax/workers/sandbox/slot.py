"""One slot of a sandbox: a server, and the program that runs under it.

The slot's server (`sandbox_server`) forks a process for each program. The
deadlines are kept here, by the wall clock, and what comes back is data to be
compared here: a program may send anything.
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

from r1jax.workers.sandbox import server as sandbox_server
from r1jax.workers.sandbox import tiers
from r1jax.workers.sandbox.tiers import SandboxUnavailable

_START_SECS = 60.0  # A server loads its modules, perhaps on a busy machine.
_END_SECS = 5.0  # A killed process is gone in milliseconds.


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
  """Of one program.

  Attributes:
    memory_bytes: Of its address space, the interpreter's 60 MB among it.
    cpu_secs: Of all its calls.
    reply_bytes: Of one value, or of the standard output.
  """

  memory_bytes: int = 512 << 20
  cpu_secs: int = 30
  reply_bytes: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reply:
  """What came back.

  Attributes:
    status: 'ok'; or 'error' (it raised, or died), 'forbidden' (of something
      that is not allowed), 'memory', 'output' (too much), 'timeout'; or
      'lost': the sandbox failed, not the program.
    value: An encoded value (data/code/values.py), or the standard output.
    message: Of the failure.
    alive: The process can be asked again.
  """

  status: str
  value: object = None
  message: str = ''
  alive: bool = True


class _TooLong(Exception):
  pass


class Slot:
  """One server, started again when it dies; one program at a time.

  Attributes:
    limits: Of its programs.
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
    self._server: subprocess.Popen | None = None
    self._control: socket.socket | None = None

  def start(self):
    """Raises SandboxUnavailable, with what the server or bwrap says."""
    plan = tiers.launch(self._tier, self._number)
    self._control, theirs = socket.socketpair(
      socket.AF_UNIX, socket.SOCK_SEQPACKET
    )
    # By one thread that lives as long as the slots: bwrap's processes die
    # with the thread that started them. Without hooks, this is vfork and exec:
    # nothing of a process that holds accelerators is copied.
    with theirs:
      try:
        self._server = self._launcher.submit(
          subprocess.Popen,
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
      self._control.send(plan.greeting)
      answer = self._control.recv(4096)
    except OSError:
      answer = b''
    if not answer or 'ready' not in json.loads(answer):
      self.stop()
      said = answer or self._server.stderr.read(500)
      raise SandboxUnavailable(
        f'{self._tier}: did not start: {said.decode(errors="replace")}'
      )
    self._server.stderr.close()

  def stop(self):
    """Ends the server and all that it started."""
    if self._control is not None:
      self._control.close()
    if self._server is not None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._server.pid, signal.SIGKILL)
      self._server.wait()

  def run_script(
    self, source: str, stdin: str, secs: float, reply_bytes: int | None = None
  ) -> Reply:
    """Runs a program as a script; its standard output comes back."""
    deadline = time.monotonic() + secs
    with self._process('whole') as process:
      try:
        output = process.communicate(
          _framed(source) + stdin.encode(errors='replace'),
          deadline,
          reply_bytes or self.limits.reply_bytes,
        )
      except TimeoutError:
        return Reply('timeout', alive=False)
      except _TooLong:
        return Reply('output', alive=False)
      status = process.end(deadline)
    if process.lost:
      return Reply('lost', alive=False)
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
      return Reply('timeout', alive=False)
    if status != 0:
      return Reply(
        sandbox_server.EXITS.get(status, 'error'),
        alive=False,
        message=f'exit status {status}',
      )
    return Reply('ok', output.decode(errors='replace'), alive=False)

  @contextlib.contextmanager
  def call_session(
    self, sources: Sequence[tuple[str, str]], secs: float
  ) -> Iterator['CallSession']:
    """A process in which named sources ran, one after the other."""
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
  """One program's process, seen from here."""

  def __init__(self, control: socket.socket, data: socket.socket):
    self._control, self._data = control, data
    self._status: int | None = None
    self.lost = False

  def end(self, deadline: float) -> int | None:
    """Waits until then, kills it if it must; its exit status, or -signal."""
    if self._status is None and not self.lost:
      message = self._told(deadline - time.monotonic())
      if message is None:
        with contextlib.suppress(OSError):
          self._control.send(b'{"kill": true}')
        message = self._told(_END_SECS)
      self.lost = not message
      self._status = json.loads(message)['exit'] if message else None
    return self._status

  def _told(self, secs: float) -> bytes | None:
    """What the server says; b'' if it is gone, None if it says nothing."""
    self._control.settimeout(max(secs, 1e-4))
    try:
      return self._control.recv(4096)
    except TimeoutError:
      return None
    except OSError:
      return b''

  def send(self, payload: bytes, deadline: float):
    self._timed(deadline)
    self._data.sendall(payload)

  def receive(self, most_bytes: int, deadline: float) -> bytes | None:
    """One frame, or None if the process ended.

    Raises:
      TimeoutError: not by the deadline.
      _TooLong: it says that it is.
    """
    header = self._exactly(4, deadline)
    if not header:
      return None
    (length,) = struct.unpack('>I', header)
    if length > most_bytes:
      raise _TooLong
    return self._exactly(length, deadline)

  def _exactly(self, count: int, deadline: float) -> bytes | None:
    parts, missing = [], count
    while missing:
      self._timed(deadline)
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
    self, payload: bytes, deadline: float, most_bytes: int
  ) -> bytes:
    """Feeds all of it and reads to the end; raises as `receive`."""
    left, parts, count = memoryview(payload), [], 0
    self._data.setblocking(False)
    with selectors.DefaultSelector() as selector:
      selector.register(
        self._data, selectors.EVENT_READ | selectors.EVENT_WRITE
      )
      while True:
        ready = selector.select(self._left(deadline))
        events = ready[0][1] if ready else 0
        try:
          if left is not None and events & selectors.EVENT_WRITE:
            left = left[self._data.send(left[: 1 << 16]) :]
            if not left:
              left = None
              self._data.shutdown(socket.SHUT_WR)
              selector.modify(self._data, selectors.EVENT_READ)
          if events & selectors.EVENT_READ:
            part = self._data.recv(1 << 16)
            if not part:
              return b''.join(parts)
            parts.append(part)
            count += len(part)
            if count > most_bytes:
              raise _TooLong
        except BlockingIOError:
          continue
        except BrokenPipeError:  # It ended without reading all of its input.
          left = None
          selector.modify(self._data, selectors.EVENT_READ)
        except ConnectionError:
          return b''.join(parts)

  def _timed(self, deadline: float):
    self._data.settimeout(self._left(deadline))

  def _left(self, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
      raise TimeoutError
    return left


class CallSession:
  """Expressions, evaluated one by one where the sources ran.

  Attributes:
    loaded: How the sources ran. After a failure there is nothing to call.
  """

  def __init__(
    self,
    process: _Process,
    sources: Sequence[tuple[str, str]],
    secs: float,
    reply_bytes: int,
  ):
    self._process, self._most = process, reply_bytes
    self.loaded = self._asked(list(sources), secs)

  def call(self, expression: str, secs: float) -> Reply:
    """Of no use once a reply was not `alive`."""
    return self._asked(expression, secs)

  def _asked(self, what, secs: float) -> Reply:
    deadline = time.monotonic() + secs
    try:
      self._process.send(_framed(what), deadline)
      payload = self._process.receive(self._most, deadline)
    except TimeoutError:
      return Reply('timeout', alive=False)
    except _TooLong:
      return Reply('output', alive=False)
    except ConnectionError:
      payload = None
    if payload is not None:
      return _reply(payload)
    status = self._process.end(deadline)
    if self._process.lost:
      return Reply('lost', alive=False)
    # The kernel ends so what used up its processor time.
    late = status in (-signal.SIGXCPU, -signal.SIGKILL)
    return Reply(
      'timeout' if late else 'error',
      alive=False,
      message=f'exit status {status}',
    )


def _framed(what) -> bytes:
  payload = json.dumps(what).encode()
  return struct.pack('>I', len(payload)) + payload


def _reply(payload: bytes) -> Reply:
  """Reads what a program may have forged."""
  try:
    found = json.loads(payload)
    if 'error' not in found:
      return Reply('ok', found['value'])
    status, message = found['error'], str(found['message'])[:300]
    if status not in ('error', 'forbidden', 'memory', 'output'):
      raise ValueError('no such status')
    return Reply(status, message=message)
  except (ValueError, TypeError, KeyError, RecursionError):
    return Reply('error', message='no reply of this protocol', alive=False)
