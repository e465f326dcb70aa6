"""Finds what cannot work in a pipeline before anything of it runs."""

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
from pathlib import Path

from r1jax import files, registry
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError, named, unknown
from r1jax.runs import (
  changes,
  compatibility,
  inputs,
  lineage,
  run,
  stage_list,
  workdir,
)
from r1jax.runs.pipeline_config import (
  MARK,
  PipelineConfig,
  references,
  resolved,
)

MEASURED = 'evaluation.json'


def check(pipeline: PipelineConfig, place: Path, names: Sequence[str]):
  """Refuses a pipeline that cannot run to its end.

  Args:
    pipeline: The pipeline.
    place: Its folder; each stage has a folder of its name in it.
    names: The stages to run.

  Raises:
    UserError: a stage names one that is not there or comes later, does not fit
      its input, has another config than when it was run, was made from or has
      left something else than is there now, waits for a stage that will not
      run, or refuses its config itself.
  """
  stages, runs = pipeline.stages, pipeline.runs
  _check_evaluations(pipeline)
  for name in stages:
    with errors_of(name):
      stage_list.check_names(runs[name])
  parents = {name: references(runs[name]) for name in stages}
  compatibility.check_order(stages, parents)
  for name in stages:
    for key, parent in parents[name].items():
      compatibility.check_fit(name, runs[name], key, parent, runs[parent])
  _check_folders(pipeline, place)
  _check_grown(pipeline, place, parents)
  _check_outputs(pipeline, place, _with_ancestors(names, parents))
  check_sources(pipeline, place)
  done = {
    name
    for name in stages
    if stage_list.output(runs[name], place / name).exists()
    and not changes.reopens(place / name, runs[name])
  }
  for name in names:
    missing = [
      key for key, parent in parents[name].items() if parent not in done
    ]
    for key in missing:
      if parents[name][key] not in names:
        raise UserError(
          f'pipeline: {name}.{key} needs {parents[name][key]}, which has not '
          'been run; run it first'
        )
    if name not in done:
      _check_alone(name, pipeline, place, missing)


def _check_evaluations(pipeline: PipelineConfig):
  known = [*registry.task, *registry.dataset]
  for name in pipeline.evaluations:
    if name not in known:
      raise unknown('pipeline: evaluations: task', name, known)


def _check_folders(pipeline: PipelineConfig, place: Path):
  """Refuses folders that hold something else."""
  if place.exists() and not place.is_dir():
    raise UserError(f'pipeline: {place} is a file; use another --workdir')
  for name, config in pipeline.runs.items():
    workdir.check(
      place / name, config, f'{_remake(place / name)}, or use another --workdir'
    )
    _check_evaluated(place / name, config)
    inner = stage_list.output(config, place / name).parent
    if inner.exists() and not inner.is_dir():
      raise UserError(f'pipeline: {inner} is a file; {_remake(place / name)}')


def _check_evaluated(folder: Path, config: RunConfig):
  """Refuses another evaluation than the one whose results are in a folder."""
  measured = folder / MEASURED
  if not measured.exists() or not (folder / 'config.json').exists():
    return
  for key, values in changes.found(folder, config, '').items():
    if key.startswith('eval.'):
      raise UserError(
        f'pipeline: {changes.clause(key, *values)} for {measured}; remove that '
        'file to evaluate again'
      )


def _check_grown(
  pipeline: PipelineConfig, place: Path, parents: dict[str, dict[str, str]]
):
  """Refuses more steps of a stage whose output another one has begun with."""
  for name, config in pipeline.runs.items():
    if not changes.reopens(place / name, config):
      continue
    for child, references_of in parents.items():
      if (
        name in references_of.values()
        and (place / child / inputs.FILE).exists()
      ):
        raise UserError(
          f'pipeline: {name} has another number of steps than it had when '
          f'{child} began with what it left; put that back, or '
          f'{_remake(place / child)}'
        )


def _with_ancestors(
  names: Iterable[str], parents: dict[str, dict[str, str]]
) -> set[str]:
  """Returns these stages, and all that they come from."""
  found, left = set(), list(names)
  while left:
    name = left.pop()
    if name not in found:
      found.add(name)
      left += parents[name].values()
  return found


def _check_outputs(pipeline: PipelineConfig, place: Path, names: set[str]):
  """Refuses finished stages whose output is not what they left."""
  for name, record in _records(pipeline, place).items():
    if not record or name not in names:
      continue
    path = stage_list.output(pipeline.runs[name], place / name)
    if files.digest(path) != record['output']['sha256']:
      raise UserError(
        f'pipeline: {path} is not what {name} left, by its {lineage.FILE}; '
        f'put that back, or {_remake(place / name)}'
      )


def check_sources(pipeline: PipelineConfig, place: Path):
  """Refuses finished stages that were made from other outputs than are there.

  Raises:
    UserError: naming the stage to make again.
  """
  records = _records(pipeline, place)
  for name, record in records.items():
    for key, source in (record['inputs'] if record else {}).items():
      parent = Path(source['run'] or '').name
      now = records.get(parent)
      if (
        now
        and source['path'] == f'../{parent}/{now["output"]["path"]}'
        and now['output']['sha256'] != source['sha256']
      ):
        raise UserError(
          f'pipeline: {name} was made from another {parent} ({key}) than the '
          f'one that is there now; {_remake(place / name)}'
        )


def _records(pipeline: PipelineConfig, place: Path) -> dict[str, dict | None]:
  """Returns the lineage of finished stages.

  It is None for a stage that was killed before it wrote its record.
  """
  return {
    name: lineage.read(place / name)
    for name, config in pipeline.runs.items()
    if stage_list.output(config, place / name).exists()
  }


def _remake(folder: Path) -> str:
  return f'remove {folder} to make it again'


def _check_alone(
  name: str, pipeline: PipelineConfig, place: Path, missing: Sequence[str]
):
  """Lets a stage check its config, as far as its inputs are there."""
  config: RunConfig = pipeline.runs[name]
  concrete = resolved(config, pipeline, place)
  if config.init.startswith(MARK):  # It is read when the stage runs.
    concrete = dataclasses.replace(concrete, init='random')
  with errors_of(name):
    run.check(concrete, [key for key in missing if key != 'init'])
    if not missing:  # It may have begun.
      inputs.check(place / name, resolved(config, pipeline, place))


@contextlib.contextmanager
def errors_of(name: str):
  """Puts a stage's name before an error that is raised within."""
  try:
    yield
  except UserError as error:
    raise named(f'pipeline: {name}', error) from error
