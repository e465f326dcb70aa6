"""Declares the keys of a config: default, meaning, unit and range, once each.

  @dataclasses.dataclass(frozen=True)
  class Optimizer:
    learning_rate: float = key(1e-6, 'Peak learning rate.', at_least=0)
    adam: Adam = section(Adam, beta2=0.95)

Everything that is said of a key comes from this declaration: the ConfigDict
that users override, the errors of `load`, `r1jax config --help KEY` and the
page docs/config.md.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import enum
import math
import types
import typing
from typing import Any

from r1jax.config.conditions import Condition

_SPEC = 'r1jax key'


class Change(enum.Enum):
  """The new values that a key may take in the folder of a run that goes on.

  The values are what docs/config.md says of a key; runs/changes.py applies them.
  """

  NEVER = ''
  FREE = 'It may change when a run goes on.'
  STEPS = (
    'It may grow when a run goes on, or shrink to what was done, if no schedule '
    'ends with the last step.'
  )
  EPOCHS = (
    'It may grow when a run goes on before its last step, if no schedule ends '
    'with that.'
  )


@dataclasses.dataclass(frozen=True)
class Spec:
  """The meaning of one key and the values that it may have.

  Attributes:
    meaning: One or more sentences.
    unit: The unit of the value, such as 'tokens'; '' where it has none.
    at_least, at_most: Inclusive bounds of a number; None for no bound.
    above, below: Exclusive bounds of a number; None for no bound.
    choices: The only values that are allowed; () for any.
    is_section: Whether the value is a section of its own.
    is_open: Whether users may add keys to the mapping that the value is.
    may_be_infinite: Whether infinity is a value, which no bound excludes.
    registered: Kinds of the registry that give the value its meaning: the name
      that it is, the names that it lists ('name' or 'name:weight'), or the
      keys of the mapping.
    built_in: Names of `registered` that the package itself registers, as far as
      they are known without importing what does.
    only_if: Conditions on other keys without which it has no effect.
    read_beyond_section: Whether it is read where its section is not, so that
      only its own conditions count.
    recorded: Whether the key belongs to the record of a run, which a later one
      in the same folder must agree with. A key that no result depends on does
      not.
    change: The new values that it may have in the folder of a run that goes on.
  """

  meaning: str = ''
  unit: str = ''
  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  choices: tuple[Any, ...] = ()
  is_section: bool = False
  is_open: bool = False
  may_be_infinite: bool = False
  registered: tuple[str, ...] = ()
  built_in: tuple[str, ...] = ()
  only_if: tuple[Condition, ...] = ()
  read_beyond_section: bool = False
  recorded: bool = True
  change: Change = Change.NEVER

  def range_text(self) -> str:
    """The allowed values in words, such as 'at least 1'; '' for any."""
    if self.choices:
      return f'one of {", ".join(map(repr, self.choices))}'
    bounds = (
      ('at least', self.at_least),
      ('above', self.above),
      ('at most', self.at_most),
      ('below', self.below),
    )
    return ' and '.join(
      f'{word} {bound:g}' for word, bound in bounds if bound is not None
    )

  def problem(self, value: Any) -> str:
    """Returns the fault of a value of the right type; '' if it has none."""
    if self.choices:
      return '' if value in self.choices else self._not_a_choice(value)
    if isinstance(value, Mapping):
      return next(
        (
          f'has {name} = {each!r}, which {text}'
          for name, each in value.items()
          if (text := self.problem(each))
        ),
        '',
      )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      return ''
    if math.isinf(value) and not self.may_be_infinite:
      return f'must be finite{self._and_range()}'
    inside = (
      not math.isnan(value)
      and (self.at_least is None or value >= self.at_least)
      and (self.above is None or value > self.above)
      and (self.at_most is None or value <= self.at_most)
      and (self.below is None or value < self.below)
    )
    return '' if inside else f'must be {self.range_text() or "a number"}'

  def _and_range(self) -> str:
    return f', {self.range_text()}' if self.range_text() else ''

  def _not_a_choice(self, value: Any) -> str:
    names = [str(choice) for choice in self.choices]
    near = difflib.get_close_matches(str(value), names, 1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    return f'must be {self.range_text()}{hint}'


def key(default: Any, meaning: str, **spec: Any) -> Any:
  """Declares a key of a section.

  Args:
    default: Its value where a config says nothing. A dict becomes a mapping to
      which users may add keys of their own.
    meaning: One or more sentences, for people.
    **spec: `unit`, `at_least`, `above`, `at_most`, `below`, `choices`,
      `registered`, `built_in` (beside the names of the default), `only_if` (one
      condition, or a tuple of them) and the other fields of Spec.
  """
  spec['only_if'] = _conditions(spec.get('only_if', ()))
  if 'registered' in spec:
    names = [default] if isinstance(default, str) else default
    spec['built_in'] = (*spec.get('built_in', ()), *names)
  if isinstance(default, dict):
    metadata = {_SPEC: Spec(meaning, is_open=True, **spec)}
    return dataclasses.field(
      default_factory=lambda: dict(default), metadata=metadata
    )
  return dataclasses.field(
    default=default, metadata={_SPEC: Spec(meaning, **spec)}
  )


def _conditions(given: Condition | tuple[Condition, ...]):
  return (given,) if isinstance(given, Condition) else given


def section(
  cls: type,
  meaning: str = '',
  only_if: Condition | tuple[Condition, ...] = (),
  **changes: Any,
) -> Any:
  """Declares a key whose value is a section of its own.

  Args:
    cls: The section's dataclass.
    meaning: One or more sentences; by default the first of the class.
    only_if: Conditions without which no key of the section has an effect.
    **changes: Defaults that differ from the class's own here.
  """
  meaning = meaning or first_sentence(cls)
  return dataclasses.field(
    default_factory=lambda: cls(**changes),
    metadata={
      _SPEC: Spec(meaning, is_section=True, only_if=_conditions(only_if))
    },
  )


def specs(cls: type) -> dict[str, Spec]:
  """Returns the Spec of every key of a section's dataclass, by name."""
  return {
    field.name: field.metadata.get(_SPEC, Spec())
    for field in dataclasses.fields(cls)
  }


def walk(value: Any, prefix: str = '') -> Iterator[tuple[str, Any, Spec, Any]]:
  """Yields (dotted key, type, Spec, value) of every key below a section."""
  hints, known = typing.get_type_hints(type(value)), specs(type(value))
  for name, spec in known.items():
    inner = getattr(value, name)
    yield f'{prefix}{name}', hints[name], spec, inner
    if spec.is_section:
      yield from walk(inner, f'{prefix}{name}.')


def first_sentence(cls: type) -> str:
  """The first paragraph of a class's docstring, on one line."""
  return ' '.join((cls.__doc__ or '').split('\n\n')[0].split())


def type_name(hint: Any) -> str:
  """A type as a person writes it: 'int', 'tuple of str'."""
  if typing.get_origin(hint) is tuple:
    return f'tuple of {type_name(typing.get_args(hint)[0])}'
  if typing.get_origin(hint) in (Mapping, dict, typing.Mapping):
    name, value = typing.get_args(hint)
    if value is Any:
      return f'mapping of {type_name(name)} to any value'
    return f'mapping of {type_name(name)} to {type_name(value)}'
  if isinstance(hint, types.UnionType):
    return ' or '.join(map(type_name, typing.get_args(hint)))
  return getattr(hint, '__name__', str(hint))


def converted(value: Any, hint: Any) -> Any:
  """The value as the type that its key declares.

  Integers become floats where a float is declared, and lists become tuples.

  Raises:
    TypeError: the value is of another type.
  """
  if hint is Any:
    return value
  origin = typing.get_origin(hint)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise TypeError
    item = typing.get_args(hint)[0]
    return tuple(converted(each, item) for each in value)
  if origin is not None and issubclass(origin, Mapping):
    if not isinstance(value, Mapping):
      raise TypeError
    item = typing.get_args(hint)[1]
    return {str(name): converted(each, item) for name, each in value.items()}
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(value, bool) and hint is not bool:
    raise TypeError
  if not isinstance(value, hint):
    raise TypeError
  return value
