"""The file that config.init names, or the checkpoint of another run."""

from pathlib import Path
import re
from typing import NamedTuple

from r1jax import buckets, registry
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.stages import ending, run_record
from r1jax.train import manifest

SHIPPED_BASE = Path(__file__).parents[1] / 'assets' / 'base_tiny.safetensors'


def names_stage(init: str) -> bool:
  """Returns whether a stage that begins with random parameters makes it."""
  return init in registry.stage and registry.stage.get(init).starts_fresh


class SavedStep(NamedTuple):
  """A checkpoint of another run that config.init names: 'runs/a@40'.

  Attributes:
    init: The value of config.init.
    stage: The folder of the stage that saved it, in the folder of its run.
    step: Its step.
  """

  init: str
  stage: Path
  step: int

  @property
  def folder(self) -> Path:
    """The folder of the checkpoint."""
    return self.stage / ending.CHECKPOINTS / str(self.step)


def saved_step(init: str) -> SavedStep | None:
  """Returns the checkpoint that config.init names; None for anything else.

  Args:
    init: 'FOLDER@STEP' with the folder of a run, or of one of its stages; of a
      run the last stage that has checkpoints is meant.

  Raises:
    UserError: there is no such folder, checkpoint or step.
  """
  match = re.fullmatch(r'(?!hf://)(?P<run>.+)@(?P<step>\d+)', init)
  if match is None or ('://' not in init and Path(init).expanduser().exists()):
    return None
  run, step = buckets.path(match['run']), int(match['step'])
  if buckets.url(run):
    raise UserError(
      f'init: {init!r}: checkpoints are not read from a bucket; copy the run to '
      'this machine, or name a model.safetensors'
    )
  if not run.is_dir():
    raise UserError(f'init: {init!r}: there is no folder {run}')
  stages = [run] if (run / ending.CHECKPOINTS).is_dir() else _stages(run)
  steps = ending.saved_steps(stages[-1]) if stages else []
  if not steps:
    raise UserError(f'init: {init!r}: {run} holds no checkpoint')
  if step not in steps:
    there = ', '.join(map(str, steps))
    raise UserError(
      f'init: {init!r}: {stages[-1]} has no checkpoint of step {step}; there '
      f'are those of {there}'
    )
  return SavedStep(init, stages[-1], step)


def _stages(run: Path) -> list[Path]:
  """Returns the folders of a run's stages that have checkpoints, in order."""
  found = [path.parent for path in run.glob(f'*/{ending.CHECKPOINTS}')]
  order = {name: i for i, name in enumerate(run_record.stages(run))}
  return sorted(
    (each for each in found if ending.saved_steps(each)),
    key=lambda each: order.get(each.name, -1),
  )


def init_file(config: RunConfig) -> Path:
  """Returns the file or folder that config.init names; it need not exist.

  A checkpoint of another run stands for all of its files by the list of them.

  Raises:
    UserError: it names a stage whose output is kept nowhere, or a checkpoint
      that is not there.
  """
  if config.init == 'shipped':
    return SHIPPED_BASE
  if saved := saved_step(config.init):
    return saved.folder / manifest.FILE
  if not names_stage(config.init):
    return buckets.given(config.init)
  kept = registry.stage.get(config.init).cache_file(config)
  if kept is None:
    raise UserError(
      f'init: the output of the stage {config.init!r} is kept for no other '
      'run; name its file, or put the stage first in config.stages'
    )
  return kept
