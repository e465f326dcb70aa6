"""Becomes a run of a sweep: `python -m r1jax.sweeps.exec_run PID CORES COMMAND…`.

It takes its share of the cores, lets the kernel end it when the sweep is killed,
and then is replaced by the command. A process of its own does this since a
program with threads, as one that has imported JAX, cannot do it between fork
and exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, cores: str, command: list[str]):
  """Replaces this process by a command.

  Args:
    parent: The process of the sweep.
    cores: Numbers of cores, '0,1'; '' for all.
    command: The program and its arguments.
  """
  if cores:
    os.sched_setaffinity(0, set(map(int, cores.split(','))))
  if sys.platform == 'linux':  # SIGTERM lets it save a checkpoint.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != parent:  # It was gone before the line above.
    sys.exit('the sweep has ended')
  os.execv(command[0], command)


if __name__ == '__main__':
  main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
