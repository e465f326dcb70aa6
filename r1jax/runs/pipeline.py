"""Runs a list of runs that feed each other, such as those of DeepSeek-R1."""

from collections.abc import Collection, Sequence
from functools import partial
import json
import logging
from pathlib import Path

import jax

from r1jax import buckets, files, processes
from r1jax.config import effects
from r1jax.config.load import replace
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError, unknown
from r1jax.evaluate.evaluator import Evaluator
from r1jax.rollout.engine import Engine
from r1jax.runs import changes, run, stage_list, validate
from r1jax.runs.pipeline_config import PipelineConfig, resolved
from r1jax.runs.workdir import fetch
from r1jax.stages.build import parts as build
from r1jax.stages.build import sampler
from r1jax.stages.stage import Kind

_log = logging.getLogger(__name__)


def train(
  pipeline: PipelineConfig,
  workdir: str,
  only: str = '',
  start: str = '',
  given: Collection[str] = (),
):
  """Runs the stages of a pipeline that are not finished yet.

  Args:
    pipeline: The pipeline.
    workdir: Its folder; each stage has a folder of its name in it.
    only: The one stage to run.
    start: The first stage to run; the ones after it follow.
    given: Keys that the command line gives: an error where without effect.

  Raises:
    UserError: bad input, before anything runs; or a stage that was made again
      is another than a later one was made from.
  """
  place = buckets.path(workdir)
  suite = _EvaluationSuite(pipeline.evaluations)
  with processes.agreed():
    fetch(place)
    names = chosen(pipeline, only, start)
    effects.check_all(pipeline.runs, given, evaluations(pipeline))
    concrete = check(pipeline, place, names, suite)
  processes.check_same(
    {
      'stages': repr(names),
      'evaluations': repr(pipeline.evaluations),
      'workdir': workdir,
    },
    'pipelines',
  )
  for name, after in zip(names, (*names[1:], '')):
    _train_one(pipeline, place, name, concrete[name], suite, after)
  processes.from_first(lambda: _write_table(pipeline, place))


def check(
  pipeline: PipelineConfig,
  place: Path,
  names: Sequence[str],
  suite: '_EvaluationSuite | None' = None,
) -> dict[str, RunConfig]:
  """Refuses what `train` would refuse before it begins.

  Args:
    pipeline: The pipeline.
    place: Its folder.
    names: The stages to run.
    suite: The evaluations, whose compiled sampler is kept; by default new ones.

  Returns:
    The config of each of these stages, with the paths of what it takes.

  Raises:
    UserError: naming the stage and key.
  """
  suite = suite or _EvaluationSuite(pipeline.evaluations)
  validate.check(pipeline, place, names)
  table(pipeline, place)  # A broken record is an error before anything runs.
  concrete = {
    name: resolved(pipeline.runs[name], pipeline, place) for name in names
  }
  for name in names:
    if _leaves_policy(concrete[name]):
      with validate.errors_of(name):
        finished = stage_list.output(concrete[name], place / name).exists()
        suite.check(concrete[name], place / name, finished)
  return concrete


def _train_one(
  pipeline: PipelineConfig,
  place: Path,
  name: str,
  concrete: RunConfig,
  suite: '_EvaluationSuite',
  after: str,
):
  """Trains one stage and evaluates it.

  Args:
    pipeline: The pipeline.
    place: Its folder.
    name: The stage.
    concrete: Its config, with the paths of what it takes.
    suite: The evaluations.
    after: The stage that follows; '' for none.
  """
  _log.info('--- %s ---', name)
  config, folder = pipeline.runs[name], place / name
  processes.from_first(partial(_forget_old_evaluation, config, folder))
  with validate.errors_of(name):
    run.train(concrete, str(folder), config)
  evaluates = _leaves_policy(config) and suite.tasks
  if follows := 'its evaluation' if evaluates else after:
    processes.stop_if_asked(
      f'{name} is finished, and the same command goes on with {follows}'
    )
  if evaluates:
    with validate.errors_of(name):
      suite.evaluate(concrete, folder)
      processes.from_first(partial(buckets.push, folder))
  with processes.agreed():  # If this one was made again.
    validate.check_sources(pipeline, place)


def _write_table(pipeline: PipelineConfig, place: Path):
  """Writes and prints the evaluations, if there are any."""
  if text := table(pipeline, place):
    _write(place / 'table.md', text + '\n')
    print(text)
    buckets.push(place / 'table.md')


def _forget_old_evaluation(config: RunConfig, folder: Path):
  """Removes the evaluation of a policy that is yet to be made again."""
  finished = stage_list.output(config, folder).exists()
  if not finished or changes.reopens(folder, config):
    (folder / validate.MEASURED).unlink(missing_ok=True)


def _write(path: Path, text: str):
  try:
    files.write_text(path, text)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error}') from error


def evaluations(pipeline: PipelineConfig) -> dict[str, tuple[str, ...]]:
  """Returns what each policy of a pipeline is measured on, by its run."""
  return {
    name: pipeline.evaluations
    for name, config in pipeline.runs.items()
    if _leaves_policy(config)
  }


def _leaves_policy(config: RunConfig) -> bool:
  return stage_list.leaves(config) is Kind.POLICY


class _EvaluationSuite:
  """Evaluates the policies of a pipeline on its tasks.

  It keeps its compiled sampler while the models are alike.

  Attributes:
    tasks: The tasks.
  """

  def __init__(self, tasks: Sequence[str]):
    self.tasks = tasks
    self._samplers: dict[str, tuple[build.Parts, Engine]] = {}

  def check(self, config: RunConfig, workdir: Path, finished: bool):
    """Refuses tasks on which the policy could not be evaluated."""
    for task in self._missing(workdir) if finished else self.tasks:
      self._evaluator(config, task)

  def evaluate(self, config: RunConfig, workdir: Path):
    """Evaluates the policy in a workdir on the tasks that are still missing."""
    missing = processes.from_first(lambda: self._missing(workdir))
    if not missing:
      return
    results = measured(workdir / validate.MEASURED)
    parts, _ = self._sampler(config)
    params = run.trained_params(config, parts, str(workdir))
    for task in missing:
      report = self._evaluator(config, task).run(
        params, jax.random.key(config.seed)
      )
      results |= {
        f'{task}/{key.removeprefix("eval/")}': value
        for key, value in report.metrics.items()
      }
    text = json.dumps(results, indent=1) + '\n'
    processes.from_first(lambda: _write(workdir / validate.MEASURED, text))

  def _missing(self, workdir: Path) -> list[str]:
    results = measured(workdir / validate.MEASURED)
    return [
      task
      for task in self.tasks
      if not any(_is_of(task, column) for column in results)
    ]

  def _evaluator(self, config: RunConfig, task: str) -> Evaluator:
    own = replace(
      config,
      {
        'data.task': task,
        'data.mixture': (),
        'data.path': '',
        'data.eval_path': '',
      },
    )
    return sampler.evaluator(own, *self._sampler(config))

  def _sampler(self, config: RunConfig) -> tuple[build.Parts, Engine]:
    # The sampler knows nothing of a step's sizes but how many rows it needs.
    config = replace(
      config,
      {'rl.prompts_per_step': 1, 'rl.group_size': 2, 'rl.oversample': 1.0},
    )
    data = config.data
    key = repr(
      (
        config.model,
        config.mesh,
        config.tokenizer,
        config.rollout,
        config.eval,
        config.rl.max_new_tokens,
        data.max_prompt_tokens,
        data.template,
        data.system,
        data.template_args,
        data.response_prefix,
        data.response_format,
      )
    )
    if key not in self._samplers:
      parts = build.parts(config)
      self._samplers = {key: (parts, sampler.engine(config, parts))}
    return self._samplers[key]


def chosen(pipeline: PipelineConfig, only: str, start: str) -> tuple[str, ...]:
  """Returns the stages to run.

  Raises:
    UserError: one of the two names no stage, or both are given.
  """
  names = pipeline.stages
  for name in filter(None, (only, start)):
    if name not in names:
      raise unknown('pipeline: stage', name, names)
  if only and start:
    raise UserError('pipeline: --only and --from exclude each other')
  if only:
    return (only,)
  return names[names.index(start) :] if start else names


def measured(record: Path) -> dict[str, float]:
  """Returns a stage's evaluation by task and metric; {} without a record.

  Raises:
    UserError: the record is broken.
  """
  try:
    results = json.loads(record.read_text())
    return {column: float(value) for column, value in results.items()}
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f'{record} is broken ({error}); remove it, and the stage is evaluated '
      'again'
    ) from error


def _is_of(task: str, column: str) -> bool:
  return column.startswith(f'{task}/')


# Metrics that are in evaluation.json alone.
_NOT_IN_TABLE = (
  'pass@1_stderr',
  'clipped_ratio',
  'unscorable',
  'unparsable',
  'self_correction',
)


def _in_table(column: str) -> bool:
  """Returns whether a metric is shown: of pass@k, pass@1 alone is."""
  name = column.rpartition('/')[2]
  return name not in _NOT_IN_TABLE and (
    name == 'pass@1' or not name.startswith('pass@')
  )


def table(pipeline: PipelineConfig, place: Path) -> str:
  """Returns the evaluation of every policy as a Markdown table."""
  rows = []
  for name in pipeline.stages:
    results = measured(place / name / validate.MEASURED)
    if any(
      _is_of(task, column)
      for task in pipeline.evaluations
      for column in results
    ):
      rows.append((name, results))
  if not rows:
    return ''
  columns = list(
    dict.fromkeys(
      column
      for task in pipeline.evaluations
      for _, results in rows
      for column in results
      if _is_of(task, column) and _in_table(column)
    )
  )
  lines = [
    '| stage | ' + ' | '.join(columns) + ' |',
    '|---' * (len(columns) + 1) + '|',
  ]
  for name, results in rows:
    shown = [f'{results[c]:.3f}' if c in results else '' for c in columns]
    lines.append(f'| {name} | ' + ' | '.join(shown) + ' |')
  return '\n'.join(lines)
