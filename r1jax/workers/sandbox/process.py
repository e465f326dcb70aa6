"""One program's process, controlled from outside the sandbox.

A deadline is measured on the clock of workers/clock.py, so other load on the
machine makes no program exceed it. The wall clock bounds it much later.
"""

import contextlib
import json
import math
import os
import select
import socket
import struct
import time

from r1jax.workers import clock

_END_SECS = 5.0  # A killed process normally ends within milliseconds.
# Time between two looks at the clock of a program: the longest, and the shortest,
# in the beginning and where little is left of its time.
_POLL_SECS, _MIN_POLL_SECS = 0.02, 0.002
# Wall-clock limit of a program that neither works nor sleeps: a multiple of its
# own limit, and so much more. A machine that is slower is broken.
_WALL_FACTOR, _WALL_SECS = 10.0, 20.0


class TooLongError(Exception):
  """A reply exceeds its size limit."""


class Process:
  """The process of one program.

  Attributes:
    lost: Whether the server no longer answers.
  """

  def __init__(self, control: socket.socket, data: socket.socket):
    """Takes over a process that the server has been asked to start.

    Args:
      control: The server's control socket, see server.py.
      data: The socket of the program.
    """
    self._control, self._data = control, data
    self._clock: clock.BusyClock | None = None
    self._status: int | None = None
    self._readable = select.poll()
    self._readable.register(data, select.POLLIN)
    self.lost = False

  def restart_clock(self):
    """Sets the clock of the process to 0."""
    try:
      if self._clock is not None:
        self._clock.restart()
    except OSError:  # The process is gone.
      self._clock = None

  def read_clock(self) -> float | None:
    """Returns the seconds on the clock of the process.

    Returns:
      None if the process has not started or is gone.
    """
    if self._clock is None:
      self._receive(0)
    if self._clock is None:
      return None
    try:
      return self._clock.read()
    except OSError:
      return None

  def end(self, deadline: 'Deadline | None' = None) -> int | None:
    """Waits for the process until the deadline, then kills it.

    Args:
      deadline: Ends the wait; None to kill it at once.

    Returns:
      Its exit status, or −signal; None if the server is lost.
    """
    with contextlib.suppress(TimeoutError):
      while deadline is not None and not self._ended:
        self._receive(deadline.poll_secs())
    if not self._ended:
      with contextlib.suppress(OSError):
        self._control.send(b'{"kill": true}')
      end = time.monotonic() + _END_SECS
      while not self._ended and (left := end - time.monotonic()) > 0:
        self._receive(left)
      self.lost = self._status is None
    return self._status

  @property
  def _ended(self) -> bool:
    return self.lost or self._status is not None

  def _receive(self, secs: float):
    """Receives a packet of the server, for which it waits so long."""
    self._control.settimeout(max(secs, 1e-4))
    try:
      packet, fds, _, _ = socket.recv_fds(self._control, 4096, 1)
    except TimeoutError:
      return
    except OSError:
      packet, fds = b'', []
    message = json.loads(packet) if packet else {}
    self.lost = not message
    for fd in fds:
      with contextlib.suppress(OSError):  # It ended in the meantime.
        self._clock = clock.BusyClock(_pid(fd))
      os.close(fd)
    if 'exit' in message:
      self._status = message['exit']

  def send(self, payload: bytes, deadline: 'Deadline'):
    """Sends bytes to the process.

    Raises:
      TimeoutError: The deadline passed.
      ConnectionError: The process ended.
    """
    unsent = memoryview(payload)
    while unsent:
      self._data.settimeout(deadline.poll_secs())
      with contextlib.suppress(TimeoutError):
        unsent = unsent[self._data.send(unsent) :]

  def receive_frame(self, max_bytes: int, deadline: 'Deadline') -> bytes | None:
    """Receives one frame; None if the process ended.

    Raises:
      TimeoutError: The deadline passed.
      TooLongError: The frame announces more than max_bytes.
    """
    header = self._read(4, deadline)
    if len(header) < 4:
      return None
    (length,) = struct.unpack('>I', header)
    if length > max_bytes:
      raise TooLongError
    payload = self._read(length, deadline)
    return payload if len(payload) == length else None

  def receive_all(self, max_bytes: int, deadline: 'Deadline') -> bytes:
    """Receives until the process ends or closes the socket.

    Raises:
      TimeoutError: The deadline passed.
      TooLongError: There is more than max_bytes.
    """
    output = self._read(max_bytes + 1, deadline)
    if len(output) > max_bytes:
      raise TooLongError
    return output

  def _read(self, count: int, deadline: 'Deadline') -> bytes:
    """Reads `count` bytes, or fewer where the process ends."""
    parts, missing = [], count
    while missing:
      self._wait_readable(deadline)
      try:
        part = self._data.recv(min(missing, 1 << 16))
      except ConnectionError:
        part = b''
      if not part:
        break
      parts.append(part)
      missing -= len(part)
    return b''.join(parts)

  def _wait_readable(self, deadline: 'Deadline'):
    """Waits for bytes of the process; raises TimeoutError."""
    try:
      while not self._is_readable(deadline.poll_secs()):
        pass
    except TimeoutError:
      # It may have sent them while this process waited for a core.
      if not self._is_readable(0):
        raise

  def _is_readable(self, secs: float) -> bool:
    return bool(self._readable.poll(1000 * secs))


class Deadline:
  """The time that a process has for one thing, from now on."""

  def __init__(self, process: Process, secs: float, wall_end: float = math.inf):
    """Starts the clock.

    Args:
      process: The process.
      secs: Seconds that it may use, on its own clock.
      wall_end: Value of time.monotonic() that ends its time in any case.
    """
    self._process, self._secs = process, secs
    self._start = time.monotonic()
    slowest = self._start + _WALL_FACTOR * secs + _WALL_SECS
    self._wall_end = min(wall_end, slowest)
    self._used: float | None = None
    process.restart_clock()

  def poll_secs(self) -> float:
    """Returns how long to wait before the next call of this method.

    Raises:
      TimeoutError: The deadline has passed.
    """
    now = time.monotonic()
    elapsed = now - self._start
    if elapsed < min(self._secs, _MIN_POLL_SECS):
      return _MIN_POLL_SECS  # It is not worth a look at the clock.
    used = self._process.read_clock()
    self._used = self._used if used is None else used
    left = self._secs - (self._used or 0.0)
    if left <= 0 or now >= self._wall_end:
      raise TimeoutError
    return min(max(min(left, elapsed), _MIN_POLL_SECS), _POLL_SECS)

  def used_secs(self) -> float:
    """Returns the seconds that the process has used."""
    elapsed = time.monotonic() - self._start
    if self._used is None and elapsed < _MIN_POLL_SECS:
      return elapsed  # It is not worth a look at the clock.
    used = self._process.read_clock()
    used = self._used if used is None else used
    return min(elapsed, self._secs) if used is None else used


def _pid(pidfd: int) -> int:
  """Returns the process id of a pidfd; −1 if the process is gone or not seen."""
  with contextlib.suppress(OSError):
    with open(f'/proc/self/fdinfo/{pidfd}') as file:
      for line in file:
        if line.startswith('Pid:'):
          return int(line.split()[1]) or -1
  return -1
