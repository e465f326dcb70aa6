"""A stage declares itself; runs, pipelines, lineage, info and aot read that.

A stage is registered under the name of its section in the config, which is
also the name of its folder in a workdir. It says which keys may name another
stage's output and of what kind (`takes`), what it leaves (`leaves`), which
files it reads (`reads`), which networks it holds (`networks`) and which jitted
programs train them (`update`).
"""

import abc
from collections.abc import Collection, Mapping, Sequence
import dataclasses
import enum
from pathlib import Path
from typing import Any, ClassVar

from r1jax.checkpoints import weights
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import Section
from r1jax.config.schema.training import OptimizerConfig
from r1jax.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.sharding import Layout
from r1jax.stages.build.parts import Parts

WEIGHTS = 'model.safetensors'  # Its presence says that the stage is done.


class Kind(enum.StrEnum):
  """Kinds of what one stage leaves and another one takes, as errors say it."""

  POLICY = 'a policy'
  REWARD_MODEL = 'a reward model'
  PRM = 'a process reward model'
  SFT_DATA = 'demonstrations'
  PREFERENCE_DATA = 'preference pairs'
  STEP_LABELS = 'labelled steps'

  @property
  def is_weights(self) -> bool:
    """Whether it is a model, as opposed to a dataset."""
    return self in (Kind.POLICY, Kind.REWARD_MODEL, Kind.PRM)


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that a stage holds in memory.

  Attributes:
    label: Its role, such as 'reference policy'; '' for the one that is trained.
    model: Its architecture.
    optimizer: Its optimizer; None for a network that is not trained.
  """

  label: str
  model: ModelConfig
  optimizer: OptimizerConfig | None = None


@dataclasses.dataclass(frozen=True)
class Update:
  """A jitted program that trains a network.

  Attributes:
    label: The algorithm, for people: 'GRPO'.
    model: The network that is trained.
    step: The jitted function.
    arguments: Its arguments as ShapeDtypeStructs with shardings.
    rows, tokens: Rows of its batch, and columns of each; of one microbatch
      where the number of microbatches depends on the data.
    microbatches: The largest such number; 1 elsewhere.
    accumulation_steps: The equal parts in which the rows are computed.
  """

  label: str
  model: Transformer
  step: Any
  arguments: tuple[Any, ...]
  rows: int
  tokens: int
  microbatches: int = 1
  accumulation_steps: int = 1


class ProgramKind(enum.StrEnum):
  """The task of a program in a training step."""

  RELAYOUT = 'relayout'  # Makes the parameters to sample with.
  PREFILL = 'prefill'
  DECODE = 'decode'
  SCORE = 'score'  # Log-probabilities or values of a whole batch.
  UPDATE = 'update'


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted program of a training step, to compile ahead.

  Attributes:
    label: Its result, for people: 'GRPO update'.
    kind: Its task in a step.
    model: The network that it runs.
    function: The jitted function.
    arguments: Its arguments, abstract arrays with shardings.
    tokens: Tokens that all devices compute in one call; where the number of
      microbatches depends on the data, in one of each update that a call has.
    row_tokens: Columns of a row.
    microbatches: The largest number of microbatches of an update.
    passes: Networks that run over each token.
    keywords: Its static arguments.
    beside: Bytes on one device of what is in memory during a call and is none
      of its arguments, by name.
  """

  label: str
  kind: ProgramKind
  model: Transformer
  function: Any
  arguments: tuple[Any, ...]
  tokens: int
  row_tokens: int
  microbatches: int = 1
  passes: int = 1
  keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  beside: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Stage(abc.ABC):
  """One stage of a run.

  Attributes:
    name: Name of its section in the config and of its folder in a workdir.
    section: The section's dataclass.
    takes: Prefixes of the keys that may name another stage ('@name'), and the
      kinds of output that these keys accept. Every stage takes `init`.
    output: The file that it leaves; it is there when all is done.
    starts_fresh: Whether it begins with random parameters instead of
      config.init's.
    samples_apart: Whether processes whose devices only sample take part in it.
  """

  name: ClassVar[str]
  section: ClassVar[type[Section]]
  takes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {}
  output: ClassVar[str] = WEIGHTS
  starts_fresh: ClassVar[bool] = False
  samples_apart: ClassVar[bool] = False

  @classmethod
  def leaves(cls, config: RunConfig) -> Kind:
    """Returns the kind of its output."""
    del config
    return Kind.POLICY

  @classmethod
  def reads(cls, config: RunConfig) -> dict[str, list[Path]]:
    """Returns the files that it reads, by the key that names them.

    `init` and the tokenizer, which every stage reads, are not among them.
    """
    del config
    return {}

  @classmethod
  def networks(cls, config: RunConfig) -> list[Network]:
    """Returns the networks that it holds; by default the policy alone."""
    return [Network('', config.model)]

  @classmethod
  def loaded_models(cls, config: RunConfig) -> dict[str, Path]:
    """Returns the weights of other models that it keeps in memory.

    They are keyed by the key that names them. Their architecture is known
    from the files alone, which may not be there yet.
    """
    del config
    return {}

  @classmethod
  def update(
    cls, config: RunConfig, layout: Layout, **options: Any
  ) -> list[Update]:
    """Returns the programs of one training step, with abstract arguments.

    No array is allocated, and the layout's devices need not be there.

    Args:
      config: The run.
      layout: The mesh and its tables.
      **options: Values that only a run knows, such as the number of updates;
        the defaults serve for compiling ahead.

    Raises:
      UserError: the stage trains nothing, or a batch does not divide.
    """
    del config, layout, options
    raise UserError(f'aot: the stage {cls.name!r} trains nothing')

  @classmethod
  def programs(cls, config: RunConfig, layout: Layout) -> list[Program]:
    """Returns all large programs of one training step, in their order.

    These are its updates, unless a stage says otherwise.

    Args:
      config: The run.
      layout: The mesh and its tables; its devices need not be there.

    Raises:
      UserError: the stage trains nothing, or a batch does not divide.
    """
    return [as_program(update) for update in cls.update(config, layout)]

  @classmethod
  def cache_file(cls, config: RunConfig) -> Path | None:
    """Returns where its output is kept for other runs; None for nowhere."""
    del config
    return None

  @classmethod
  def check_cached(cls, path: Path):
    """Raises UserError if a kept output is broken."""
    del path

  @classmethod
  def other_kind_hint(cls, wanted: Collection[Kind]) -> str:
    """Returns how a config makes it leave one of these kinds; '' if none."""
    del wanted
    return ''

  @classmethod
  def check(cls, config: RunConfig, parts: Parts, missing: Collection[str]):
    """Refuses what is wrong before all of its files are there.

    Args:
      config: The run.
      parts: Its model, tokenizer and template.
      missing: Keys whose files other stages are still to write.

    Raises:
      UserError: naming the key.
    """
    del config, parts, missing

  @classmethod
  def check_input(
    cls, config: RunConfig, key: str, parent: RunConfig, parent_name: str
  ):
    """Refuses another stage's output that is of the right kind and unfit.

    Args:
      config: The run.
      key: Its key that names the other stage.
      parent: The other stage's run.
      parent_name: Its name in the pipeline.

    Raises:
      UserError: saying what does not fit.
    """
    del config, key, parent, parent_name

  @abc.abstractmethod
  def __init__(self, config: RunConfig, parts: Parts):
    """Builds and checks all that `run` needs; nothing is written."""

  @abc.abstractmethod
  def run(self, directory: Path, params: Any, metadata: dict) -> Path:
    """Does its work, or goes on with it after a kill.

    Every process of a run calls it, one on each host: what is the same in all
    of them is written by the first one alone; see r1jax/processes.py.

    Args:
      directory: Its own folder.
      params: Parameters to begin with: what the stage before it left, or for
        the first stage those of config.init.
      metadata: Metadata of the output.

    Returns:
      The path of the output.
    """

  def latest_params(self, directory: Path, params: Any) -> Any | None:
    """Returns the policy of the newest checkpoint; None without one.

    Args:
      directory: Its own folder.
      params: Parameters to begin with, or their shapes.
    """
    del directory, params
    return None


def as_program(
  update: Update, beside: Mapping[str, int] | None = None
) -> Program:
  """Returns an update as a program; see Program.beside."""
  return Program(
    label=f'{update.label} update',
    kind=ProgramKind.UPDATE,
    model=update.model,
    function=update.step,
    arguments=update.arguments,
    tokens=update.rows * update.tokens,
    row_tokens=update.tokens,
    microbatches=update.microbatches,
    beside=beside or {},
  )


def save_weights(
  directory: Path, params: Any, metadata: dict, dtype: str = 'float32'
) -> Path:
  """Writes the weights that say that a stage is done; returns their path."""
  path = directory / WEIGHTS
  weights.save(path, params, dtype, metadata)
  return path


def listed(key: str, files: Sequence[Path]) -> dict[str, Path]:
  """Returns files by key, numbered where there are several: 'sft.data[1]'."""
  if len(files) == 1:
    return {key: files[0]}
  return {f'{key}[{i}]': file for i, file in enumerate(files)}
