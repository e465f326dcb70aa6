"""Between the ConfigDict that users override and the typed Run that runs.

A ConfigDict is a user's face of a config; `load` turns it into frozen
dataclasses once, at the door of a run, and names every wrong key at once.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import typing
from typing import Any

import ml_collections

from r1jax import registry
from r1jax.config.field import Spec, converted, specs, type_name
from r1jax.config.field import section as field_of
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import BadSection
from r1jax.errors import UserError


def to_config_dict(section: Any) -> ml_collections.ConfigDict:
  """Returns a section as a locked ConfigDict, whose open mappings are open."""
  config = ml_collections.ConfigDict()
  known, open_keys = specs(type(section)), []
  for name, spec in known.items():
    value = getattr(section, name)
    if spec.is_section:
      value = to_config_dict(value)
    elif spec.is_open:
      value = ml_collections.ConfigDict(dict(value))
      open_keys.append(name)
    config[name] = value
  config.lock()
  for name in open_keys:
    config[name].unlock()
  return config


def load(
  config: Mapping | ml_collections.ConfigDict, cls: type, where='config'
):
  """Returns the section that a config describes.

  Args:
    config: Every key of the section, nested as the section is.
    cls: The section's dataclass.
    where: Names the config at the beginning of an error.

  Raises:
    UserError: one line with every key that is unknown, missing, of another
      type, outside of its range or in conflict with others.
  """
  problems: list[str] = []
  values = _plain(config)
  if cls is RunConfig:
    cls, values = with_plugin_sections(values)
  made = _read(cls, values, '', problems)
  if problems:
    raise UserError(f'{where}: {"; ".join(problems)}')
  return made


def with_plugin_sections(values: Mapping) -> tuple[type[RunConfig], Mapping]:
  """Returns RunConfig with the sections of the plugin stages that a run names.

  A stage that a plugin registers has a section of its name, as those of the
  package have. Its keys are in the config, or at their defaults where
  `stages` alone names the stage.

  Args:
    values: Every key of a run.

  Returns:
    RunConfig, or a subclass that has a field for each of these sections; and
    the values with the sections that were left out.
  """
  own, stages = specs(RunConfig), values.get('stages', ())
  stages = stages if isinstance(stages, (tuple, list)) else ()
  sections = {
    name: registry.stage.get(name).section
    for name in dict.fromkeys(map(str, (*values, *stages)))
    if name not in own and name in registry.stage
  }
  if not sections:
    return RunConfig, values
  defaults = {
    name: to_config_dict(cls()).to_dict() for name, cls in sections.items()
  }
  return _run_class(tuple(sections.items())), defaults | dict(values)


@functools.cache  # Configs are equal only if their classes are the same one.
def _run_class(sections: tuple[tuple[str, type], ...]) -> type[RunConfig]:
  fields = [(name, cls, field_of(cls)) for name, cls in sections]
  made = dataclasses.make_dataclass(
    'RunConfig', fields, bases=(RunConfig,), frozen=True
  )
  made.__doc__ = RunConfig.__doc__
  return made


def model_config(fields: Mapping, where: str = 'model') -> ModelConfig:
  """Returns the architecture that nested fields describe.

  Args:
    fields: Every key of config.model.
    where: Names the fields at the beginning of an error.

  Raises:
    UserError: as `load`.
  """
  return load(fields, ModelConfig, where)


def _plain(config) -> Mapping:
  if isinstance(config, ml_collections.ConfigDict):
    return config.to_dict()
  return config


def _read(cls: type, values: Mapping, prefix: str, problems: list[str]):
  """Builds a section; appends what is wrong and returns None where it fails."""
  known, hints = specs(cls), typing.get_type_hints(cls)
  before = len(problems)
  for name in values:
    if name not in known:
      problems.append(_unknown(f'{prefix}{name}', name, list(known), prefix))
  fields = {}
  for name, spec in known.items():
    dotted = f'{prefix}{name}'
    if name not in values:
      problems.append(f'{dotted} is missing')
    elif spec.is_section:
      if isinstance(values[name], Mapping):
        fields[name] = _read(hints[name], values[name], f'{dotted}.', problems)
      else:
        problems.append(f'{dotted} must be a section, got {values[name]!r}')
    else:
      fields[name] = _value(dotted, hints[name], spec, values[name], problems)
  if len(problems) > before:
    return None
  try:
    return cls(**fields)
  except BadSection as error:
    problems += [
      f'{prefix}{name} = {fields[name]!r} {text}'
      for name, text in error.problems
    ]
    return None


def _value(dotted: str, hint, spec: Spec, value, problems: list[str]):
  try:
    value = converted(value, hint)
  except TypeError:
    problems.append(f'{dotted} = {value!r} must be of type {type_name(hint)}')
    return None
  if text := spec.problem(value):
    problems.append(f'{dotted} = {value!r} {text}')
  return value


def _unknown(dotted: str, name: str, known: list[str], prefix: str) -> str:
  near = difflib.get_close_matches(name, known, 1)
  hint = f'; did you mean {prefix}{near[0]}?' if near else ''
  return f'{dotted} is unknown{hint}'


def replace(section: Any, dotted: Mapping[str, Any]):
  """Returns a section with other values.

  Args:
    section: A section.
    dotted: Values by key, such as {'rl.group_size': 8}.
  """
  inner: dict[str, dict] = {}
  changes: dict[str, Any] = {}
  for name, value in dotted.items():
    head, _, rest = name.partition('.')
    if rest:
      inner.setdefault(head, {})[rest] = value
    else:
      changes[head] = value
  for head, values in inner.items():
    changes[head] = replace(getattr(section, head), values)
  return dataclasses.replace(section, **changes)
