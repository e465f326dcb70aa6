"""Conditions of keys on a whole run: its stages, its sources and its model."""

import dataclasses
import re
from typing import Any

from r1jax import registry
from r1jax.config.conditions import Condition, Severity, value_of

# Stages that write a dataset, that read prompts of config.data, and all that
# the package has.
_DATASET_STAGES = ('rejection_sampling', 'label_steps')
PROMPT_STAGES = ('rl', *_DATASET_STAGES)
STAGES = (*PROMPT_STAGES, 'pretrain', 'sft', 'reward_model', 'dpo', 'prm')


def _runs(run: Any, *names: str) -> bool:
  """Whether one of some stages runs, or one of a plugin, which may read all."""
  return any(name in names or name not in STAGES for name in run.stages)


def stage(*names: str) -> Condition:
  """The key has an effect on some stages, and perhaps on those of plugins."""
  return Condition(
    lambda run, section: _runs(run, *names),
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
    lambda run, section: _makes_base(run) or _runs(run),
    "init = 'pretrain'",
    ('.init',),
    Severity.QUIET,
    of_stages=True,
  )


def prompt_stage() -> Condition:
  """The key has an effect on the stages that read prompts of config.data."""
  return stage(*PROMPT_STAGES)


def samples() -> Condition:
  """The key has an effect where a policy samples: in a stage or in `eval`."""
  return dataclasses.replace(
    prompt_stage().quiet, in_evaluation=lambda name: True
  )


def evaluates() -> Condition:
  """The key has an effect where held-out problems are answered."""
  return dataclasses.replace(stage('rl').quiet, in_evaluation=lambda name: True)


def searches() -> Condition:
  """The key has an effect on `r1jax eval` alone, and perhaps on plugins."""
  return Condition(
    lambda run, section: _runs(run),
    'the command r1jax eval, which alone searches',
    severity=Severity.QUIET,
    of_stages=True,
  )


def trains() -> Condition:
  """The key has an effect where a network is trained."""
  return Condition(
    lambda run, section: not set(run.stages).issubset(_DATASET_STAGES),
    'a stage that trains',
    ('.stages',),
    Severity.QUIET,
    of_stages=True,
  )


def draws_parameters() -> Condition:
  """The key has an effect where parameters begin at random."""
  return Condition(
    lambda run, section: (
      run.init in ('random', 'pretrain')
      or run.model.scalar_head
      or run.rl.adv_estimator not in ('grpo', 'rloo')
      or _runs(run, 'pretrain')
    ),
    "random parameters: init = 'random' or 'pretrain', or a new scalar head",
    ('.init',),
    Severity.QUIET,
  )


def splits_steps() -> Condition:
  """The key has an effect where completions are split into steps.

  A process reward model splits them as the data did that it learnt from.
  """
  return Condition(
    lambda run, section: (
      _runs(run, 'label_steps')
      or (run.eval.search.kind, run.eval.search.leaf_value) == ('mcts', 'rule')
    ),
    "the stage label_steps, or eval.search.kind = 'mcts' with leaf_value = "
    "'rule'",
    ('.stages',),
    Severity.QUIET,
  )


def plain_template() -> Condition:
  """The key has an effect on prompts of a template that is no chat template."""
  return Condition(
    lambda run, section: (
      run.data.template != 'chat' and not run.data.template.endswith('.jinja')
    ),
    'a data.template that is no chat template',
    ('data.template',),
    Severity.WARNING,
  )


def reads_task() -> Condition:
  """The key `data.task` is read unless other keys name all that is read."""

  def holds(run: Any, section: Any) -> bool:
    del section
    return (
      _runs(run, 'rl')
      or (not run.data.mixture and _runs(run, *PROMPT_STAGES))
      or (not run.corpus.tasks and _makes_base(run))
    )

  return Condition(
    holds,
    'the stage rl, a stage that samples without data.mixture, or pretrain '
    'without corpus.tasks',
    ('.stages',),
    Severity.QUIET,
    of_stages=True,
  )


def dataset(key: str) -> Condition:
  """The key has an effect where another key names no synthetic task."""
  return Condition(
    lambda run, section: value_of(run, section, key) not in registry.task,
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


def _may_be_code(name: str, own_files: bool) -> bool:
  """Returns whether programs may be among the answers of a task or dataset.

  Rows of a user's files and of a plugin's dataset may each name a grader.
  """
  if name in registry.task:
    return registry.task.get(name).grader == 'code'
  return name in registry.dataset and (
    registry.dataset.get(name).grader == 'code'
    or own_files
    or bool(registry.dataset.origin(name).plugin)
  )


def code_prompts() -> Condition:
  """The key has an effect where programs are graded."""

  def holds(run: Any, section: Any) -> bool:
    del section
    data = run.data
    return (
      _runs(run)
      or run.rl.environment != 'answer'
      or _may_be_code(data.task, bool(data.path or data.eval_path))
      or any(_may_be_code(name, bool(data.path)) for name in sources(run))
    )

  return Condition(
    holds,
    'a source of programming tasks, such as mbpp, in data.task or data.mixture',
    ('data.task', 'data.mixture'),
    Severity.WARNING,
    in_evaluation=lambda name: _may_be_code(name, False),
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


def _document_tasks(run: Any) -> list[str]:
  """Returns the synthetic tasks whose documents a run makes."""
  names: list[str] = []
  if _makes_base(run):
    names += run.corpus.tasks or (run.data.task,)
  if 'sft' in run.stages:
    names += run.sft.data
  if 'rejection_sampling' in run.stages:
    names += run.rejection_sampling.extra_data
  names = [name.partition(':')[0] for name in names]
  return [name for name in names if name in registry.task]


def corpus() -> Condition:
  """The key has an effect where documents of synthetic tasks are made."""
  return Condition(
    lambda run, section: (
      _runs(run) or _makes_base(run) or bool(_document_tasks(run))
    ),
    'the stage pretrain, or a synthetic task in sft.data or '
    'rejection_sampling.extra_data',
    ('.stages',),
    Severity.WARNING,
    of_stages=True,
  )


def general_documents() -> Condition:
  """The key has an effect on documents of tasks that no rule can verify."""
  return Condition(
    lambda run, section: (
      _runs(run) or any(map(is_general, _document_tasks(run)))
    ),
    'a general task, such as manners, among the documents',
    ('corpus.tasks', 'data.task'),
    Severity.WARNING,
  )


def experts() -> Condition:
  """The key has an effect on a model with experts."""
  return Condition(
    lambda run, section: run.model.num_moe_layers > 0,
    'layers with experts',
    ('model.num_hidden_layers', 'model.first_k_dense_replace'),
    Severity.QUIET,
  )


def dense_layers() -> Condition:
  """The key has an effect on a model with layers without experts."""
  return Condition(
    lambda run, section: run.model.first_k_dense_replace > 0,
    'layers without experts',
    ('model.first_k_dense_replace',),
    Severity.QUIET,
  )


def begins_with_init() -> Condition:
  """The key `init` is read unless pre-training is all that runs."""
  return Condition(
    lambda run, section: run.stages != ('pretrain',) or run.init == 'random',
    'a stage that begins with it, and pretrain begins with random parameters',
    ('.stages',),
  )


def begins_at_step() -> Condition:
  """The key has an effect where `init` names a checkpoint of another run."""
  return Condition(
    lambda run, section: bool(re.search(r'@\d+$', run.init)),
    "an init that names a step, such as 'runs/a@40'",
    ('.init',),
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
