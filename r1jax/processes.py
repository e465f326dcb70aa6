"""The processes of a run, one on each host, and what they tell each other.

Every process runs the same program over the same global arrays. What one of
them alone can see, such as a file, a clock or a signal, must be told to all
before they act on it: else they wait for each other for ever. Each function
here is a collective operation, which every process calls at the same point; in
a run of one process it costs nothing.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from r1jax import files, interrupts
from r1jax.errors import DiskFull, UserError


def is_first() -> bool:
  """Whether this process writes and says what is the same in all of them."""
  return jax.process_index() == 0


def several() -> bool:
  """Whether the run has more than one process."""
  return jax.process_count() > 1


def own_folder(folder: Path) -> Path:
  """Returns the folder of what each process writes for itself.

  The first process's is the folder itself, so that a run has one place for its
  metrics and samples; process 3 writes to processes/3 in it.
  """
  index = jax.process_index()
  return folder / 'processes' / str(index) if index else folder


def log_to(folder: Path):
  """Sends what processes after the first print to a file each in a folder.

  The last line of one that ends early reaches its terminal too.
  """
  if is_first():
    return
  folder.mkdir(parents=True, exist_ok=True)
  log = folder / f'process_{jax.process_index()}.txt'
  print(f'r1jax: process {jax.process_index()} says more in {log}', flush=True)
  sys.stderr.flush()
  interrupts.keep_terminal()
  _redirect(log, 1, 2)


def silence():
  """Lets only the first process print results; errors are printed by all."""
  if not is_first():
    _redirect(Path(os.devnull), 1)


def _redirect(path: Path, *streams: int):
  file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  for stream in streams:
    os.dup2(file, stream)
  os.close(file)


def all_gather(message: bytes) -> list[bytes]:
  """Returns the messages of all processes, in their order."""
  if not several():
    return [message]
  sizes = multihost_utils.process_allgather(np.array(len(message), np.int32))
  # Lengths are powers of two, so that few programs are compiled.
  padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
  padded[: len(message)] = np.frombuffer(message, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row[:size].tobytes() for row, size in zip(rows, sizes)]


def exchange(value: Any) -> list[Any]:
  """Returns the values of all processes, in their order; each is JSON."""
  if not several():
    return [value]
  return [json.loads(text) for text in all_gather(json.dumps(value).encode())]


def from_first(make: Callable[[], Any]) -> Any:
  """Returns what the first process makes, as JSON; the others do not call it.

  Raises:
    UserError: it raised one in the first process.
  """
  value: Any = None
  with agreed():
    if is_first():
      value = make()
  return exchange(value)[0]


def from_holders(tree: Any, make: Callable[[], Any]) -> Any:
  """Returns what the processes make that hold arrays, in all processes.

  Each makes it itself if all processes hold a part of the arrays; else they are
  told what the first one has made.

  Args:
    tree: Arrays over the devices of the processes that hold them; the first
      process is one of them. The others have their shapes alone.
    make: Makes a value that is JSON.
  """
  if all_hold(tree):
    return make()
  return exchange(make() if is_held(tree) else None)[0]


def is_held(tree: Any) -> bool:
  """Whether this process holds arrays, as opposed to their shapes."""
  return all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))


def all_hold(tree: Any) -> bool:
  """Whether every process holds a part of arrays; the same in all of them."""
  if not several():
    return True
  holders = {
    device.process_index
    for x in jax.tree.leaves(tree)
    for device in x.sharding.device_set
  }
  return len(holders) == jax.process_count()


@contextlib.contextmanager
def agreed() -> Iterator[None]:
  """Ends in an error in all processes where it ends in one in any of them.

  No collective operation may be within it.

  Raises:
    UserError: another process raised an error; it says which, and has its exit
      code.
  """
  failure: Exception | None = None
  try:
    yield
  except Exception as error:
    if not several():
      raise
    failure = error
  ends = exchange(failure and _end_of(failure))
  if failure is not None:
    raise failure
  for process, end in enumerate(ends):
    if end:
      code, reason = end
      elsewhere = UserError(f'process {process}: {reason}')
      elsewhere.exit_code = code
      raise elsewhere


def stop_if_asked(kept: str):
  """Ends the command where a signal came too late to end the work before.

  Args:
    kept: Text that says what is finished, and how to go on.

  Raises:
    Interrupted: in all processes, where any of them has met the signal.
  """
  if signum := max(exchange(interrupts.take_pending())):
    error = interrupts.Interrupted(signum)
    error.kept = kept
    raise error


def check_same(facts: Mapping[str, str], what: str):
  """Checks that facts are the same in all processes.

  Args:
    facts: Short texts by name.
    what: The kind of facts, for the error.

  Raises:
    UserError: the facts that differ, with the value of each process.
  """
  found = exchange(dict(facts))
  for other, theirs in enumerate(found):
    differ = [
      f'{name} is {found[0].get(name, "absent")!r} in process 0 and '
      f'{theirs.get(name, "absent")!r} in process {other}'
      for name in sorted(found[0].keys() | theirs.keys())
      if found[0].get(name) != theirs.get(name)
    ]
    if differ:
      raise UserError(f'processes: {what} differ: {"; ".join(differ[:4])}')


def _end_of(error: Exception) -> tuple[int, str]:
  """Returns the exit code and the line of a process that an error ends."""
  if files.is_disk_full(error):
    return DiskFull.exit_code, f'its disk is full: {error}'
  text = ' '.join(str(error).split())
  if isinstance(error, UserError):
    return error.exit_code, text
  return 1, f'{type(error).__name__}: {text}'
