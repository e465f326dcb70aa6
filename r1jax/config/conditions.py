"""When a key of a config has an effect, as its declaration says.

  critic_learning_rate: float = key(
    1e-5, 'Peak learning rate.', only_if=one_of('critic', 'separate')
  )

A condition reads other keys: `critic` is one of the same section, and
`data.task`, with a dot, is counted from the root of the config. Conditions on a
run's stages, sources and model are in run_conditions.py. What comes of a key
that a user sets in vain is in effects.py.
"""

from collections.abc import Callable
import dataclasses
import enum
from typing import Any

from r1jax import registry


class Severity(enum.Enum):
  """The consequence for a key that a config file sets in vain.

  A key on the command line that has no effect is always an error.
  """

  ERROR = 'error'
  WARNING = 'warning'
  QUIET = 'quiet'


@dataclasses.dataclass(frozen=True)
class Condition:
  """A condition on other keys, without which a key has no effect.

  Attributes:
    holds: (run, section of the key) → whether the key has an effect.
    needs: The condition in words, to follow 'it needs'.
    keys: The keys that it reads, for the message.
    severity: The consequence where it does not hold.
    of_stages: Whether it is about the stages that run, and so says nothing
      about commands that run none.
    in_evaluation: Whether a pipeline that evaluates a run's policy on a task or
      dataset reads the key there, by the name of that.
  """

  holds: Callable[[Any, Any], bool]
  needs: str
  keys: tuple[str, ...] = ()
  severity: Severity = Severity.ERROR
  of_stages: bool = False
  in_evaluation: Callable[[str], bool] = lambda name: False

  def but(self, severity: Severity) -> 'Condition':
    """Returns the condition with another severity."""
    return dataclasses.replace(self, severity=severity)

  @property
  def warned(self) -> 'Condition':
    """The condition, with a warning in place of an error."""
    return self.but(Severity.WARNING)

  @property
  def quiet(self) -> 'Condition':
    """The condition, for keys that config files often set ahead of use."""
    return self.but(Severity.QUIET)


def value_at(section: Any, dotted: str) -> Any:
  """Returns the value of a key below a section: 'optimizer.warmup_steps'."""
  for name in dotted.split('.'):
    section = (
      section[name] if isinstance(section, dict) else getattr(section, name)
    )
  return section


def value_of(run: Any, section: Any, key: str) -> Any:
  return value_at(run if '.' in key else section, key)


def one_of(key: str, *values: Any) -> Condition:
  """The key has an effect where another key has one of some values."""
  return Condition(
    lambda run, section: value_of(run, section, key) in values,
    f'{key} = {" or ".join(map(repr, values))}',
    (key,),
  )


def none_of(key: str, *values: Any) -> Condition:
  """The key has an effect unless another key has one of some values.

  It is for keys that an implementation of a plugin may read as well.
  """
  return Condition(
    lambda run, section: value_of(run, section, key) not in values,
    f'{key} other than {" and ".join(map(repr, values))}',
    (key,),
  )


def is_set(key: str) -> Condition:
  """The key has an effect where another key is neither 0, False nor empty."""
  return Condition(
    lambda run, section: bool(value_of(run, section, key)), key, (key,)
  )


def is_empty(key: str) -> Condition:
  """The key has an effect where another key is 0, False or empty."""
  return Condition(
    lambda run, section: not value_of(run, section, key),
    f'{key} to be left out',
    (key,),
  )


def above(key: str, bound: float) -> Condition:
  """The key has an effect where another key is above a bound."""
  return Condition(
    lambda run, section: value_of(run, section, key) > bound,
    f'{key} above {bound:g}',
    (key,),
  )


def names_task(*keys: str) -> Condition:
  """The key has an effect where one of some lists names a synthetic task."""
  return Condition(
    lambda run, section: any(
      name.partition(':')[0] in registry.task
      for key in keys
      for name in value_of(run, section, key)
    ),
    f'a synthetic task in {" or ".join(keys)}',
    keys,
  )


def _is_file(name: str) -> bool:
  name = name.partition(':')[0]
  return name not in registry.task and name not in registry.dataset


def names_file(key: str) -> Condition:
  """The key has an effect where a list names a file, not tasks or datasets."""
  return Condition(
    lambda run, section: any(map(_is_file, value_of(run, section, key))),
    f'a file in {key}',
    (key,),
  )
