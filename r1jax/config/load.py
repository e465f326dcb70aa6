"""Between the ConfigDict that users override and the typed Run that runs.

A ConfigDict is a user's face of a config; `load` turns it into frozen
dataclasses once, at the door of a run, and names every wrong key at once.
"""

from collections.abc import Collection, Mapping
import dataclasses
import difflib
import functools
import re
import typing
from typing import Any

import ml_collections

from r1jax import registry
from r1jax.config.conditions import value_at
from r1jax.config.field import Spec, converted, specs, type_name
from r1jax.config.field import section as field_of
from r1jax.config.schema.model import ModelConfig
from r1jax.config.schema.run import RunConfig
from r1jax.config.schema.section import Problem
from r1jax.errors import UserError, unknown


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
  fields: dict[str, Any] = {}
  wrong = set()
  for name, spec in known.items():
    dotted, so_far = f'{prefix}{name}', len(problems)
    if name not in values:
      section = prefix.removesuffix('.')
      hint = f'; change a section by config.{section}.update(…)' * bool(prefix)
      problems.append(f'{dotted} is missing{hint}')
    elif spec.is_section:
      if isinstance(values[name], Mapping):
        fields[name] = _read(hints[name], values[name], f'{dotted}.', problems)
      else:
        problems.append(f'{dotted} must be a section, got {values[name]!r}')
    else:
      fields[name] = _value(dotted, hints[name], spec, values[name], problems)
    if len(problems) > so_far:
      wrong.add(name)
  problems += [
    f'{prefix}{name} = {value_at(fields, name)!r} {text}'
    for name, text in _conflicts(cls, fields, wrong)
  ]
  return None if len(problems) > before else cls(**fields)


def _conflicts(
  cls: type, fields: dict[str, Any], wrong: Collection[str]
) -> list[Problem]:
  """Returns the conflicts between the values of a section that are right.

  Values that are wrong by themselves stand at their defaults meanwhile, and
  what is said about them is left out.
  """
  section: Any = object.__new__(cls)
  defaults = {name: getattr(cls(), name) for name in wrong}
  for name, value in (fields | defaults).items():
    object.__setattr__(section, name, value)
  return [
    (name, text)
    for name, text in section.conflicts()
    if not any(re.search(rf'\b{each}\b', f'{name} {text}') for each in wrong)
  ]


def _value(dotted: str, hint, spec: Spec, value, problems: list[str]):
  try:
    value = converted(value, hint)
  except TypeError:
    problems.append(f'{dotted} = {value!r} must be of type {type_name(hint)}')
    return None
  named = {dotted: value}
  if spec.is_open:
    named = {f'{dotted}.{name}': each for name, each in value.items()}
  problems += [
    f'{name} = {each!r} {text}'
    for name, each in named.items()
    if (text := spec.problem(each))
  ]
  if spec.registered:
    problems += _unregistered(dotted, spec, value)
  return value


def _unregistered(dotted: str, spec: Spec, value) -> list[str]:
  """Returns what is wrong with names that nothing has registered.

  The package's own names of a default are not looked up: that would import
  what registers them.
  """
  kinds = [getattr(registry, kind) for kind in spec.registered]
  names = [value] if isinstance(value, str) else value
  found = []
  for name in (each.partition(':')[0] for each in names):
    if name in spec.built_in or name.startswith('@'):
      continue
    if not any(name in kind for kind in kinds):
      known = [each for kind in kinds for each in kind]
      found.append(str(unknown(dotted, name, known)))
  return found


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
