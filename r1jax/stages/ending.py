"""How a stage says what is kept when a signal or a full disk ends it."""

from collections.abc import Callable, Iterator
import contextlib
from pathlib import Path
from typing import Any

from r1jax import buckets, files
from r1jax.errors import DiskFull, UserError
from r1jax.interrupts import Interrupted

CHECKPOINTS = 'checkpoints'
_COMMITTED = 'commit_success.txt'


@contextlib.contextmanager
def explained(
  name: str, directory: Path, kept: Callable[[], str]
) -> Iterator[None]:
  """Adds to the errors within what is kept of a stage, and how to go on.

  Args:
    name: The stage.
    directory: Its folder.
    kept: Returns what is kept, and what the same command does.

  Raises:
    Interrupted: as raised within, with its `kept`.
    DiskFull: something within found no room to write.
    UserError: a file in the folder may not be written.
  """
  try:
    yield
  except Interrupted as error:
    error.kept = f'{name}: {kept()}'
    raise
  except Exception as error:
    if reason := files.refusal(error, directory):
      raise UserError(
        f'{name}: cannot write to {directory} ({reason}); {kept()}, once it may'
      ) from error
    if not files.is_disk_full(error):
      raise
    raise DiskFull(
      f'{name}: the disk of {directory} is full; {kept()}, once there is room'
    ) from error


def latest_step(directory: Path) -> int | None:
  """Returns the step of the newest checkpoint in a stage's folder."""
  return max(saved_steps(directory), default=None)


def saved_steps(directory: Path) -> list[int]:
  """Returns the steps of the checkpoints in a stage's folder, in order."""
  folder = buckets.home(directory / CHECKPOINTS)
  if not folder.is_dir():
    return []
  return sorted(
    int(place.name)
    for place in folder.iterdir()
    if place.name.isdigit() and _is_whole(place)
  )


def _is_whole(checkpoint: Any) -> bool:
  """Returns whether a checkpoint is finished.

  A folder gets its name when it is. In a bucket it has it from the beginning,
  and Orbax writes an object last that says so.
  """
  return isinstance(checkpoint, Path) or (checkpoint / _COMMITTED).exists()


def kept_checkpoint(directory: Path) -> str:
  """Says which checkpoint is kept in a stage's folder, and how to go on."""
  step = latest_step(directory)
  if step is None:
    return 'there is no checkpoint yet, and the same command begins again'
  return (
    f'the checkpoint of step {step} is kept, and the same command goes on '
    'from it'
  )
