"""A list of runs that feed each other, such as those of DeepSeek-R1.

A pipeline's config names its stages in order, and has a whole config for each:

  config.stages = ('base', 'cold_start', 'reasoning')
  config.evaluations = ('arithmetic',)     what each policy is measured on
  config.seed = 0                          is added to the seed of each stage
  config.cold_start = …     with init = '@base'
  config.reasoning = …      with init = '@cold_start'

'@name' in any key stands for what the stage of that name leaves: weights, or a
dataset. Every stage is an ordinary run in a folder of its own.
"""

from collections.abc import Sequence
import copy
import json
from pathlib import Path

import jax
import ml_collections

from r1jax.checkpoints.storage import write_text
from r1jax.errors import UserError, unknown
from r1jax.evaluate.evaluator import Evaluator
from r1jax.rollout.engine import Engine
from r1jax.runs import run, validate
from r1jax.stages.build import parts as build

MEASURED = 'evaluation.json'


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  only: str = '',
  start: str = '',
):
  """Runs what is left to run of a pipeline.

  Args:
    config: Of the pipeline.
    workdir: Each stage has a folder of its name in it.
    only: The one stage to run.
    start: The first stage to run; the ones after it follow.

  Raises:
    UserError: bad input, before anything runs; or a stage that was made again
      is another than a later one was made from.
  """
  place, config = Path(workdir).expanduser(), seeded(config)
  names = chosen(config, only, start)
  validate.check(config, place, names)
  table(config, place)  # A broken record is told first.
  examiner = _Examiner(config.evaluations)
  concrete = {
    name: validate.resolved(config[name], config, place) for name in names
  }
  for name in names:
    if _leaves_policy(config[name]):
      with validate.told_of(name):
        examiner.check(
          concrete[name],
          place / name,
          run.output(config[name], place / name).exists(),
        )
  for name in names:
    print(f'--- {name} ---', flush=True)
    section, folder = config[name], place / name
    if not run.output(section, folder).exists():
      (folder / MEASURED).unlink(missing_ok=True)  # Of what is gone.
    with validate.told_of(name):
      run.train(concrete[name], str(folder), section)
    if _leaves_policy(section):
      with validate.told_of(name):
        examiner.examine(concrete[name], folder)
    validate.check_sources(config, place)  # Of this one, if it was made again.
  told = table(config, place)
  if told:
    _write(place / 'table.md', told + '\n')
    print(told)


def _write(path: Path, text: str):
  try:
    write_text(path, text)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error}') from error


def _leaves_policy(section: ml_collections.ConfigDict) -> bool:
  return run.STAGES[section.stages[-1]].leaves_policy


class _Examiner:
  """Measures what stages have left; keeps its compiled sampler while the
  models are alike."""

  def __init__(self, names: Sequence[str]):
    self._names = names
    self._known: dict[str, tuple[build.Parts, Engine]] = {}

  def check(self, config: ml_collections.ConfigDict, workdir: Path, made: bool):
    """Refuses what it could not measure the policy on, made or to be made."""
    for name in self._missing(workdir) if made else self._names:
      self._evaluator(config, name)

  def examine(self, config: ml_collections.ConfigDict, workdir: Path):
    """Each of the tasks that was not yet, under the policy in a workdir."""
    found, missing = measured(workdir / MEASURED), self._missing(workdir)
    if not missing:
      return
    parts, _ = self._sampler(config)
    params = run.trained_params(config, parts, str(workdir))
    for name in missing:
      metrics = (
        self._evaluator(config, name)
        .run(params, jax.random.key(config.seed))
        .metrics
      )
      found |= {
        f'{name}/{key.removeprefix("eval/")}': value
        for key, value in metrics.items()
      }
    _write(workdir / MEASURED, json.dumps(found, indent=1) + '\n')

  def _missing(self, workdir: Path) -> list[str]:
    found = measured(workdir / MEASURED)
    return [
      name
      for name in self._names
      if not any(_of(name, column) for column in found)
    ]

  def _evaluator(
    self, config: ml_collections.ConfigDict, task: str
  ) -> Evaluator:
    asked = copy.deepcopy(config)
    asked.data.update(task=task, mixture=(), path='', eval_path='')
    return build.evaluator(asked, *self._sampler(config))

  def _sampler(self, config) -> tuple[build.Parts, Engine]:
    config = copy.deepcopy(config)
    # Of these the sampler knows nothing, but for how many rows it may need.
    config.rl.update(prompts_per_step=1, group_size=2, oversample=1.0)
    key = json.dumps(
      [
        config[part].to_dict()
        for part in ('model', 'mesh', 'tokenizer', 'rollout', 'eval')
      ]
      + [config.rl.max_new_tokens]
      + [
        config.data[part]
        for part in (
          'max_prompt_tokens',
          'template',
          'system',
          'response_prefix',
          'response_format',
        )
      ]
    )
    if key not in self._known:
      parts = build.parts(config)
      self._known = {key: (parts, build.engine(config, parts))}
    return self._known[key]


def seeded(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The pipeline whose stages have their seeds plus config.seed, if any.

  Raises:
    UserError: a stage has no config.
  """
  shifted = copy.deepcopy(config)
  for name in config.stages:
    validate.of_stage(shifted, name).seed += config.get('seed', 0)
  return shifted


def chosen(
  config: ml_collections.ConfigDict, only: str, start: str
) -> tuple[str, ...]:
  """The stages to run.

  Raises:
    UserError: one of the two names no stage, or both are given.
  """
  names = tuple(config.stages)
  for name in filter(None, (only, start)):
    if name not in names:
      raise unknown('pipeline: stage', name, names)
  if only and start:
    raise UserError('pipeline: --only and --from exclude each other')
  if only:
    return (only,)
  return names[names.index(start) :] if start else names


def measured(record: Path) -> dict[str, float]:
  """What a stage was measured at, by task and metric; nothing without a record.

  Raises:
    UserError: it is broken.
  """
  try:
    found = json.loads(record.read_text())
    return {column: float(value) for column, value in found.items()}
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f'{record} is broken ({error}); remove it, and the stage '
      'is measured again'
    ) from error


def _of(task: str, column: str) -> bool:
  return column.startswith(f'{task}/')


# In evaluation.json alone.
_UNTOLD = ('pass@1_stderr', 'clipped_ratio', 'unscorable', 'self_correction')


def table(config: ml_collections.ConfigDict, place: Path) -> str:
  """What was measured of every stage that leaves a policy, as Markdown."""
  rows = []
  for name in config.stages:
    found = measured(place / name / MEASURED)
    if any(
      _of(task, column) for task in config.evaluations for column in found
    ):
      rows.append((name, found))
  if not rows:
    return ''
  columns = list(
    dict.fromkeys(
      column
      for task in config.evaluations
      for _, found in rows
      for column in found
      if _of(task, column) and column.rpartition('/')[2] not in _UNTOLD
    )
  )
  lines = [
    '| stage | ' + ' | '.join(columns) + ' |',
    '|---' * (len(columns) + 1) + '|',
  ]
  for name, found in rows:
    shown = [f'{found[c]:.3f}' if c in found else '' for c in columns]
    lines.append(f'| {name} | ' + ' | '.join(shown) + ' |')
  return '\n'.join(lines)
