"""Whether the runs of a pipeline fit together, by what stages declare."""

from collections.abc import Mapping
import dataclasses

from r1jax.checkpoints import weights
from r1jax.config.keys import flatten
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.runs import stage_list
from r1jax.runs.pipeline_config import MARK, marked
from r1jax.stages.build import reward_models
from r1jax.stages.stage import Kind, Stage

# Keys that every stage may take from another one.
_SEARCH_MODEL = 'eval.search.process_reward_model'
_COMMON: Mapping[str, tuple[Kind, ...]] = {
  'init': (Kind.POLICY,),
  _SEARCH_MODEL: (Kind.PRM,),
}


def check_order(stages: tuple[str, ...], parents: dict[str, dict[str, str]]):
  """Refuses a stage that names one that is not there, or that comes later.

  Args:
    stages: Names, in order.
    parents: For each stage, the stage that each of its keys names.

  Raises:
    UserError: naming the stage and its key, or the circle.
  """
  for name in stages:
    for key, parent in parents[name].items():
      if parent not in stages:
        raise UserError(
          f'pipeline: {name}.{key} names {parent!r}, which is no stage; '
          f'there are {", ".join(stages)}'
        )
  _check_circle(parents)
  for i, name in enumerate(stages):
    for key, parent in parents[name].items():
      if parent not in stages[:i]:
        raise UserError(
          f'pipeline: {name}.{key} needs {parent}, which comes after {name}; '
          'put it before'
        )


def _check_circle(parents: dict[str, dict[str, str]]):
  visited: set[str] = set()

  def visit(name: str, path: tuple[str, ...]):
    if name in path:
      circle = ' ← '.join([*path[path.index(name) :], name])
      raise UserError(f'pipeline: the stages wait for each other: {circle}')
    if name not in visited:
      for parent in parents[name].values():
        visit(parent, (*path, name))
      visited.add(name)

  for name in parents:
    visit(name, ())


def check_fit(
  name: str, child: RunConfig, key: str, parent_name: str, parent: RunConfig
):
  """Refuses an input that is not what its key takes.

  Args:
    name: The stage that takes it.
    child: Its run.
    key: Its key that names the other stage.
    parent_name: The other stage.
    parent: The other stage's run.

  Raises:
    UserError: the kind, the tokenizer or the model does not fit.
  """
  here = f'pipeline: {name}.{key}'
  stage, kinds = _taken_by(child, key)
  if stage is None:
    raise UserError(f'{here} takes nothing from another stage')
  left = stage_list.leaves(parent)
  if left not in kinds:
    hint = stage_list.stage_class(parent.stages[-1]).other_kind_hint(kinds)
    raise UserError(
      f'{here} needs {" or ".join(kinds)}, but {parent_name} leaves {left}'
      + (f'; set {parent_name}.{hint}' if hint else '')
    )
  if left.is_weights:
    _check_weights(here, name, child, key, parent_name, parent)
  try:
    stage.check_input(child, key, parent, parent_name)
    if key == _SEARCH_MODEL:
      reward_models.check_length(child, parent, parent_name)
  except UserError as error:
    raise UserError(f'{here}: {error}') from error


def _taken_by(
  run: RunConfig, key: str
) -> tuple[type[Stage] | None, tuple[Kind, ...]]:
  """Returns the stage of a run that takes a key, and the kinds it takes."""
  classes = [stage_list.stage_class(name) for name in run.stages]
  for stage in classes:
    for start, kinds in stage.takes.items():
      if key.startswith(start):
        return stage, kinds
  for start, kinds in _COMMON.items():
    if key.startswith(start):
      return classes[0], kinds
  return None, ()


def _check_weights(
  here: str,
  name: str,
  child: RunConfig,
  key: str,
  parent_name: str,
  parent: RunConfig,
):
  """Refuses weights of another tokenizer, or of another model for `init`."""
  if ':' in marked(child)[key]:
    raise UserError(
      f'{here} = {MARK + marked(child)[key]!r}: only data have a weight or a '
      'count'
    )
  if child.tokenizer.source != parent.tokenizer.source:
    raise UserError(
      f'{here}: {parent_name} has the tokenizer {parent.tokenizer.source!r}, '
      f'{name} {child.tokenizer.source!r}'
    )
  if key == 'init':
    _check_model(name, child, parent_name, parent)


def _check_model(
  name: str, child: RunConfig, parent_name: str, parent: RunConfig
):
  """Refuses `init` from another transformer."""
  ours, theirs = (
    flatten({'model': dataclasses.asdict(run.model)}) for run in (child, parent)
  )
  differ = [
    f'{field} is {theirs[field]!r} in {parent_name} and {value!r} in {name}'
    for field, value in ours.items()
    if theirs[field] != value and field not in weights.RUNTIME_KEYS
  ]
  if differ:
    raise UserError(
      f'pipeline: {name}.init does not fit {parent_name}: {"; ".join(differ)}'
    )
