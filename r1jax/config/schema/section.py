"""The base of every section of a config."""

from collections.abc import Iterator
import dataclasses

from r1jax.config.conditions import value_at
from r1jax.config.field import specs
from r1jax.errors import UserError

Problem = tuple[str, str]  # A dotted key, and what is wrong with its value.


class BadSection(UserError):
  """Values of a section that contradict each other or their ranges.

  Attributes:
    problems: Pairs of a key of the section and what is wrong with its value.
  """

  def __init__(self, name: str, problems: list[str], keys: list[Problem]):
    super().__init__(f'{name}: {"; ".join(problems)}')
    self.problems = keys


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of a config: a frozen dataclass whose values fit together.

  Constructing one checks the range of every key and then what the keys need of
  one another, and raises BadSection with all that is wrong.
  """

  def __post_init__(self):
    found = list(self._out_of_range()) or list(self.conflicts())
    if found:
      raise BadSection(
        type(self).__name__,
        [f'{name} = {value_at(self, name)!r} {text}' for name, text in found],
        found,
      )

  def _out_of_range(self) -> Iterator[Problem]:
    for name, spec in specs(type(self)).items():
      if text := spec.problem(getattr(self, name)):
        yield name, text

  def conflicts(self) -> Iterator[Problem]:
    """Yields a key and what is wrong with it in view of the other keys.

    The key is one of the section, or below one: 'optimizer.warmup_steps'.
    """
    yield from ()


def narrow(cls: type, section: Section, **changes):
  """Returns the part of a section that another dataclass declares.

  Args:
    cls: A dataclass all of whose fields the section has, or `changes` gives.
    section: The section whose values are taken.
    **changes: Values that stand in the place of the section's.
  """
  values = {
    field.name: getattr(section, field.name)
    for field in dataclasses.fields(cls)
    if field.name not in changes
  }
  return cls(**values | changes)
