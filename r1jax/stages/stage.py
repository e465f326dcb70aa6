"""What a stage is: built and checked, then run when its workdir is claimed."""

import abc
from collections.abc import Collection
from pathlib import Path

import ml_collections

from r1jax.stages.build.parts import Parts

OUTPUT = 'model.safetensors'  # Its presence says that the stage is done.


class Stage(abc.ABC):
  """One stage of a run.

  Attributes:
    name: Of its section in the config and of its folder in the workdir.
    output: The file that it leaves; there when all is done.
    fresh: It begins with parameters of its own instead of config.init's.
    leaves_policy: Its output is the weights of a policy.
  """

  name: str
  output: str = OUTPUT
  fresh: bool = False
  leaves_policy: bool = True

  @classmethod
  def check(
    cls,
    config: ml_collections.ConfigDict,
    parts: Parts,
    missing: Collection[str],
  ):
    """Refuses what is wrong already before all files are there.

    Args:
      config: Of the run.
      parts: Its parts.
      missing: Keys of the config whose files are not there yet.

    Raises:
      UserError: naming the key.
    """

  @abc.abstractmethod
  def run(self, directory: Path, base_params, about: dict) -> Path:
    """Does its work, or goes on with it after a kill.

    Args:
      directory: Its own.
      base_params: To begin with.
      about: The metadata of what it leaves.

    Returns:
      The path of `output`.
    """
