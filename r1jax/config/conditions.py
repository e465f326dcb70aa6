"""When a key of a config has an effect, as its declaration says.

  critic_learning_rate: float = key(
    1e-5, 'Peak learning rate.', only_if=one_of('critic', 'separate')
  )

A condition reads other keys: `critic` is one of the same section, and
`data.task`, with a dot, is counted from the root of the config. What comes of a
key that a user sets in vain is in effects.py.
"""

from collections.abc import Callable
import dataclasses
import enum
from typing import Any

from r1jax import registry

# Stages that read prompts of config.data, and all that the package has.
PROMPT_STAGES = ('rl', 'rejection_sampling', 'label_steps')
STAGES = (*PROMPT_STAGES, 'pretrain', 'sft', 'reward_model', 'dpo', 'prm')


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
  """

  holds: Callable[[Any, Any], bool]
  needs: str
  keys: tuple[str, ...] = ()
  severity: Severity = Severity.ERROR
  of_stages: bool = False

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


def _value(run: Any, section: Any, key: str) -> Any:
  return value_at(run if '.' in key else section, key)


def one_of(key: str, *values: Any) -> Condition:
  """The key has an effect where another key has one of some values."""
  return Condition(
    lambda run, section: _value(run, section, key) in values,
    f'{key} = {" or ".join(map(repr, values))}',
    (key,),
  )


def none_of(key: str, *values: Any) -> Condition:
  """The key has an effect unless another key has one of some values.

  It is for keys that an implementation of a plugin may read as well.
  """
  return Condition(
    lambda run, section: _value(run, section, key) not in values,
    f'{key} other than {" and ".join(map(repr, values))}',
    (key,),
  )


def is_set(key: str) -> Condition:
  """The key has an effect where another key is neither 0, False nor empty."""
  return Condition(
    lambda run, section: bool(_value(run, section, key)), key, (key,)
  )


def is_empty(key: str) -> Condition:
  """The key has an effect where another key is 0, False or empty."""
  return Condition(
    lambda run, section: not _value(run, section, key),
    f'{key} to be left out',
    (key,),
  )


def above(key: str, bound: float) -> Condition:
  """The key has an effect where another key is above a bound."""
  return Condition(
    lambda run, section: _value(run, section, key) > bound,
    f'{key} above {bound:g}',
    (key,),
  )


def stage(*names: str) -> Condition:
  """The key has an effect on some stages, and perhaps on those of plugins."""
  return Condition(
    lambda run, section: any(
      name in names or name not in STAGES for name in run.stages
    ),
    f'the stage {" or ".join(names)}',
    ('.stages',),
    of_stages=True,
  )


def _makes_base(run: Any) -> bool:
  """Whether pre-training runs: not where `init` names another base."""
  return 'pretrain' in run.stages and (
    run.init == 'pretrain' or run.stages[-1] == 'pretrain'
  )


def makes_base() -> Condition:
  """The key has an effect where the base is not taken from elsewhere.

  Config files tell how a base was made that is there already.
  """
  return Condition(
    lambda run, section: (
      _makes_base(run) or any(name not in STAGES for name in run.stages)
    ),
    "init = 'pretrain'",
    ('.init',),
    Severity.QUIET,
    of_stages=True,
  )


def prompt_stage() -> Condition:
  """The key has an effect on the stages that read prompts of config.data."""
  return stage(*PROMPT_STAGES)


def dataset(key: str) -> Condition:
  """The key has an effect where another key names no synthetic task."""
  return Condition(
    lambda run, section: _value(run, section, key) not in registry.task,
    f'{key} to be a dataset, not a synthetic task',
    (key,),
  )


def sources(run: Any) -> tuple[str, ...]:
  """Returns the names of what a run trains on, without their weights."""
  data = run.data
  return tuple(name.partition(':')[0] for name in data.mixture or (data.task,))


def is_general(name: str) -> bool:
  """Returns whether no rule can verify the answers of a task or dataset."""
  if name in registry.task:
    return registry.task.get(name).general
  return name in registry.dataset and (
    registry.dataset.get(name).grader == 'preference'
  )


def general_prompts() -> Condition:
  """The key has an effect where some training prompts have no rule.

  An environment of a plugin may make general prompts of any.
  """
  return Condition(
    lambda run, section: (
      run.rl.environment != 'answer' or any(map(is_general, sources(run)))
    ),
    'a general source, such as manners, in data.mixture or data.task',
    ('data.task', 'data.mixture'),
  )


def weighted(*names: str) -> Condition:
  """The key has an effect where one of some rewards has a weight."""
  return Condition(
    lambda run, section: any(
      section.reward.get(name) or section.general_reward.get(name)
      for name in names
    ),
    f'a weight of {" or ".join(names)} in rl.reward or rl.general_reward',
  )


def file_rewards(name: str) -> Condition:
  """The file of a reward model is read where its reward has a weight."""
  return Condition(
    lambda run, section: bool(
      run.rl.reward.get(name) or run.rl.general_reward.get(name)
    ),
    f'a weight of {name} in rl.reward or rl.general_reward',
  )


def plugin_rewards() -> Condition:
  """The key has an effect where a reward of a plugin has a weight."""

  def holds(run: Any, section: Any) -> bool:
    del run
    built_in = type(section)().reward  # The defaults name all of our own.
    return any(
      weight and name not in built_in
      for rewards in (section.reward, section.general_reward)
      for name, weight in rewards.items()
    )

  return Condition(holds, 'a reward of a plugin with a weight')


def names_task(*keys: str) -> Condition:
  """The key has an effect where one of some lists names a synthetic task."""
  return Condition(
    lambda run, section: any(
      name.partition(':')[0] in registry.task
      for key in keys
      for name in _value(run, section, key)
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
    lambda run, section: any(map(_is_file, _value(run, section, key))),
    f'a file in {key}',
    (key,),
  )


def reads_rows() -> Condition:
  """The key has an effect where a run reads rows that may be bad."""

  def holds(run: Any, section: Any) -> bool:
    del section
    lists = {
      'sft': run.sft.data,
      'reward_model': run.reward_model.data + run.reward_model.eval_data,
      'dpo': run.dpo.data + run.dpo.eval_data,
      'prm': run.prm.data,
    } | dict.fromkeys(PROMPT_STAGES, sources(run))
    return any(
      name not in STAGES
      or any(
        each.partition(':')[0] not in registry.task
        for each in lists.get(name, ())
      )
      for name in run.stages
    )

  return Condition(
    holds,
    'a dataset or a file to train on',
    ('.stages', 'data.task'),
    Severity.WARNING,
    of_stages=True,
  )


def corpus() -> Condition:
  """The key has an effect where documents of synthetic tasks are made."""

  def holds(run: Any, section: Any) -> bool:
    del section
    lists = {
      'sft': run.sft.data,
      'rejection_sampling': run.rejection_sampling.extra_data,
    }
    return any(
      (name == 'pretrain' and _makes_base(run))
      or name not in STAGES
      or any(
        each.partition(':')[0] in registry.task for each in lists.get(name, ())
      )
      for name in run.stages
    )

  return Condition(
    holds,
    'the stage pretrain, or a synthetic task in sft.data or '
    'rejection_sampling.extra_data',
    ('.stages',),
    Severity.WARNING,
    of_stages=True,
  )


def experts() -> Condition:
  """The key has an effect on a model with experts."""
  return Condition(
    lambda run, section: run.model.num_moe_layers > 0,
    'layers with experts',
    ('model.num_hidden_layers', 'model.first_k_dense_replace'),
    Severity.QUIET,
  )


def begins_with_init() -> Condition:
  """The key `init` is read unless pre-training is all that runs."""
  return Condition(
    lambda run, section: run.stages != ('pretrain',) or run.init == 'random',
    'a stage that begins with it, and pretrain begins with random parameters',
    ('.stages',),
  )


def reads_prm() -> Condition:
  """The key has an effect on a search that a process reward model guides."""
  return Condition(
    lambda run, section: (
      section.kind == 'best_of_n'
      or (section.kind == 'mcts' and section.leaf_value != 'rule')
    ),
    "kind = 'best_of_n', or kind = 'mcts' and another leaf_value than 'rule'",
    ('kind', 'leaf_value'),
    Severity.QUIET,
  )
