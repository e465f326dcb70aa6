"""The process of a program may end at any moment, also before it is looked at."""

import os
import socket

from r1jax.workers import clock
from r1jax.workers.sandbox.process import Process


def test_a_process_that_ends_before_its_clock_is_read(monkeypatch):
  def gone():
    raise OSError(22, 'Invalid argument')

  monkeypatch.setattr(clock, 'cpu_clock', lambda pid: gone)
  control, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  data, _ = socket.socketpair()
  pidfd = os.pidfd_open(os.getpid())
  socket.send_fds(server, [b'{"started": true}'], [pidfd])
  os.close(pidfd)
  server.send(b'{"exit": 3}')
  process = Process(control, data)
  assert process.read_clock() is None
  assert process.end() == 3
  assert not process.lost
