"""Reads some arrays of a checkpoint: the weights that another run begins with.

A checkpoint is a whole training state, of whatever stage, and its other arrays
stay on the disk. What is read is checked as in checkpoint.py: its files by
their digests, and its arrays by their checksums.
"""

import json
from pathlib import Path
from typing import Any

import jax

from r1jax import processes
from r1jax.errors import UserError
from r1jax.train import checksums, manifest

_HOST_FILE = 'host/metadata'
Leaves = dict[str, dict[str, Any]]


def described(folder: Path, where: str) -> Leaves:
  """Returns shape, dtype and checksum of each array of a checkpoint, by path.

  Args:
    folder: The folder of the checkpoint.
    where: Names it in errors.

  Raises:
    UserError: it is broken, or of a version that kept no checksums.
  """
  with processes.agreed():
    problems = manifest.problems(
      folder, jax.process_index(), jax.process_count()
    )
  problems = sum(processes.exchange(problems), [])
  if problems:
    raise UserError(f'{where} is broken: {manifest.shown(problems)}')
  try:
    return json.loads((folder / _HOST_FILE).read_text())['leaves']
  except (OSError, ValueError, KeyError) as error:
    raise UserError(
      f'{where} does not say what arrays it has ({type(error).__name__}: '
      f'{error}); an older version of r1jax wrote it, or it is broken'
    ) from error


def restore(folder: Path, leaves: Leaves, target: Any, where: str) -> Any:
  """Returns some arrays of a checkpoint.

  Every process of a run calls it.

  Args:
    folder: The folder of the checkpoint.
    leaves: The result of `described`.
    target: The arrays as ShapeDtypeStructs with shardings, nested as they are
      there.
    where: Names the checkpoint in errors.

  Raises:
    UserError: they are not there or have another shape or dtype, or what is
      read is not what was saved.
  """
  import orbax.checkpoint as ocp  # It takes long, and few runs need it here.

  wanted = checksums.described(target)
  there = {name: leaves[name] for name in wanted if name in leaves}
  if texts := manifest.misfits(there, wanted):
    raise UserError(f'{where} does not fit: {manifest.shown(texts)}')
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    found = reader.restore(
      folder.absolute() / 'state',
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      ),
    )
  broken = manifest.leaf_problems(checksums.of_tree(found), there)
  if broken:
    raise UserError(f'{where} is broken: {manifest.shown(broken)}')
  return found
