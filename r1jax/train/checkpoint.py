"""Checkpoints of training state, data position and seed, stored by Orbax."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from r1jax import buckets, files, processes
from r1jax.errors import UserError


def _is_news(record: logging.LogRecord) -> bool:
  """Whether Orbax logs more than that the disk is full, which it raises too."""
  error = record.exc_info[1] if record.exc_info else None
  return not files.is_disk_full(error or Exception(record.getMessage()))


logging.getLogger('absl').addFilter(_is_news)


class Checkpointer:
  """Saves checkpoints in the background, each of them atomically.

  A checkpoint at step k holds everything that step k + 1 needs. Random keys are
  functions of (seed, step), so only the seed is stored.
  """

  def __init__(self, directory: Path, save_total_limit: int, seed: int):
    self._seed = seed
    self._directory = directory
    self._newest: int | None = None  # The step that was restored or saved last.
    self._manager = ocp.CheckpointManager(
      buckets.home(directory),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=save_total_limit, create=True
      ),
    )

  def save(self, step: int, state: Any, host_state: dict[str, dict]):
    """Starts to save a checkpoint, unless its step is saved already.

    Args:
      step: The step.
      state: The state after it.
      host_state: The data's position and what else the host keeps, as JSON by
        name.
    """
    if step == self._newest:
      return
    self._newest = step
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        host=ocp.args.JsonSave(host_state | {'seed': self._seed}),
      ),
    )

  def restore(self, target: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint; returns None if there is none.

    Args:
      target: The state as ShapeDtypeStructs with shardings.

    Returns:
      The step, the state after it, and what the host kept, by name.

    Raises:
      UserError: The checkpoint does not fit this state, or has another seed.
    """
    step = processes.from_first(self._manager.latest_step)
    if step is None:
      return None
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore()
        ),
      )
    except Exception as error:
      reason = str(error).strip().splitlines()[0][:300]
      raise UserError(
        f'checkpoint: step {step} in {self._directory} does not restore '
        f'({reason}); remove that step to go on from the one before'
      ) from error
    if restored['host']['seed'] != self._seed:
      raise UserError(
        f'checkpoint: step {step} in {self._directory} has seed '
        f'{restored["host"]["seed"]}, the config {self._seed}'
      )
    self._newest = step
    return step, restored['state'], restored['host']

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    """Waits until the last save is finished.

    An error of that save does not take the place of one that is raised already.
    """
    ignored = (Exception,) if kind else ()
    with contextlib.suppress(*ignored):
      self._manager.wait_until_finished()
    with contextlib.suppress(*ignored):
      self._manager.close()
