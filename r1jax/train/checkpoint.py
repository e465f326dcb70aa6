"""Checkpoints: state, data position and seed together, by Orbax."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from r1jax.errors import UserError


class Checkpointer:
  """Saves in the background; a save is whole or it is not there.

  A checkpoint at step k holds everything that step k + 1 needs. Randomness is
  a function of (seed, step), so the seed is all there is to keep of it.
  """

  def __init__(self, directory: Path, keep: int, seed: int):
    self._seed = seed
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )

  def save(self, step: int, state: Any, data_state: dict):
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        host=ocp.args.JsonSave({'data': data_state, 'seed': self._seed}),
      ),
    )

  def restore(self, target: Any) -> tuple[int, Any, dict] | None:
    """Restores the newest step, or returns None where there is none.

    Args:
      target: The state as ShapeDtypeStructs with shardings.

    Returns:
      step, state and data position.

    Raises:
      UserError: the checkpoint cannot be read as this state.
    """
    step = self._manager.latest_step()
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
    return step, restored['state'], restored['host']['data']

  def __enter__(self):
    return self

  def __exit__(self, *_):
    """Waits for the save in flight."""
    self._manager.wait_until_finished()
    self._manager.close()
