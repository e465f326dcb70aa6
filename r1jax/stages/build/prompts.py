"""From config.data to the prompts of a run: read, checked, cut, ordered, mixed.

files → quarantine → decontamination → pass rates → template → mixture
"""

from collections.abc import Sequence
import json
from pathlib import Path

import ml_collections

from r1jax.data import (
  batching,
  curriculum,
  datasets,
  decontaminate,
  mixture,
  sources,
  tasks,
)
from r1jax.data.quarantine import Quarantine
from r1jax.data.text.template import PromptTemplate
from r1jax.data.text.tokenizer import Tokenizer
from r1jax.errors import UserError, unknown
from r1jax.graders import code_grader, dispatch, math_grader
from r1jax.records import Prompt


class Questions:
  """The prompts that a config asks for, in its template."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    template: PromptTemplate,
    tokenizer: Tokenizer,
  ):
    self._data, self._seed = config.data, config.seed
    self._num_eval = config.eval.num_problems
    self._template, self._tokenizer = template, tokenizer

  def training(self, general: bool = True) -> Sequence[Prompt]:
    """Of config.data.task, or of the mixture where there is one.

    Args:
      general: Whether sources that no rule can verify are part of it.
    """
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
          'rl.general_prompts_after_steps asks for others first'
        )
    parts = [self._source(name) for name in weights]
    endless = [isinstance(part, datasets.SyntheticPrompts) for part in parts]
    if any(endless) and len(parts) > 1 and None in weights.values():
      raise UserError(
        'data: mixture: a synthetic task has no size; give every '
        "source a weight, as in 'arithmetic:1'"
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
    """The first config.eval.num_problems that config.data.task holds out."""
    name, wanted = self._data.task, self._num_eval
    if name in tasks.TASKS:
      stream = datasets.SyntheticPrompts(
        name, tasks.HELD_OUT, 0, self._template, wanted
      )
      self._check(stream, wanted)
      return stream
    rows = _read(name, tasks.HELD_OUT, self._data.eval_path)
    if len(rows) < wanted:
      raise UserError(
        f'eval: {name} has {len(rows)} held-out rows, fewer than '
        f'config.eval.num_problems = {wanted}'
      )
    _check_gold(rows[:wanted], Quarantine())
    chosen = datasets.TemplatedPrompts(rows[:wanted], self._template)
    self._check(chosen, wanted)
    return chosen

  def _source(self, name: str) -> Sequence[Prompt]:
    """The training prompts of one dataset or task."""
    if name in tasks.TASKS:
      if self._data.pass_rates or self._data.decontaminate:
        raise UserError(
          f'data: pass_rates and decontaminate need a dataset, '
          f'not the synthetic task {name!r}'
        )
      stream = datasets.SyntheticPrompts(
        name, tasks.TRAIN, self._seed, self._template
      )
      self._check(stream, _CHECKED)
      return stream
    quarantine = Quarantine(self._data.max_bad_row_share)
    rows = _read(name, tasks.TRAIN, training_path(self._data, name), quarantine)
    total = len(rows) + len(quarantine.dropped)
    rows = self._fitting(rows, quarantine)
    rows = _check_gold(rows, quarantine)
    _tell(quarantine.finish(name, total))
    if self._data.decontaminate:
      told = overlap(self._data, name, rows)
      _tell(decontaminate.summary(told))
      removed = {match['train_id'] for match in told['matches']}
      rows = [row for row in rows if row.id not in removed]
    if self._data.pass_rates:
      rows = self._measured(name, rows)
    if not rows:
      raise UserError(f'data: no row of {name} is left to train on')
    return datasets.TemplatedPrompts(rows, self._template)

  def _fitting(self, rows: list[Prompt], quarantine: Quarantine):
    """Those that the template takes and that fit into max_prompt_tokens."""
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

  def _measured(self, name: str, rows: list[Prompt]) -> list[Prompt]:
    data = self._data
    rates = curriculum.read_pass_rates(data.pass_rates)
    kept = curriculum.filter_by_pass_rate(
      rows, rates, data.min_pass_rate, data.max_pass_rate
    )
    unknown_rows = sum(row.id not in rates for row in rows)
    _tell(
      f'data: {name}: {len(kept)} of {len(rows)} rows have a pass rate '
      f'within [{data.min_pass_rate}, {data.max_pass_rate}]; '
      f'{unknown_rows} were not measured'
    )
    if data.sort_by_pass_rate:
      kept = curriculum.sort_by_pass_rate(kept, rates, self._seed)
    return kept

  def _check(self, prompts: Sequence[Prompt], count: int):
    batching.check_prompts(
      (prompts[i] for i in range(count)),
      self._tokenizer,
      self._data.max_prompt_tokens,
    )


def check(data: ml_collections.ConfigDict):
  """What the keys of config.data need of one another."""
  names = [data.task, *mixture.parse(data.mixture), *data.decontaminate]
  for name in names:
    if name not in sources.SOURCES and name not in tasks.TASKS:
      raise unknown('data: task', name, [*sources.SOURCES, *tasks.TASKS])
  for name in data.decontaminate:
    sources.get(name).path(tasks.HELD_OUT)
  Quarantine(data.max_bad_row_share)
  if data.mixture and data.path:
    raise UserError(
      'data: path stands for the files of data.task, which a '
      'mixture does not read; leave one of them empty'
    )
  if data.sort_by_pass_rate and not data.pass_rates:
    raise UserError('data: sort_by_pass_rate needs data.pass_rates')
  if not 0 <= data.min_pass_rate <= data.max_pass_rate <= 1:
    raise UserError(
      'data: min_pass_rate and max_pass_rate need 0 ≤ low ≤ high ≤ 1, got '
      f'{data.min_pass_rate} and {data.max_pass_rate}'
    )


def training_path(data: ml_collections.ConfigDict, name: str) -> str:
  """data.path stands for the files of data.task alone."""
  return data.path if name == data.task and not data.mixture else ''


def overlap(
  data: ml_collections.ConfigDict, name: str, rows: Sequence[Prompt]
) -> dict:
  """The report of decontaminating the rows of one training set."""
  evaluations = {
    other: datasets.read(sources.get(other), tasks.HELD_OUT)
    for other in data.decontaminate
  }
  return decontaminate.report(
    name, len(rows), decontaminate.find_matches(rows, evaluations)
  )


def show_overlap(config: ml_collections.ConfigDict, out: str):
  """Prints what decontamination would remove; all of it goes to the file."""
  data = config.data
  check(data)
  if not data.decontaminate:
    raise UserError(
      'data: name the evaluation sets in --config.data.decontaminate'
    )
  told = []
  for name in mixture.parse(data.mixture or (data.task,)):
    rows = datasets.read(
      sources.get(name),
      tasks.TRAIN,
      training_path(data, name),
      Quarantine(data.max_bad_row_share),
    )
    told.append(overlap(data, name, rows))
    print(decontaminate.summary(told[-1]))
  if out:
    try:
      Path(out).expanduser().write_text(
        json.dumps(told, indent=1, ensure_ascii=False) + '\n'
      )
    except OSError as error:
      raise UserError(f'decontaminate: cannot write {out}: {error}') from error


def _read(
  name: str, split: str, path: str, quarantine: Quarantine | None = None
) -> list[Prompt]:
  """The rows of a dataset that a grader of ours can score."""
  source = sources.get(name)
  if is_general(name):
    return [
      row.replace(source=datasets.GENERAL)
      for row in datasets.read(source, split, path, quarantine)
    ]
  if source.grader not in dispatch.GRADERS:
    raise UserError(
      f'data: {name} has answers for a grader {source.grader!r}, '
      f'which is not one of {sorted(dispatch.GRADERS)}'
    )
  if source.grader == 'code':
    print(f'rewards: programs run in the sandbox {code_grader.sandbox().tier}')
  return datasets.read(source, split, path, quarantine)


def _check_gold(rows: list[Prompt], quarantine: Quarantine) -> list[Prompt]:
  """Those whose gold answer their grader can read."""
  bad = math_grader.unparsable_golds(
    row for row in rows if row.source == 'math'
  )
  for row in bad:
    quarantine.drop(
      row.where or row.id,
      f'has a gold answer that the grader cannot read: {row.answer[:100]!r}',
    )
  dropped = {row.id for row in bad}
  return [row for row in rows if row.id not in dropped]


def is_general(name: str) -> bool:
  """Whether no rule can verify the answers of a task or dataset."""
  if name in tasks.TASKS:
    return tasks.get(name).general
  return sources.get(name).grader == _PREFERENCE


_PREFERENCE = 'preference'  # The grader of rows that only a model can judge.


def _tell(text: str):
  if text:
    print(text)


_CHECKED = 256  # Of an endless stream.
