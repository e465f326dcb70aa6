"""How the stages of a pipeline fit together: what each takes from another, and
what cannot work, found before anything runs."""

from collections.abc import Sequence
import contextlib
import copy
from pathlib import Path

import ml_collections

from r1jax.checkpoints import weights
from r1jax.config.keys import flatten
from r1jax.data import scored_text, sources, tasks
from r1jax.errors import UserError, unknown
from r1jax.runs import lineage, run, workdir
from r1jax.stages.build import sft_data

_MARK = '@'


def check(config: ml_collections.ConfigDict, place: Path, names: Sequence[str]):
  """Refuses what cannot work, before anything runs.

  Args:
    config: Of the pipeline.
    place: Each stage has a folder of its name in it.
    names: The stages to run.

  Raises:
    UserError: a stage has no section, names a stage that is not there or that
      comes later, does not fit what it starts from, has another config than
      when it was run, was made from or has left something else than is there
      now, waits for a stage that will not run, or finds something wrong itself.
  """
  stages = tuple(config.stages)
  _check_form(config)
  parents = {name: references(config[name]) for name in stages}
  _check_order(stages, parents)
  for name in stages:
    for key, parent in parents[name].items():
      _check_fit(name, config[name], key, parent, config[parent])
  done = {
    name for name in stages if run.output(config[name], place / name).exists()
  }
  if place.exists() and not place.is_dir():
    raise UserError(f'pipeline: {place} is a file; use another --workdir')
  for name in stages:
    workdir.check(
      place / name,
      config[name].to_dict(),
      f'{_anew(place / name)}, or use another --workdir',
    )
    inner = run.output(config[name], place / name).parent
    if inner.exists() and not inner.is_dir():
      raise UserError(f'pipeline: {inner} is a file; {_anew(place / name)}')
  _check_outputs(config, place, _with_ancestors(names, parents))
  check_sources(config, place)
  for name in names:
    missing = [
      key for key, parent in parents[name].items() if parent not in done
    ]
    for key in missing:
      if parents[name][key] not in names:
        raise UserError(
          f'pipeline: {name}.{key} needs {parents[name][key]}, '
          'which has not been run; run it first'
        )
    if name not in done:
      _check_alone(name, config, place, missing)


def references(section: ml_collections.ConfigDict) -> dict[str, str]:
  """Key to the stage that it names, of all keys with '@name' in them.

  Args:
    section: The config of a stage.
  """
  return {key: said.partition(':')[0] for key, said in _marked(section).items()}


def _marked(section: ml_collections.ConfigDict) -> dict[str, str]:
  """Key to what it says behind the mark."""
  found = {}
  for key, value in flatten(section.to_dict()).items():
    for i, item in enumerate(value if isinstance(value, list) else [value]):
      if isinstance(item, str) and item.startswith(_MARK):
        found[f'{key}[{i}]' if isinstance(value, list) else key] = item[1:]
  return found


def resolved(
  section: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  place: Path,
) -> ml_collections.ConfigDict:
  """The section with the files that its '@name's stand for.

  Args:
    section: The config of a stage.
    config: Of the pipeline.
    place: Its workdir.

  Raises:
    UserError: a name is no stage's.
  """

  def put(value):
    if isinstance(value, (tuple, list)):
      return tuple(map(put, value))
    if not (isinstance(value, str) and value.startswith(_MARK)):
      return value
    name, colon, weight = value[1:].partition(':')
    made = run.output(of_stage(config, name), place / name)
    return f'{made}{colon}{weight}'

  def walk(inner):
    for key, value in inner.items():
      if isinstance(value, ml_collections.ConfigDict):
        walk(value)
      else:
        inner[key] = put(value)

  copied = copy.deepcopy(section)
  walk(copied)
  return copied


def of_stage(
  config: ml_collections.ConfigDict, name: str
) -> ml_collections.ConfigDict:
  """The config of one stage.

  Raises:
    UserError: there is none, or it is not of a run.
  """
  found = config.get(name)
  if isinstance(found, ml_collections.ConfigDict) and _NEEDED <= set(found):
    return found
  sections = [
    key
    for key, value in config.items()
    if isinstance(value, ml_collections.ConfigDict)
  ]
  if name not in config:
    raise unknown('pipeline: stage', name, sections)
  raise UserError(
    f'pipeline: {name} must be the config of a run, with all of '
    f'r1jax/config/base.py; it is {type(found).__name__}'
  )


# Sections and keys of r1jax/config/base.py that say that a config is of a run.
_NEEDED = {
  'stages',
  'seed',
  'init',
  'model',
  'mesh',
  'tokenizer',
  'data',
  'rl',
  'rollout',
  'eval',
}


def _check_form(config: ml_collections.ConfigDict):
  """What a pipeline consists of."""
  stages = tuple(config.stages)
  if not isinstance(config.get('evaluations'), (tuple, list)):
    raise UserError(
      'pipeline: the config needs evaluations, tasks that each '
      'policy is measured on; () for none'
    )
  for name in config.evaluations:
    if name not in tasks.TASKS and name not in sources.SOURCES:
      raise unknown(
        'pipeline: evaluations: task', name, [*tasks.TASKS, *sources.SOURCES]
      )
  if len(set(stages)) < len(stages) or not stages:
    raise UserError(f'pipeline: stages {stages} are none, or name one twice')
  for name in stages:
    run.check_names(of_stage(config, name))


def _check_order(stages: Sequence[str], parents: dict[str, dict[str, str]]):
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
          f'pipeline: {name}.{key} needs {parent}, which comes '
          f'after {name}; put it before'
        )


def _check_circle(parents: dict[str, dict[str, str]]):
  settled: set[str] = set()

  def visit(name: str, path: tuple[str, ...]):
    if name in path:
      raise UserError(
        'pipeline: the stages wait for each other: '
        + ' ← '.join([*path[path.index(name) :], name])
      )
    if name not in settled:
      for parent in parents[name].values():
        visit(parent, (*path, name))
      settled.add(name)

  for name in parents:
    visit(name, ())


# What stages leave, and what keys take.
_POLICY, _ROWS, _PAIRS = 'a policy', 'demonstrations', 'pairs'
_REWARD, _PROCESS = 'a reward model', 'a process reward model'
_STEPS = 'labelled steps'
_JUDGES = _REWARD, _PROCESS
_LEFT = {'reward_model': _REWARD, 'prm': _PROCESS, 'label_steps': _STEPS}
# By the beginning of a key.
_TAKEN = {
  'init': (_POLICY,),
  'sft.teacher_model': (_POLICY,),
  'sft.data': (_ROWS,),
  'data.': (_ROWS,),
  'rejection_sampling.extra_data': (_ROWS,),
  'reward_model.data': (_PAIRS,),
  'reward_model.eval_data': (_PAIRS,),
  'dpo.data': (_PAIRS,),
  'dpo.eval_data': (_PAIRS,),
  'prm.data': (_STEPS,),
  'eval.search': (_PROCESS,),
  'rl.ppo.critic_init': (_REWARD, _PROCESS, _POLICY),
  'rl.reward_models.prm': (_PROCESS,),
  'rl.reward_models': (_REWARD,),
  'rejection_sampling.reward_model': (_REWARD,),
}


def _left_by(parent: ml_collections.ConfigDict) -> str:
  """What a run of this config leaves."""
  last = parent.stages[-1]
  if last == 'rejection_sampling':
    return _PAIRS if parent.rejection_sampling.pairs else _ROWS
  return _LEFT.get(last, _POLICY)


def _check_fit(name: str, child, key: str, parent_name: str, parent):
  """Is what the parent leaves what the key needs?"""
  here = f'pipeline: {name}.{key}'
  wanted = next(
    (kinds for start, kinds in _TAKEN.items() if key.startswith(start)), None
  )
  if wanted is None:
    raise UserError(f'{here} takes nothing from another stage')
  left = _left_by(parent)
  if key == 'init' and _left_by(child) in _JUDGES:
    wanted += _JUDGES  # A judge may go on where another one ended.
  if left not in wanted:
    hint = ''
    if {left, *wanted} <= {_ROWS, _PAIRS}:
      hint = f'; set {parent_name}.rejection_sampling.pairs = {left == _ROWS}'
    raise UserError(
      f'{here} needs {" or ".join(wanted)}, but {parent_name} '
      f'leaves {left}{hint}'
    )
  if left == _ROWS:
    if key.startswith('sft.') and child.sft.teacher_model == sft_data.STORED:
      _check_stored(here, parent_name, parent)
  elif left not in (_PAIRS, _STEPS):
    _check_weights(here, name, child, key, parent_name, parent)


def _check_stored(here: str, parent_name: str, parent):
  """Checks that every sampled row brings the distributions of its teacher."""
  if not parent.rejection_sampling.top_logprobs:
    raise UserError(
      f"{here}: sft.teacher_model = 'stored' needs {parent_name}."
      'rejection_sampling.top_logprobs above 0'
    )
  if parent.rejection_sampling.extra_data:
    raise UserError(
      f"{here}: sft.teacher_model = 'stored', but {parent_name}."
      'rejection_sampling.extra_data brings rows without a teacher; leave them '
      'out'
    )


def _check_weights(
  here: str, name: str, child, key: str, parent_name: str, parent
):
  """Can the child use the parent's model for what the key says?"""
  if ':' in _marked(child)[key]:
    raise UserError(
      f'{here} = {_MARK + _marked(child)[key]!r}: only data have '
      'a weight or a count'
    )
  if child.tokenizer.source != parent.tokenizer.source:
    raise UserError(
      f'{here}: {parent_name} has the tokenizer '
      f'{parent.tokenizer.source!r}, {name} {child.tokenizer.source!r}'
    )
  if key == 'init':  # A teacher or a judge is a model of its own.
    _check_model(name, child, parent_name, parent)
  elif key == 'rl.ppo.critic_init':  # Its weights, whatever they judged.
    if not parent.model.scalar_head:
      raise UserError(
        f'{here} needs a scalar head; set {parent_name}.model.scalar_head'
      )
  elif _left_by(parent) == _PROCESS:
    reads = max(parent.prm.length_buckets)
    asked = child.data.max_prompt_tokens + child.rl.max_new_tokens
    if asked > reads:
      raise UserError(
        f'{here}: {parent_name} reads {reads} tokens, fewer than the {asked} '
        f'of {name}; raise {parent_name}.prm.length_buckets'
      )
  kind = key.removeprefix('rl.reward_models.')
  if kind in scored_text.KINDS and parent.reward_model.kind != kind:
    raise UserError(
      f'{here} needs what judges {kind!r}, but {parent_name} '
      f'judges {parent.reward_model.kind!r}'
    )


def _check_model(name: str, child, parent_name: str, parent):
  """Are both the same transformer?"""
  ours, theirs = (
    flatten({'model': c.model.to_dict()}) for c in (child, parent)
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


def _with_ancestors(
  names: Sequence[str], parents: dict[str, dict[str, str]]
) -> set[str]:
  """These stages, and all that they come from."""
  found, left = set(), list(names)
  while left:
    name = left.pop()
    if name not in found:
      found.add(name)
      left += parents[name].values()
  return found


def _check_outputs(
  config: ml_collections.ConfigDict, place: Path, names: set[str]
):
  """Finished stages are as they were left."""
  for name, said in _records(config, place).items():
    if not said or name not in names:
      continue
    made = run.output(config[name], place / name)
    if lineage.digest(made) != said['output']['sha256']:
      raise UserError(
        f'pipeline: {made} is not what {name} left, by its {lineage.FILE}; '
        f'put that back, or {_anew(place / name)}'
      )


def check_sources(config: ml_collections.ConfigDict, place: Path):
  """Finished stages were made from what the stages before them have now.

  Raises:
    UserError: naming the stage to make again.
  """
  records = _records(config, place)
  for name, said in records.items():
    for key, then in (said['inputs'] if said else {}).items():
      parent = Path(then['run'] or '').name
      now = records.get(parent)
      if (
        now
        and then['path'] == f'../{parent}/{now["output"]["path"]}'
        and now['output']['sha256'] != then['sha256']
      ):
        raise UserError(
          f'pipeline: {name} was made from another {parent} ({key}) than '
          f'the one that is there now; {_anew(place / name)}'
        )


def _records(
  config: ml_collections.ConfigDict, place: Path
) -> dict[str, dict | None]:
  """What finished stages say that they came from; None of one that was killed
  before it said it."""
  return {
    name: lineage.read(place / name)
    for name in config.stages
    if run.output(config[name], place / name).exists()
  }


def _anew(folder: Path) -> str:
  return f'remove {folder} to make it again'


def _check_alone(name: str, config, place: Path, missing: Sequence[str]):
  """What the stage itself finds wrong, as far as its inputs are there."""
  concrete = resolved(config[name], config, place)
  if str(config[name].init).startswith(_MARK):  # Read when the stage runs.
    concrete.init = 'random'
  with told_of(name):
    run.check(concrete, [key for key in missing if key != 'init'])


@contextlib.contextmanager
def told_of(name: str):
  """An error within is of the stage of this name."""
  try:
    yield
  except UserError as error:
    raise UserError(f'pipeline: {name}: {error}') from error
