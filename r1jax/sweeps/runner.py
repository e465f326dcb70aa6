"""Runs what a sweep has not finished: each run a public command in a process.

A signal that ends the sweep ends its runs too, by SIGTERM, so that they save
checkpoints; the sweep waits for them.
"""

from collections.abc import Collection, Sequence
import contextlib
import dataclasses
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from r1jax.errors import UserError
from r1jax.interrupts import Interrupted
from r1jax.sweeps import attempts
from r1jax.sweeps.grid import Point
from r1jax.sweeps.plan import Sweep

_PROGRAM = sys.executable, '-m', 'r1jax.cli.main'
_EXEC = sys.executable, '-m', 'r1jax.sweeps.exec_run'
_POLL_SECS = 0.1
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Going:
  """A run that is going on.

  Attributes:
    name: The grid point and seed, for messages.
    folder: Its folder.
    process: Its process.
    slot: The number of its share of the cores.
    began: The time when it began, by time.monotonic().
  """

  name: str
  folder: Path
  process: subprocess.Popen
  slot: int
  began: float


def command(sweep: Sweep, point: Point, seed: int, folder: Path) -> list[str]:
  """Returns the arguments of r1jax that make a run."""
  return [
    sweep.command,
    f'--config={sweep.config}',
    f'--workdir={folder}',
    *sweep.overrides,
    *point.overrides(),
    f'--config.seed={seed}',
  ]


def shares(parallel: int) -> list[list[int]]:
  """Divides the cores of this machine between runs that go on at once.

  Every run has as many as the others, since a sum over another number of
  threads is rounded in another order. With more runs than cores, runs share.

  Args:
    parallel: The number of runs.

  Returns:
    The cores of each of them; [] for each where the system cannot say.
  """
  if not hasattr(os, 'sched_getaffinity'):
    return [[] for _ in range(parallel)]
  cores = sorted(os.sched_getaffinity(0))
  size = max(len(cores) // parallel, 1)
  return [
    [cores[(i * size + j) % len(cores)] for j in range(size)]
    for i in range(parallel)
  ]


def shares_text(parallel: int) -> str:
  """Says how the cores are divided: '2 at once, 1 of 2 cores each'."""
  cores = shares(parallel)
  if not cores[0]:
    return f'{parallel} at once, which share all cores'
  shared = len({core for share in cores for core in share}) < parallel
  return (
    f'{parallel} at once, {len(cores[0])} of {len(os.sched_getaffinity(0))} '
    f'cores each{", which they share" * shared}'
  )


def run_all(
  sweep: Sweep, out: Path, parallel: int, reopened: Collection[Path] = ()
) -> list[str]:
  """Runs all runs that are not finished.

  Args:
    sweep: The sweep, whose folder is claimed.
    out: Its folder.
    parallel: The number of runs that go on at once.
    reopened: Folders of finished runs that have more steps to make.

  Returns:
    Names of the runs that failed, after the others have gone on.

  Raises:
    Interrupted: A signal came; the runs that were going on have ended.
  """
  all_runs = sweep.run_folders(out)
  waiting = [
    each
    for each in all_runs
    if each[2] in reopened or not attempts.is_finished(each[2], sweep.stages)
  ]
  if finished := len(all_runs) - len(waiting):
    _log.info('%d of %d runs are finished already', finished, len(all_runs))
  if waiting:
    _log.info('%d runs, %s', len(waiting), shares_text(parallel))
  going: list[_Going] = []
  failed: list[str] = []
  cores = shares(parallel)
  try:
    while waiting or going:
      free = set(range(parallel)) - {run.slot for run in going}
      while free and waiting:
        point, seed, folder = waiting.pop(0)
        slot = free.pop()
        args = command(sweep, point, seed, folder)
        going.append(
          _begin(args, folder, f'{point.name}/seed_{seed}', slot, cores)
        )
      time.sleep(_POLL_SECS)
      for run in [run for run in going if run.process.poll() is not None]:
        going.remove(run)
        if not _end(run):
          failed.append(run.name)
  except BaseException as error:
    _stop(going)
    if isinstance(error, Interrupted):
      count = sum(
        attempts.is_finished(folder, sweep.stages) for *_, folder in all_runs
      )
      error.kept = (
        f'{count} of {len(all_runs)} runs are finished, and the same command '
        'goes on with the others'
      )
    raise
  return failed


def _begin(
  args: Sequence[str],
  folder: Path,
  name: str,
  slot: int,
  cores: Sequence[Sequence[int]],
) -> _Going:
  """Starts a run in a process group of its own, on its share of the cores."""
  attempts.begin(folder, len(cores[slot]))
  share = ','.join(map(str, cores[slot])) if len(cores) > 1 else ''
  try:
    with open(folder / attempts.LOG, 'a') as log:
      print('$ r1jax', *args, file=log, flush=True)
      process = subprocess.Popen(
        [*_EXEC, str(os.getpid()), share, *_PROGRAM, *args],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {'PYTHONUNBUFFERED': '1'},
        process_group=0,  # Ctrl-C in the terminal reaches the sweep alone.
      )
  except OSError as error:
    raise UserError(f'sweep: cannot start {name}: {error}') from error
  _log.info('%s begins; its log is %s', name, folder / attempts.LOG)
  return _Going(name, folder, process, slot, time.monotonic())


def _end(run: _Going) -> bool:
  """Records and says how a run has ended; returns whether it is finished."""
  code = run.process.returncode
  # Popen has -15 where a signal ended the process; shells have 143.
  code = 128 - code if code < 0 else code
  attempts.end(run.folder, code)
  secs = time.monotonic() - run.began
  if code == 0:
    _log.info('%s is finished, in %.0f s', run.name, secs)
    return True
  _log.warning(
    '%s has failed after %.0f s (exit code %d): %s',
    run.name,
    secs,
    code,
    attempts.last_line(run.folder),
  )
  return False


def _stop(going: Sequence[_Going]):
  """Ends the runs that are going on, and waits until they have saved."""
  for run in going:
    with contextlib.suppress(ProcessLookupError):
      run.process.send_signal(signal.SIGTERM)
  for run in going:
    code = run.process.wait()
    attempts.end(run.folder, 128 - code if code < 0 else code)
