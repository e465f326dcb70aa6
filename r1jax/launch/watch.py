"""Watches the processes of a run: where one ends, all end, and say why.

A process that is gone leaves the others waiting for it in a collective
operation. JAX notices after its heartbeats have stopped for long, and then
aborts. Here every process keeps a connection to the first one: it breaks the
moment a process is killed, carries the last words of one that fails, and is
silent where a process or its host has stopped.

  process 1 ──┐
  process 2 ──┼── process 0, which tells each what becomes of the others
  process 3 ──┘

Messages are lines of JSON: {} that a process lives, {'end': why} that it fails,
{'end': null} that it is done.
"""

from collections.abc import Callable
import contextlib
import json
import socket
import threading
import time

from r1jax import interrupts

EXIT_CODE = 6  # Another process of the run has ended.
_PING_SECS = 1.0
_CONNECT_SECS = 60.0
_LAST_SECS = 5.0


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
    self._done: set[int] = set()
    self._gone: set[int] = set()
    self._over = False

  def listen(self) -> int:
    """Opens a port for the other processes, and returns it."""
    self._server = socket.create_server(('', 0), backlog=1024)
    return self._server.getsockname()[1]

  def accept(self, processes: int):
    """Waits until all other processes have connected.

    Raises:
      OSError: one did not, within a minute.
    """
    self._server.settimeout(_CONNECT_SECS)
    for _ in range(processes - 1):
      peer, _ = self._server.accept()
      peer.settimeout(self._silence_secs)
      line = peer.makefile('rb').readline()
      self._follow(int(json.loads(line)['process']), peer)
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
    self._follow(0, peer)
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

  def _follow(self, process: int, peer: socket.socket):
    self._peers[process] = peer
    self._start(self._read, process, peer)

  def _start(self, target: Callable, *args):
    threading.Thread(target=target, args=args, daemon=True).start()

  def _read(self, process: int, peer: socket.socket):
    """Reads what a process says, until its connection breaks."""
    reason = 'it was killed, or its host is gone'
    try:
      for line in peer.makefile('rb'):
        message = json.loads(line)
        if message.get('end'):
          self._start(
            self._lost, message.get('process', process), message['end']
          )
        elif 'end' in message:
          self._done.add(process)
    except ConnectionResetError:
      pass
    except TimeoutError:
      reason = f'it has said nothing for {self._silence_secs:.0f} s'
    except (OSError, ValueError) as error:
      reason = f'its connection broke ({error})'
    self._gone.add(process)
    if process not in self._done:
      self._lost(process, reason)

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
          if process not in self._done and not self._over:
            with contextlib.suppress(OSError):  # The reader tells.
              peer.sendall(_line({}))


def _line(message: dict) -> bytes:
  return json.dumps(message).encode() + b'\n'
