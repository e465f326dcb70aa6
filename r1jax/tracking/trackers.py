"""The trackers that config.tracking names, and what goes wrong with them.

The first process of a run shows it alone. The ids that trackers gave a run are
kept in trackers.json in the folder of its stage, so that a run that goes on
does so under the same name. A tracker that fails is left out from then on, with
one warning: no network is worth a run.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from r1jax import files, processes, registry
from r1jax.errors import UserError
from r1jax.tracking import mlflow, tensorboard, trackio, wandb
from r1jax.tracking.tracker import TrackedRun, Tracker

BUILT_IN = (tensorboard, wandb, mlflow, trackio)  # They register themselves.
FILE = 'trackers.json'
_log = logging.getLogger(__name__)


def check(names: Sequence[str]):
  """Refuses trackers that are not installed.

  Raises:
    UserError: naming the package and the command that installs it.
  """
  for name in names:
    tracker = registry.tracker.get(name, 'tracking')
    if tracker.package and importlib.util.find_spec(tracker.package) is None:
      raise UserError(
        f'tracking: {tracker.package} is not installed; in the checkout: '
        f"pip install -e '.[{tracker.extra}]'"
      )


def opened(
  names: Sequence[str],
  folder: Path,
  config: Mapping[str, Any],
  last_step: int | None,
) -> 'Trackers':
  """Opens the trackers of a stage, in the first process of its run alone.

  Args:
    names: Their names.
    folder: The folder of the stage.
    config: The flat config of the run.
    last_step: The last step that was shown before; None for a new run.
  """
  own = names if processes.is_first() else ()
  name = f'{folder.absolute().parent.name}/{folder.name}'
  first_step = 0 if last_step is None else last_step + 1
  return Trackers(own, TrackedRun(name, folder, config, first_step))


class Trackers:
  """All trackers of one stage of a run."""

  def __init__(self, names: Sequence[str], run: TrackedRun):
    """Opens them.

    Args:
      names: Their names; () for none, as in all processes but the first.
      run: The run, without an id.
    """
    self._open: dict[str, Tracker] = {}
    path = run.folder / FILE
    ids = _read(path)
    for name in names:
      own = dataclasses.replace(run, id=ids.get(name, ''))
      kind = registry.tracker.get(name, 'tracking')
      if kind.in_folder:
        self._open[name] = kind(own)
      else:
        self._try(name, lambda: self._open.update({name: kind(own)}))
    found = ids | {
      name: each.id for name, each in self._open.items() if each.id
    }
    if found != ids:
      files.write_text(path, json.dumps(found) + '\n')

  def write(self, step: int, values: Mapping[str, float]):
    """Shows the metrics of a step."""
    self._each(lambda tracker: tracker.write(step, values))

  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    """Shows completions of a step, if there are any."""
    if rows:
      self._each(lambda tracker: tracker.write_completions(step, rows))

  def close(self, failed: bool):
    """Ends all of them."""
    self._each(lambda tracker: tracker.close(failed))
    self._open.clear()

  def _each(self, do: Callable[[Tracker], None]):
    for name, tracker in list(self._open.items()):
      if tracker.in_folder:
        do(tracker)
      else:
        self._try(name, lambda: do(tracker))

  def _try(self, name: str, do: Callable[[], None]):
    """Does something with a tracker, and leaves it out once that fails."""
    try:
      do()
    except Exception as error:
      self._open.pop(name, None)
      text = ' '.join(str(error).split())[:200] or type(error).__name__
      _log.warning(
        'tracking: %s has failed and is left out until the run is started '
        'again: %s',
        name,
        text,
      )


def _read(path: Path) -> dict[str, str]:
  """Returns the id that each tracker gave the run."""
  if not path.exists():
    return {}
  try:
    return {str(name): str(id_) for name, id_ in _items(path)}
  except (ValueError, AttributeError) as error:
    raise UserError(
      f'tracking: {path} is broken ({error}); remove it, and trackers begin a '
      'new run'
    ) from error


def _items(path: Path):
  return json.loads(path.read_text()).items()
