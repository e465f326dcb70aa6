"""A pipeline's config: runs by name, and what '@name' in their keys stands for.

  config.stages = ('base', 'cold_start', 'reasoning')
  config.evaluations = ('arithmetic',)     tasks that each policy is measured on
  config.seed = 0                          is added to the seed of each run
  config.cold_start = …     with init = '@base'
  config.reasoning = …      with init = '@cold_start'

'@name' stands for what the run of that name leaves: weights, or a dataset.
"""

from collections.abc import Callable, Mapping
import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from r1jax import registry
from r1jax.config.keys import flatten
from r1jax.config.load import load
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError, unknown
from r1jax.runs import stage_list

MARK = '@'


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
  """A list of runs that feed each other.

  Attributes:
    stages: Names of the runs, in order.
    evaluations: Tasks and datasets that each policy is measured on.
    runs: Config of each run by name, with the pipeline's seed in its own.
  """

  stages: tuple[str, ...]
  evaluations: tuple[str, ...]
  runs: Mapping[str, RunConfig]


def load_pipeline(config: ml_collections.ConfigDict) -> PipelineConfig:
  """Reads the config of a pipeline and imports the plugins of its runs.

  Raises:
    UserError: it is no pipeline, names a run without a config, one of the
      configs is wrong (with every wrong key of the run), or a plugin fails.
  """
  stages = tuple(config.get('stages', ()))
  if not isinstance(config.get('evaluations'), (tuple, list)):
    raise UserError(
      'pipeline: the config needs evaluations, tasks that each policy is '
      'measured on; () for none'
    )
  if len(set(stages)) < len(stages) or not stages:
    raise UserError(f'pipeline: stages {stages} is empty, or names one twice')
  runs, problems = {}, []
  for name in stages:
    try:
      registry.load_plugins(tuple(run_of(config, name).get('plugins', ())))
      run = load(run_of(config, name), RunConfig, f'pipeline: {name}')
    except UserError as error:
      problems.append(str(error))
      continue
    runs[name] = dataclasses.replace(run, seed=run.seed + config.get('seed', 0))
  if problems:
    raise UserError('; '.join(problems))
  return PipelineConfig(stages, tuple(config.evaluations), runs)


def run_of(
  config: ml_collections.ConfigDict, name: str
) -> ml_collections.ConfigDict:
  """Returns the config of one run of a pipeline.

  Raises:
    UserError: there is none, or it is not the config of a run.
  """
  found = config.get(name)
  if isinstance(found, ml_collections.ConfigDict) and 'model' in found:
    return found
  sections = [
    key
    for key, value in config.items()
    if isinstance(value, ml_collections.ConfigDict)
  ]
  if name not in config:
    raise unknown('pipeline: stage', name, sections)
  raise UserError(
    f'pipeline: {name} must be the config of a run, with all keys of '
    f'r1jax.config.base; it is {type(found).__name__}'
  )


def references(run: RunConfig) -> dict[str, str]:
  """Returns the stage that each key with an '@name' names."""
  return {key: text.partition(':')[0] for key, text in marked(run).items()}


def marked(run: RunConfig) -> dict[str, str]:
  """Returns the text behind the '@' of each key that has one."""
  found = {}
  for key, value in flatten(dataclasses.asdict(run)).items():
    is_list = isinstance(value, list)
    for i, item in enumerate(value if is_list else [value]):
      if isinstance(item, str) and item.startswith(MARK):
        found[f'{key}[{i}]' if is_list else key] = item[1:]
  return found


def resolved(
  run: RunConfig, pipeline: PipelineConfig, place: Path
) -> RunConfig:
  """Returns a run with the paths that its '@name's stand for.

  Args:
    run: The run.
    pipeline: The pipeline that it belongs to.
    place: The pipeline's folder.

  Raises:
    UserError: a name is that of no run.
  """

  def path_of(text: str) -> str:
    if not text.startswith(MARK):
      return text
    name, colon, weight = text[1:].partition(':')
    if name not in pipeline.runs:
      raise unknown('pipeline: stage', name, pipeline.runs)
    path = stage_list.output(pipeline.runs[name], place / name)
    return f'{path}{colon}{weight}'

  return load(_mapped(dataclasses.asdict(run), path_of), RunConfig)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
  """Returns nested mappings and tuples with every text changed."""
  if isinstance(value, Mapping):
    return {key: _mapped(inner, change) for key, inner in value.items()}
  if isinstance(value, (tuple, list)):
    return tuple(_mapped(inner, change) for inner in value)
  return change(value) if isinstance(value, str) else value
