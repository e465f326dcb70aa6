"""Finds the stages that a config runs, and what it leaves."""

from pathlib import Path

from r1jax import registry
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.sharding import Layout
from r1jax.stages.stage import Kind, Program, Stage, Update


def stage_class(name: str) -> type[Stage]:
  """Returns the stage of a name; raises UserError for an unknown one."""
  return registry.stage.get(name, 'stages')


def check_names(config: RunConfig):
  """Refuses a list of stages that cannot follow each other.

  Raises:
    UserError: a stage is unknown or comes twice, one that begins with random
      parameters is not the first, or one leaves no policy for the next.
  """
  names = config.stages
  classes = [stage_class(name) for name in names]
  if not names or len(set(names)) < len(names):
    raise UserError(f'stages: {names} is empty, or names a stage twice')
  for name, stage in zip(names[1:], classes[1:]):
    if stage.starts_fresh:
      raise UserError(
        f'stages: {name} begins with random parameters: put it first'
      )
  for name, stage, following in zip(names, classes, names[1:]):
    if stage.leaves(config) is not Kind.POLICY:
      raise UserError(
        f'stages: {name} leaves no policy for {following} to begin with; run '
        'it with a config of its own'
      )


def running(config: RunConfig) -> tuple[str, ...]:
  """Returns the stages that run.

  A stage that begins with random parameters runs where config.init names it,
  or where it is the only one.
  """
  last = config.stages[-1]
  return tuple(
    name
    for name in config.stages
    if not stage_class(name).starts_fresh or name in (config.init, last)
  )


def output(config: RunConfig, workdir: Path) -> Path:
  """Returns the path of what a run of this config leaves in its workdir."""
  last = stage_class(config.stages[-1])
  return workdir / last.name / last.output


def leaves(config: RunConfig) -> Kind:
  """Returns the kind of what a run of this config leaves."""
  return stage_class(config.stages[-1]).leaves(config)


def updates(config: RunConfig, layout: Layout) -> list[Update]:
  """Returns the programs of one training step of a run's last stage."""
  return stage_class(config.stages[-1]).update(config, layout)


def programs(config: RunConfig, layout: Layout) -> list[Program]:
  """Returns all large programs of a step of a run's last stage, in order."""
  return stage_class(config.stages[-1]).programs(config, layout)
