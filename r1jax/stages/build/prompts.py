"""From config.data to the prompts of a run: read, checked, ordered and mixed.

files → quarantine → decontamination → pass rates → template → mixture
"""

from collections.abc import Sequence
import dataclasses
import json
import logging
from pathlib import Path

from r1jax import buckets, registry
from r1jax.config.schema.data import DataConfig
from r1jax.config.schema.run import RunConfig
from r1jax.data import (
  batching,
  columns,
  curriculum,
  datasets,
  decontaminate,
  mixture,
  readers,
  splits,
)
from r1jax.data.quarantine import Quarantine
from r1jax.data.sources import Source
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError, unknown
from r1jax.graders import code_grader, math_grader, text_graders
from r1jax.records import Prompt

_PREFERENCE = 'preference'  # The grader of rows that only a model can score.
_CHECKED_PROMPTS = 256  # Prompts of an endless stream that are checked.
_log = logging.getLogger(__name__)


def prompts(
  config: RunConfig,
  template: PromptTemplate,
  tokenizer: Tokenizer,
  split: str,
  general: bool = True,
) -> Sequence[Prompt]:
  """Returns the prompts of a run.

  Args:
    config: The run.
    template: Makes their texts.
    tokenizer: Measures their lengths.
    split: splits.TRAIN for the training prompts, or splits.HELD_OUT for the
      first eval.num_problems held-out ones.
    general: Whether training prompts that no rule can verify are among them.

  Raises:
    UserError: a dataset is missing or has bad rows.
  """
  source = _PromptSource(config, template, tokenizer)
  if split == splits.HELD_OUT:
    return source.held_out()
  return source.training(general)


def prompt_files(
  config: RunConfig, evaluates: bool = True
) -> dict[str, list[Path]]:
  """Returns the files that the prompts of a run are read from, by key.

  Args:
    config: The run.
    evaluates: Whether held-out problems are read too.
  """
  data = config.data
  found = {
    'data.task': [
      file
      for name in mixture.parse(data.mixture or (data.task,))
      for file in _dataset_files(name, splits.TRAIN, training_path(data, name))
    ],
    'data.decontaminate': [
      file
      for name in data.decontaminate
      for file in _dataset_files(name, splits.HELD_OUT, '')
    ],
  }
  if data.pass_rates:
    found['data.pass_rates'] = [readers.resolve(data.pass_rates)]
  if evaluates:
    found['data.eval'] = _dataset_files(
      data.task, splits.HELD_OUT, data.eval_path
    )
  return found


def _dataset_files(name: str, split: str, path: str) -> list[Path]:
  if name in registry.task:  # It has no files, whatever `path` says.
    return []
  return readers.files(path or registry.dataset.get(name).path(split))


class _PromptSource:
  """Reads the prompts that a config names, in its template."""

  def __init__(
    self, config: RunConfig, template: PromptTemplate, tokenizer: Tokenizer
  ):
    self._data, self._seed = config.data, config.seed
    self._num_eval = config.eval.num_problems
    self._template, self._tokenizer = template, tokenizer

  def training(self, general: bool) -> Sequence[Prompt]:
    """Returns the prompts of config.data.task, or of the mixture."""
    data = self._data
    if not data.mixture and not data.sort_by_pass_rate:
      return self._source(data.task)
    weights = mixture.parse(data.mixture or (data.task,))
    if not general:
      weights = {
        name: weight for name, weight in weights.items() if not is_general(name)
      }
      if not weights:
        raise UserError(
          'data: mixture has general sources alone, but '
          'rl.general_prompts_after_steps needs others first'
        )
    parts = [self._source(name) for name in weights]
    endless = [isinstance(part, datasets.SyntheticPrompts) for part in parts]
    if any(endless) and len(parts) > 1 and None in weights.values():
      raise UserError(
        'data: mixture: a synthetic task has no size; give every source a '
        "weight, as in 'arithmetic:1'"
      )
    return mixture.Mixture(
      parts,
      mixture.proportions(
        [len(part) for part in parts],
        list(weights.values()),
        data.mixture_temperature,
      ),
      self._seed,
      [not data.sort_by_pass_rate and not e for e in endless],
    )

  def held_out(self) -> Sequence[Prompt]:
    """Returns the first eval.num_problems that config.data.task holds out."""
    name, count = self._data.task, self._num_eval
    if name in registry.task:
      stream = datasets.SyntheticPrompts(
        name, splits.HELD_OUT, 0, self._template, count
      )
      self._check(stream, count)
      return stream
    rows = _read(self._data, name, splits.HELD_OUT, self._data.eval_path)
    if len(rows) < count:
      raise UserError(
        f'eval: {name} has {len(rows)} held-out rows, fewer than '
        f'config.eval.num_problems = {count}'
      )
    _check_gold(rows[:count], Quarantine())
    first = datasets.TemplatedPrompts(rows[:count], self._template)
    self._check(first, count)
    return first

  def _source(self, name: str) -> Sequence[Prompt]:
    """Returns the training prompts of one dataset or task."""
    if name in registry.task:
      return self._synthetic(name)
    quarantine = Quarantine(self._data.max_bad_row_share)
    path = training_path(self._data, name)
    rows = _read(self._data, name, splits.TRAIN, path, quarantine)
    total = len(rows) + len(quarantine.dropped)
    rows = self._fitting(rows, quarantine)
    rows = _check_gold(rows, quarantine)
    _inform(quarantine.finish(name, total))
    if self._data.decontaminate:
      report = overlap(self._data, name, rows)
      _inform(decontaminate.summary(report))
      removed = {match['train_id'] for match in report['matches']}
      rows = [row for row in rows if row.id not in removed]
    if self._data.pass_rates:
      rows = self._within_pass_rates(name, rows)
    if not rows:
      raise UserError(f'data: no row of {name} is left to train on')
    return datasets.TemplatedPrompts(rows, self._template)

  def _synthetic(self, name: str) -> Sequence[Prompt]:
    if self._data.pass_rates or self._data.decontaminate:
      raise UserError(
        'data: pass_rates and decontaminate need a dataset, not the synthetic '
        f'task {name!r}'
      )
    task = registry.task.get(name)
    if not task.general:
      registry.grader.get(task.grader or name, f'data: {name}')
    stream = datasets.SyntheticPrompts(
      name, splits.TRAIN, self._seed, self._template
    )
    self._check(stream, _CHECKED_PROMPTS)
    return stream

  def _fitting(
    self, rows: list[Prompt], quarantine: Quarantine
  ) -> list[Prompt]:
    """Returns rows that the template takes and max_prompt_tokens holds."""
    templated, fitting = datasets.TemplatedPrompts(rows, self._template), []
    for index, row in enumerate(rows):
      try:
        batching.pad_prompts(
          [templated[index]], self._tokenizer, self._data.max_prompt_tokens
        )
      except UserError as error:
        if not self._data.max_bad_row_share:
          raise
        quarantine.drop(
          row.where, str(error).removeprefix(f'data: {row.where}: ')
        )
      else:
        fitting.append(row)
    return fitting

  def _within_pass_rates(self, name: str, rows: list[Prompt]) -> list[Prompt]:
    data = self._data
    rates = curriculum.read_pass_rates(data.pass_rates)
    kept = curriculum.filter_by_pass_rate(
      rows, rates, data.min_pass_rate, data.max_pass_rate
    )
    unknown_rows = sum(row.id not in rates for row in rows)
    _inform(
      f'data: {name}: {len(kept)} of {len(rows)} rows have a pass rate within '
      f'[{data.min_pass_rate}, {data.max_pass_rate}]; {unknown_rows} were not '
      'measured'
    )
    if data.sort_by_pass_rate:
      kept = curriculum.sort_by_pass_rate(kept, rates, self._seed)
    return kept

  def _check(self, stream: Sequence[Prompt], count: int):
    batching.check_prompts(
      (stream[i] for i in range(count)),
      self._tokenizer,
      self._data.max_prompt_tokens,
    )


def suite_rows(name: str, quarantine: Quarantine) -> list[Prompt]:
  """Returns all held-out rows of a dataset that can be read and graded.

  Args:
    name: A registered dataset.
    quarantine: Takes the other rows.

  Raises:
    UserError: the dataset is missing, or has no rule that grades it.
  """
  if is_general(name):
    raise UserError(f'--suite: {name} has no rule that grades its answers')
  rows = _read(DataConfig(), name, splits.HELD_OUT, '', quarantine)
  return _check_gold(rows, quarantine)


def check(data: DataConfig):
  """Refuses a config.data that names a source that is not there."""
  known = [*registry.dataset, *registry.task]
  for name in (data.task, *mixture.parse(data.mixture), *data.decontaminate):
    if name not in known:
      raise unknown('data: task', name, known)
  for name in data.decontaminate:
    registry.dataset.get(name).path(splits.HELD_OUT)


def training_path(data: DataConfig, name: str) -> str:
  """Returns data.path for data.task, whose files it replaces, else ''."""
  return data.path if name == data.task and not data.mixture else ''


def _source(data: DataConfig, name: str) -> Source:
  """Returns a dataset, that of data.task with the columns of its files."""
  source = registry.dataset.get(name)
  if name != data.task:
    return source
  return columns.renamed(source, data.columns, data.answer_in)


def overlap(data: DataConfig, name: str, rows: Sequence[Prompt]) -> dict:
  """Returns the report of decontaminating the rows of one training set."""
  evaluations = {
    other: datasets.read(registry.dataset.get(other), splits.HELD_OUT)
    for other in data.decontaminate
  }
  return decontaminate.report(
    name, len(rows), decontaminate.find_matches(rows, evaluations)
  )


def show_overlap(config: RunConfig, out: str):
  """Prints what decontamination would remove; all of it goes to the file."""
  data = config.data
  check(data)
  if not data.decontaminate:
    raise UserError(
      'data: name the evaluation sets in --config.data.decontaminate'
    )
  reports = []
  for name in mixture.parse(data.mixture or (data.task,)):
    rows = datasets.read(
      _source(data, name),
      splits.TRAIN,
      training_path(data, name),
      Quarantine(data.max_bad_row_share),
    )
    reports.append(overlap(data, name, rows))
    print(decontaminate.summary(reports[-1]))
  if out:
    try:
      buckets.local(out).write_text(
        json.dumps(reports, indent=1, ensure_ascii=False) + '\n'
      )
    except OSError as error:
      raise UserError(f'decontaminate: cannot write {out}: {error}') from error


def _read(
  data: DataConfig,
  name: str,
  split: str,
  path: str,
  quarantine: Quarantine | None = None,
) -> list[Prompt]:
  """Returns the rows of a dataset that a registered grader can score."""
  source = _source(data, name)
  rows = datasets.read(source, split, path, quarantine)
  if is_general(name):
    return [dataclasses.replace(row, source=datasets.GENERAL) for row in rows]
  registry.grader.get(source.grader, f'data: {name}')
  if any(row.source == 'code' for row in rows):
    sandbox = code_grader.open_sandbox(data.code_packages)
    _inform(f'rewards: programs run in the sandbox {sandbox.tier}')
  return rows


def _check_gold(rows: list[Prompt], quarantine: Quarantine) -> list[Prompt]:
  """Returns the rows whose gold answer their grader can read."""
  bad = math_grader.unparsable_golds(
    row for row in rows if row.source == 'math'
  )
  problems = dict.fromkeys((row.id for row in bad), 'the grader cannot read')
  for row in rows:
    if problem := text_graders.gold_problem(row.source, row.answer):
      problems[row.id] = (
        f'does not suit the grader {row.source!r}: it {problem}'
      )
  for row in rows:
    if row.id in problems:
      quarantine.drop(
        row.where or row.id,
        f'has a gold answer that {problems[row.id]}: {row.answer[:100]!r}',
      )
  return [row for row in rows if row.id not in problems]


def is_general(name: str) -> bool:
  """Returns whether no rule can verify the answers of a task or dataset."""
  if name in registry.task:
    return registry.task.get(name).general
  return registry.dataset.get(name).grader == _PREFERENCE


def _inform(text: str):
  if text:
    _log.info('%s', text)
