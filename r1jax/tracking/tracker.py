"""The interface of what shows a run: TensorBoard, or an experiment tracker."""

import abc
from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

PROJECT = 'r1jax'  # The project or experiment of all runs, unless one is set.


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """The stage of a run that is to be shown.

  Attributes:
    name: Its name for people, such as 'zero/rl'.
    folder: The folder of the stage.
    config: Every key of the run by its dotted name, as JSON.
    first_step: The first step that this process makes; 0 for a new run, which
      begins with an evaluation.
    id: The id that the tracker gave the run when it began; '' for a new one.
  """

  name: str
  folder: Path
  config: Mapping[str, Any]
  first_step: int = 0
  id: str = ''


class Tracker(abc.ABC):
  """Shows the metrics, the config and sample completions of one stage.

  A class is registered under the name that config.tracking has for it, and
  made with a TrackedRun. What it raises is a warning, and never ends the run,
  unless it writes to the folder of the run.

  Attributes:
    package: The Python package that it needs; '' for none beside r1jax's own.
    extra: The extra of setup.py that installs it.
    in_folder: Whether it writes to the folder of the run alone, so that what
      goes wrong there goes wrong for the run.
    id: The id that the run has there, with which a later process goes on.
  """

  package: ClassVar[str] = ''
  extra: ClassVar[str] = ''
  in_folder: ClassVar[bool] = False
  id: str = ''

  @abc.abstractmethod
  def __init__(self, run: TrackedRun):
    """Begins to show a run, or goes on with the one of `run.id`."""

  @abc.abstractmethod
  def write(self, step: int, values: Mapping[str, float]):
    """Shows the metrics of a step, some of which may be no finite numbers."""

  @abc.abstractmethod
  def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]):
    """Shows completions: rows with 'prompt', 'completion' and more, as JSON."""

  @abc.abstractmethod
  def close(self, failed: bool):
    """Ends what this process shows; `failed` says that the stage goes on later."""
