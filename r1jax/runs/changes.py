"""The config of a run may change in some keys while its folder stays.

Every key says so itself (config/field.py, Change): cadences, checkpoints that
are kept and evaluations are free, and the number of steps may grow, so that the
run goes on. All else is refused: it would be another run. What has changed is
recorded beside the config; see stages/run_record.py.
"""

from collections.abc import Iterator, Mapping
import json
import logging
from pathlib import Path
from typing import Any

from r1jax import files
from r1jax.config.field import Change, Spec, walk
from r1jax.config.keys import flatten, record
from r1jax.config.load import replace
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.runs.stage_list import running, stage_class
from r1jax.stages import ending, run_record
from r1jax.stages.build import sampler

# The values of a key there and here; None for one that is absent.
Differences = Mapping[str, tuple[Any, Any]]
_log = logging.getLogger(__name__)


def recorded(run: Path, remedy: str) -> dict:
  """Returns the config that a run's folder records, as flat keys.

  Raises:
    UserError: the record is broken; ends with the remedy.
  """
  path = run / run_record.CONFIG
  try:
    return flatten(json.loads(path.read_text()))
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(
      f'workdir: cannot read {path} ({error}), which says '
      f'whose {run} is; {remedy}'
    ) from error


def differences(theirs: Mapping, ours: Mapping) -> dict[str, tuple[Any, Any]]:
  """Returns the keys in which two configs differ, with both values.

  A key that only one of them has is as if it were off there: versions add keys
  that change nothing where they are False, 0 or empty.
  """
  return {
    key: (theirs.get(key), ours.get(key))
    for key in sorted(theirs.keys() | ours.keys())
    if theirs.get(key) != ours.get(key)
    and ((key in theirs and key in ours) or theirs.get(key) or ours.get(key))
  }


def record_of(config: RunConfig | Mapping) -> Mapping:
  """Returns what config.json holds of a config; a mapping is a record itself."""
  return config if isinstance(config, Mapping) else record(config)


def found(run: Path, config: RunConfig | Mapping, remedy: str) -> dict:
  """Returns what differs between the record in a folder and a config.

  A free key that the record lacks, as one of an older version does, does not
  differ if it has its default.

  Args:
    run: The folder of the run.
    config: A config; or a record of something else, no key of which may change.
    remedy: Advice for the error of a broken record.
  """
  every = differences(recorded(run, remedy), flatten(dict(record_of(config))))
  if isinstance(config, Mapping):
    return every
  defaults = flatten(record(type(config)()))
  return {
    key: values
    for key, values in every.items()
    if not (
      values[0] is None
      and _change(config, key) is Change.FREE
      and values[1] == defaults[key]
    )
  }


def refusals(
  run: Path, config: RunConfig | Mapping, differ: Differences
) -> list[str]:
  """Says of each key that differs and may not why it may not.

  Args:
    run: The folder of the run.
    config: The config that it is to go on with.
    differ: The keys that differ; see `found`.

  Returns:
    A clause for each, with its values and the reason.
  """
  if isinstance(config, Mapping):
    return [clause(key, *values) for key, values in differ.items()]
  texts = []
  for key, (old, new) in differ.items():
    text = clause(key, old, new)
    change, name = _change(config, key), key.partition('.')[0]
    if change is Change.FREE:
      reasons = _other_width(config, key, differ)
    elif change is Change.NEVER or name not in running(config):
      texts.append(text)
      continue
    else:
      reasons = _other_steps(run, config, name, change, old, new)
    if reason := next(reasons, ''):
      texts.append(f'{text}: {reason}')
  return texts


def clause(key: str, old: Any, new: Any) -> str:
  """Says which values a key has in a run's record and in a config."""
  return (
    f'{key} is {run_record.shown(old)} there and {run_record.shown(new)} here'
  )


def grown(config: RunConfig, differ: Differences) -> list[str]:
  """Returns the stages whose number of steps is another one, in their order."""
  sections = {
    key.partition('.')[0]
    for key in differ
    if _change(config, key) in (Change.STEPS, Change.EPOCHS)
  }
  return [name for name in running(config) if name in sections]


def reopens(run: Path, config: RunConfig) -> bool:
  """Returns whether a run that may be finished has steps to make again."""
  if not (run / run_record.CONFIG).exists():
    return False
  return bool(grown(config, found(run, config, '')))


def apply(run: Path, config: RunConfig):
  """Records a config that a run goes on with, and how it has changed.

  The output of a stage whose number of steps is another one is removed: its
  last checkpoint stays, from which the stage goes on.

  Args:
    run: The folder of the run, which this process has claimed.
    config: The config; `refusals` has none.
  """
  differ = found(run, config, '')
  stages = grown(config, differ)
  if not differ:
    return
  stage, step = _reached(run, config)
  entry = {
    'stage': stage,
    'after_step': step,
    'config_sha256': files.json_digest(run / run_record.CONFIG),
    'changed': differ,
  }
  earlier = run_record.changes(run)
  if earlier and earlier[-1]['config_sha256'] == entry['config_sha256']:
    earlier.pop()  # It was recorded before a kill, and never held.
  files.write_text(
    run / run_record.CHANGES,
    ''.join(json.dumps(each) + '\n' for each in [*earlier, entry]),
  )
  for name in stages:
    (run / name / stage_class(name).output).unlink(missing_ok=True)
  files.write_text(
    run / run_record.CONFIG, json.dumps(record(config), indent=2) + '\n'
  )
  _log.info('%s: %s', run, run_record.described(entry))


def _change(config: RunConfig, key: str) -> Change:
  specs = {name: spec for name, _, spec, _ in walk(config)}
  # The keys of open mappings have no declaration of their own.
  return specs.get(key, Spec()).change


def _reached(run: Path, config: RunConfig) -> tuple[str, int]:
  """Returns the last stage that has a checkpoint, and its newest one's step."""
  for name in reversed(running(config)):
    if (step := ending.latest_step(run / name)) is not None:
      return name, step
  return running(config)[0], 0


def _other_steps(
  run: Path, config: RunConfig, name: str, change: Change, old: int, new: int
) -> Iterator[str]:
  """Yields why a stage may not have another number of steps or epochs."""
  step = ending.latest_step(run / name) or 0
  is_finished = (run / name / stage_class(name).output).exists()
  after = running(config)[running(config).index(name) + 1 :]
  if begun := [each for each in after if (run / each).exists()]:
    yield f'{begun[0]} has begun with the weights that {name} has left'
  if change is Change.EPOCHS:
    if new < old:
      yield 'it may only grow'
    if is_finished:
      yield (
        f'{name} is finished, and its last batch was filled up where the next '
        'epoch would have begun'
      )
  elif new < (old if is_finished else step):
    yield f'so many steps of {name} were made: {old if is_finished else step}'
  elif name == 'rl' and config.rl.one_step_off_policy and step >= old:
    yield (
      f'step {old} was the last one, which sampled nothing for a next one, as '
      'rl.one_step_off_policy asks of every other step'
    )
  yield from _schedules(config, name)


def _schedules(config: RunConfig, name: str) -> Iterator[str]:
  """Yields the schedules of a stage that depend on its number of steps."""
  section = getattr(config, name)
  optimizer = getattr(section, 'optimizer', None)
  text = 'ends with the last step, so that all steps before would be others'
  if (
    optimizer
    and optimizer.lr_scheduler_type == 'cosine'
    and optimizer.min_lr_ratio < 1
  ):
    yield f"{name}.optimizer.lr_scheduler_type = 'cosine' {text}"
  mtp = getattr(section, 'mtp', None)
  if (
    mtp
    and config.model.prediction_depth
    and 0 < mtp.switch_fraction < 1
    and mtp.loss_weight != mtp.final_loss_weight
  ):
    yield f'{name}.mtp.switch_fraction counts from the last step'


def _other_width(
  config: RunConfig, key: str, differ: Differences
) -> Iterator[str]:
  """Yields why an evaluation of another size would change what is sampled.

  The sampler is as wide as the larger of a step and an evaluation, and another
  width rounds in another order.
  """
  sizes = 'eval.num_problems', 'eval.num_samples'
  if key not in sizes or 'rl' not in running(config):
    return
  earlier = {each: differ[each][0] for each in sizes if each in differ}
  before, now = (
    sampler.engine_config(each).max_num_seqs
    for each in (replace(config, earlier), config)
  )
  if before != now:
    yield (
      f'it makes the sampler {now} sequences wide in place of {before} '
      '(rollout.max_num_seqs at most), which rounds in another order'
    )
