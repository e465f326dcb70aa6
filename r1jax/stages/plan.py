"""How the stages of a pipeline fit together: what each takes from another, and
what cannot work, found before anything runs."""

from collections.abc import Sequence
import copy
from pathlib import Path

import ml_collections

from r1jax.data import sources, tasks
from r1jax.errors import UserError, unknown
from r1jax.settings import flatten
from r1jax.stages import lineage, run
from r1jax.stages.workdir import compare
from r1jax.train import weights

_MARK = '@'


def check(config: ml_collections.ConfigDict, place: Path,
          names: Sequence[str]):
  """Refuses what cannot work, before anything runs.

  Raises:
    UserError: a stage has no section, names a stage that is not there or that
      comes later, does not fit what it starts from, has another config than
      when it was run, or waits for a stage that will not run.
  """
  stages = tuple(config.stages)
  if 'evaluations' not in config:
    raise UserError('pipeline: the config needs evaluations, tasks that each '
                    'policy is measured on; () for none')
  for name in config.evaluations:
    if name not in tasks.TASKS and name not in sources.SOURCES:
      raise unknown('pipeline: evaluations: task', name,
                    [*tasks.TASKS, *sources.SOURCES])
  if len(set(stages)) < len(stages) or not stages:
    raise UserError(f'pipeline: stages {stages} are none, or name one twice')
  for name in stages:
    if name not in config:
      raise unknown('pipeline: stage', name, [
          key for key, value in config.items()
          if isinstance(value, ml_collections.ConfigDict)])
    run.check_names(config[name])
  parents = {name: references(config[name]) for name in stages}
  _check_order(stages, parents)
  for name in stages:
    for key, parent in parents[name].items():
      _check_fit(name, config[name], key, parent, config[parent])
  done = {name for name in stages
          if run.output(config[name], place / name).exists()}
  for name in stages:
    if (place / name / 'config.json').exists():
      compare(place / name, config[name].to_dict())
    if name in done:
      _check_unchanged(name, place, parents[name], config)
  for name in names:
    for key, parent in parents[name].items():
      if parent not in done and parent not in names:
        raise UserError(f'pipeline: {name}.{key} needs {parent}, which has not '
                        'been run; run it first')
    if name not in done:
      _check_alone(name, config, place, all(
          parent in done for key, parent in parents[name].items()
          if key != 'init'))  # Weights are read when the stage runs.


def references(section: ml_collections.ConfigDict) -> dict[str, str]:
  """Key to the stage that it names, of all keys with '@name' in them."""
  found = {}
  for key, value in flatten(section.to_dict()).items():
    for i, item in enumerate(value if isinstance(value, list) else [value]):
      if isinstance(item, str) and item.startswith(_MARK):
        found[f'{key}[{i}]' if isinstance(value, list) else key] = (
            item[1:].partition(':')[0])
  return found


def resolved(section: ml_collections.ConfigDict,
             config: ml_collections.ConfigDict,
             place: Path) -> ml_collections.ConfigDict:
  """The section with the files that its '@name's stand for."""
  def put(value):
    if isinstance(value, (tuple, list)):
      return tuple(map(put, value))
    if not (isinstance(value, str) and value.startswith(_MARK)):
      return value
    name, colon, weight = value[1:].partition(':')
    return str(run.output(config[name], place / name)) + colon + weight

  def walk(inner):
    for key, value in inner.items():
      if isinstance(value, ml_collections.ConfigDict):
        walk(value)
      else:
        inner[key] = put(value)

  copied = copy.deepcopy(section)
  walk(copied)
  return copied


def _check_order(stages: Sequence[str], parents: dict[str, dict[str, str]]):
  for name in stages:
    for key, parent in parents[name].items():
      if parent not in stages:
        raise UserError(
            f'pipeline: {name}.{key} names {parent!r}, which is no stage; '
            f'there are {", ".join(stages)}')
  _check_circle(parents)
  for i, name in enumerate(stages):
    for key, parent in parents[name].items():
      if parent not in stages[:i]:
        raise UserError(f'pipeline: {name}.{key} needs {parent}, which comes '
                        f'after {name}; put it before')


def _check_circle(parents: dict[str, dict[str, str]]):
  settled: set[str] = set()

  def visit(name: str, path: tuple[str, ...]):
    if name in path:
      raise UserError('pipeline: the stages wait for each other: '
                      + ' ← '.join([*path[path.index(name):], name]))
    if name not in settled:
      for parent in parents[name].values():
        visit(parent, (*path, name))
      settled.add(name)

  for name in parents:
    visit(name, ())


def _check_fit(name: str, child, key: str, parent_name: str, parent):
  """Is what the parent leaves what the key needs?"""
  leaves = run.STAGES[parent.stages[-1]].output.partition('.')[2]
  wants = 'jsonl' if key.startswith(_DATA) else 'safetensors'
  if leaves != wants:
    raise UserError(f'pipeline: {name}.{key} needs a .{wants} file, but '
                    f'{parent_name} leaves {leaves!r}')
  if wants == 'jsonl':
    _check_rows(name, key, parent_name, parent)
    return
  judge = next((found for start, found in _JUDGES.items()
                if key.startswith(start)), None)
  if judge and parent.stages[-1] != judge[0]:
    raise UserError(f'pipeline: {name}.{key} needs {judge[1]}, but '
                    f'{parent_name} leaves what {parent.stages[-1]} does')
  if child.tokenizer.source != parent.tokenizer.source:
    raise UserError(
        f'pipeline: {name}.{key}: {parent_name} has the tokenizer '
        f'{parent.tokenizer.source!r}, {name} {child.tokenizer.source!r}')
  if key != 'init':  # A teacher or a judge is a model of its own.
    return
  ours, theirs = (flatten({'model': c.model.to_dict()})
                  for c in (child, parent))
  differ = [f'{field} is {theirs[field]!r} in {parent_name} and {value!r} in '
            f'{name}' for field, value in ours.items()
            if theirs[field] != value and field not in weights.FREE]
  if differ:
    raise UserError(f'pipeline: {name}.init does not fit {parent_name}: '
                    f'{"; ".join(differ)}')


def _check_rows(name: str, key: str, parent_name: str, parent):
  """Pairs are learnt as preferences, and nothing else is."""
  if parent.stages[-1] != 'curate':
    return
  wanted = key.startswith(_PREFERENCES)
  if parent.curate.pairs != wanted:
    raise UserError(
        f'pipeline: {name}.{key} needs '
        f'{"pairs" if wanted else "single rows, not pairs"}; set '
        f'{parent_name}.curate.pairs = {wanted}')


# Keys that name rows, and keys that name reward models.
_PREFERENCES = ('reward_model.data', 'reward_model.held_out', 'dpo.data',
                'dpo.held_out')
_DATA = ('sft.data', 'data.', 'curate.general', 'prm.data', *_PREFERENCES)
_PROCESS = 'prm', 'a process reward model'
_REWARD = 'reward_model', 'a reward model'
_JUDGES = {'rl.reward_models.process': _PROCESS, 'eval.search': _PROCESS,
           'rl.reward_models': _REWARD, 'curate.judge': _REWARD}


def _check_unchanged(name: str, place: Path, parents: dict[str, str], config):
  """A finished stage was made from what its parents hold now."""
  said = lineage.read(place / name)
  for key, parent in parents.items():
    file = run.output(config[parent], place / parent)
    recorded = (said or {'inputs': {}})['inputs'].get(key)
    if recorded and file.exists() and (
        lineage.digest(file) != recorded['sha256']):
      raise UserError(
          f'pipeline: {name} was made from another {parent} ({key}) than the '
          f'one that is there now; remove {place / name} to make it again')


def _check_alone(name: str, config, place: Path, ready: bool):
  """What the stage itself finds wrong, as far as its inputs are there."""
  section = resolved(config[name], config, place)
  if config[name].init.startswith(_MARK):  # It is there when the stage runs.
    section.init = 'random'
  try:
    run.check(section, ready)
  except UserError as error:
    raise UserError(f'pipeline: {name}: {error}') from error
