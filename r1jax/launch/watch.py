"""Watches the processes of a run, and ends this one where another has ended.

A process that is gone leaves the others waiting for it in a collective
operation. JAX notices after its heartbeats have stopped for long, and then
aborts. Here every process keeps a connection to the first one: it breaks the
moment a process is killed, carries the last words of one that fails, and is
silent where a process or its host has stopped.

  process 1 ──┐
  process 2 ──┼── process 0, which tells each what becomes of the others
  process 3 ──┘

Messages are lines of JSON: {} that a process lives, {'end': why} that it fails,
{'end': null} that it is done. A process that is told why another fails waits a
few seconds before it ends: where all fail alike, each ends by its own error and
exit code.
"""

from collections.abc import Callable
import contextlib
from functools import partial
import json
import socket
import threading
import time
from typing import IO

from r1jax import interrupts

EXIT_CODE = 6  # Another process of the run has ended.
_PING_SECS = 1.0
_CONNECT_SECS = 60.0
_OWN_ERROR_SECS = 4.0  # For this process to fail by itself.
_LAST_SECS = 8.0  # For the others to end before process 0, which they need.
_DONE_SECS = 60.0  # Between the ends of the first process and of the last.


class Watch:
  """The connections of this process to others of the run."""

  def __init__(
    self,
    process: int,
    silence_secs: float,
    end: Callable[[int, str], None] = interrupts.exit_now,
  ):
    """Creates a watch without connections.

    Args:
      process: This process.
      silence_secs: A process that says nothing for so long has stopped.
      end: Called with an exit code and a line where another process ends.
    """
    self._process, self._silence_secs, self._end = process, silence_secs, end
    self._peers: dict[int, socket.socket] = {}
    self._lock = threading.Lock()
    self._ended: set[int] = set()  # Processes that have said how they end.
    self._gone: set[int] = set()  # Processes whose connection is closed.
    self._over = False

  def listen(self, port: int) -> int:
    """Listens for the other processes.

    Args:
      port: The port to use, if it is free.

    Returns:
      The port.
    """
    dual = socket.has_dualstack_ipv6()
    serve = partial(
      socket.create_server,
      family=socket.AF_INET6 if dual else socket.AF_INET,
      dualstack_ipv6=dual,
      backlog=1024,
    )
    try:
      self._server = serve(('', port))
    except OSError:  # Another program has it.
      self._server = serve(('', 0))
    return self._server.getsockname()[1]

  def accept(self, processes: int):
    """Waits until all other processes have connected.

    Raises:
      OSError: one did not, within a minute.
    """
    self._server.settimeout(_CONNECT_SECS)
    while len(self._peers) < processes - 1:
      peer, _ = self._server.accept()
      peer.settimeout(self._silence_secs)
      lines = peer.makefile('rb')
      try:
        process = int(json.loads(lines.readline())['process'])
      except (OSError, ValueError, KeyError, TypeError):
        peer.close()  # A stranger, such as a scanner of ports.
        continue
      self._follow(process, peer, lines)
    self._server.close()
    self._start(self._ping)

  def connect(self, host: str, port: int):
    """Connects to the first process.

    Raises:
      OSError: it is not there.
    """
    peer = socket.create_connection((host, port), _CONNECT_SECS)
    peer.sendall(_line({'process': self._process}))
    peer.settimeout(self._silence_secs)
    self._follow(0, peer, peer.makefile('rb'))
    self._start(self._ping)

  def close(self, reason: str | None = None):
    """Says that this process is done, or why it fails."""
    with self._lock:
      self._over = True
      for peer in self._peers.values():
        with contextlib.suppress(OSError):
          peer.sendall(_line({'end': reason}))
    self._await_others()

  def _await_others(self):
    """Lets the first process end last: the others hold on to its services."""
    deadline = time.monotonic() + _LAST_SECS
    while (
      self._process == 0
      and len(self._gone) < len(self._peers)
      and time.monotonic() < deadline
    ):
      time.sleep(0.05)

  def _follow(self, process: int, peer: socket.socket, lines: IO[bytes]):
    self._peers[process] = peer
    self._start(self._read, process, lines)

  def _start(self, target: Callable, *args):
    threading.Thread(target=target, args=args, daemon=True).start()

  def _read(self, process: int, lines: IO[bytes]):
    """Reads what a process says, until its connection breaks."""
    reason = 'it was killed, or its host is gone'
    try:
      for line in lines:
        message = json.loads(line)
        if 'end' in message:
          self._ended.add(process)
          self._start(
            self._end_after, message.get('process', process), message['end']
          )
    except ConnectionResetError:
      pass
    except TimeoutError:
      reason = f'it has said nothing for {self._silence_secs:.0f} s'
    except (OSError, ValueError) as error:
      reason = f'its connection broke ({error})'
    self._gone.add(process)
    if process not in self._ended:
      self._lost(process, reason)

  def _end_after(self, process: int, reason: str | None):
    """Ends this process after one that has said how it ends."""
    time.sleep(_DONE_SECS if reason is None else _OWN_ERROR_SECS)
    self._lost(process, reason or 'it is done, and this one is not')

  def _lost(self, process: int, reason: str):
    """Ends this process because another one has, and tells all others."""
    with self._lock:
      if self._over:
        return
      self._over = True
      for other, peer in self._peers.items():
        if other != process:
          with contextlib.suppress(OSError):
            peer.sendall(_line({'end': reason, 'process': process}))
    self._await_others()
    self._end(
      EXIT_CODE,
      f'process {process} has ended: {reason}; the same command on every host '
      'goes on from the newest checkpoint, if there is one',
    )

  def _ping(self):
    while not self._over:
      time.sleep(_PING_SECS)
      with self._lock:
        for process, peer in self._peers.items():
          if process not in self._ended and not self._over:
            with contextlib.suppress(OSError):  # The reader tells.
              peer.sendall(_line({}))


def _line(message: dict) -> bytes:
  return json.dumps(message).encode() + b'\n'
