"""Loads and checks the config of every run of a sweep before any run begins."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

from r1jax.cli import config_file
from r1jax.config import effects
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.runs import changes, inputs, pipeline, pipeline_config, run, workdir
from r1jax.runs.pipeline_config import PipelineConfig
from r1jax.sweeps.grid import Point
from r1jax.sweeps.plan import Sweep, folder

_SHOWN = 3  # Errors that are listed, and grid points of each.
Typed = RunConfig | PipelineConfig


@dataclasses.dataclass(frozen=True)
class PointConfig:
  """The config of a grid point, with the first seed.

  Attributes:
    point: The grid point.
    typed: The config.
  """

  point: Point
  typed: Typed

  @property
  def is_run(self) -> bool:
    """Whether it is the config of one run, as opposed to a pipeline."""
    return isinstance(self.typed, RunConfig)


def load(
  args: list[str], points: Sequence[Point], seed: int
) -> list[PointConfig]:
  """Returns the config of every grid point.

  Args:
    args: --config and the overrides that all runs have.
    points: The grid points.
    seed: The seed.

  Raises:
    UserError: A key or value is wrong or has no effect, with all that are; or
      two grid points are equal.
  """
  with _each_warning_once():
    found = _for_each(points, lambda point: _load(args, point, seed))
  for i, each in enumerate(found):
    for other in found[:i]:
      if other.typed == each.typed:
        raise UserError(
          f'--grid: {other.point.name} and {each.point.name} are the same config'
        )
  return found


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
  """Keeps a warning of keys without effect from coming for each grid point."""
  seen: set[str] = set()

  def is_new(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    known = text in seen
    seen.add(text)
    return not known

  logger = logging.getLogger(effects.__name__)
  logger.addFilter(is_new)
  try:
    yield
  finally:
    logger.removeFilter(is_new)


def _for_each(points: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
  """Does something for each point; raises one error for those that are wrong."""
  found: list[Any] = []
  wrong: dict[str, list[Point]] = {}
  for point in points:
    try:
      found.append(do(point))
    except UserError as error:
      wrong.setdefault(str(error), []).append(getattr(point, 'point', point))
  if wrong:
    texts = [
      text if len(at) == len(points) else f'{text} (in {_listed(at)})'
      for text, at in wrong.items()
    ]
    more = f'; and {len(texts) - _SHOWN} more errors' * (len(texts) > _SHOWN)
    raise UserError('; '.join(texts[:_SHOWN]) + more)
  return found


def _listed(points: Sequence[Point]) -> str:
  names = [point.name for point in points]
  more = f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)
  return '; '.join(names[:_SHOWN]) + more


def _load(args: list[str], point: Point, seed: int) -> PointConfig:
  """Returns the config of a grid point, whose keys all have an effect."""
  own = [*args, *point.overrides(), f'--config.seed={seed}']
  values, holder = config_file.config_flags_of(own)
  config = config_file.load(values, holder, own)
  given = config_file.given_keys(values)
  if 'model' in config:
    typed: Typed = config_file.run_config(config)
    effects.check(typed, given)
  else:
    typed = pipeline_config.load_pipeline(config)
    effects.check_all(typed.runs, given, pipeline.evaluations(typed))
  return PointConfig(point, typed)


def stages(configs: Sequence[PointConfig]) -> tuple[str, ...]:
  """Returns the stages that a sweep reads, as Sweep.stages has them.

  Raises:
    UserError: They are not the same for all grid points.
  """
  first, *others = configs
  for other in others:
    if _stages(other.typed) != _stages(first.typed):
      raise UserError(
        f'--grid: {first.point.name} ends with {_stages(first.typed)[-1]} and '
        f'{other.point.name} with {_stages(other.typed)[-1]}; grid points must '
        'run the same stages, so that their metrics are the same'
      )
  return _stages(first.typed)


def _stages(typed: Typed) -> tuple[str, ...]:
  if isinstance(typed, RunConfig):
    return (typed.stages[-1],)
  return tuple(f'{name}/{typed.runs[name].stages[-1]}' for name in typed.stages)


def check(configs: Sequence[PointConfig], sweep: Sweep, out: Path):
  """Refuses what a run would refuse before it begins, for all runs.

  Args:
    configs: The config of every grid point.
    sweep: The sweep.
    out: Its folder.

  Raises:
    UserError: Naming what is wrong, and the grid points.
  """
  _for_each(configs, lambda each: _check(each, sweep, out))


def _check(each: PointConfig, sweep: Sweep, out: Path):
  for seed in sweep.seeds:
    place = folder(out, each.point, seed)
    typed = with_seed(each.typed, seed - sweep.seeds[0])
    remedy = f'remove {place} to make it again, or use another --out'
    if isinstance(typed, RunConfig):
      workdir.check(place, typed, remedy)
      if seed == sweep.seeds[0]:
        run.check(typed)
      inputs.check(place, typed)
    elif seed == sweep.seeds[0] or place.exists():
      pipeline.check(typed, place, typed.stages)


def reopened(
  configs: Sequence[PointConfig], sweep: Sweep, out: Path
) -> set[Path]:
  """Returns the folders of runs that have more steps to make than before."""
  found = set()
  for each in configs:
    for seed in sweep.seeds:
      place = folder(out, each.point, seed)
      typed = with_seed(each.typed, seed - sweep.seeds[0])
      runs = (
        {place: typed}
        if isinstance(typed, RunConfig)
        else {place / name: run for name, run in typed.runs.items()}
      )
      if any(changes.reopens(*each) for each in runs.items()):
        found.add(place)
  return found


def with_seed(typed: Typed, more: int) -> Typed:
  """Returns a config whose seed is larger by a number."""
  if isinstance(typed, RunConfig):
    return dataclasses.replace(typed, seed=typed.seed + more)
  runs = {
    name: dataclasses.replace(one, seed=one.seed + more)
    for name, one in typed.runs.items()
  }
  return dataclasses.replace(typed, runs=runs)
