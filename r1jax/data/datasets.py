"""Sequences of prompts: endless synthetic ones, and validated rows of files."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from r1jax import hub, registry
from r1jax.data import readers
from r1jax.data.quarantine import Quarantine
from r1jax.data.sources import Source
from r1jax.data.splits import HELD_OUT
from r1jax.data.tasks.task import problem_at
from r1jax.data.text import conversation
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import Prompt

# Prompt.source of general data, in DeepSeek's sense: no rule verifies answers.
GENERAL = 'general'
ENDLESS = 1 << 31  # More problems than any run samples.
_MAX_CHARS = 100_000  # Maximum length of a text field.


class SyntheticPrompts(Sequence):
  """The prompts of one synthetic task."""

  def __init__(
    self,
    task: str,
    split: str,
    seed: int,
    template: PromptTemplate,
    length: int = ENDLESS,
  ):
    """Makes the sequence.

    Args:
      task: Name of a registered task.
      split: splits.TRAIN or splits.HELD_OUT.
      seed: Seed of the stream.
      template: Makes the prompts.
      length: Number of prompts.
    """
    registry.task.get(task)
    self._task, self._split, self._seed = task, split, seed
    self._template, self._length = template, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Prompt:
    problem = problem_at(self._task, self._split, self._seed, index)
    task = registry.task.get(self._task)
    return Prompt(
      id=f'{self._task}-{self._split}-{self._seed}-{index}',
      text=self._template.render(problem.question),
      question=problem.question,
      answer=task.gold_answer(problem),
      source=GENERAL if task.general else task.grader or self._task,
    )


class TemplatedPrompts(Sequence):
  """Prompts of files, rendered by a template when they are accessed."""

  def __init__(self, rows: Sequence[Prompt], template: PromptTemplate):
    self._rows, self._template = rows, template

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Prompt:
    row = self._rows[index]
    try:
      tools = conversation.parse_tools(row.fields.get('tools'))
      text = conversation.render(
        self._template, row.question, row.messages, tools
      )
    except (ValueError, UserError) as error:
      raise UserError(f'data: {row.where}: prompt {row.id}: {error}') from error
    return dataclasses.replace(row, text=text)


def read(
  source: Source,
  split: str,
  path: str = '',
  quarantine: Quarantine | None = None,
  gold_answer_problem: Callable[[str], str] = lambda answer: '',
) -> list[Prompt]:
  """Reads and validates the rows of one split of a dataset.

  Args:
    source: The dataset.
    split: splits.TRAIN or splits.HELD_OUT.
    path: Files with the same fields that replace the dataset's own; '' for
      none.
    quarantine: Takes malformed rows; without one, a malformed row is an error.
    gold_answer_problem: Returns why a grader cannot read a gold answer; '' if
      it can.

  Returns:
    Prompts without `text`, in the order of the files.

  Raises:
    UserError: a file is missing (the message says where to get it), or a row
      is malformed (the message names its file and line).
  """
  quarantine = quarantine or Quarantine()
  try:
    files = readers.files(path or source.path(split))
  except UserError as error:
    if path or split not in source.files:
      raise
    raise UserError(f'{error}; {_where_to_get(source, split)}') from error
  wanted = None if path else source.split_names.get(split)
  prompts: list[Prompt] = []
  seen: dict[str, str] = {}
  for row in readers.rows(files):
    try:
      form = _form(source, row.fields)
      if row.fields is not None:
        if not form.keep(row.fields):
          continue
        fields = form.adapt(row.fields)
        row = row._replace(fields=_completed(row, fields, form))
      fields = _checked(row, form.fields, seen)
      if wanted and fields.get('split') != wanted:
        continue
      prompt = _prompt(form, fields, row.where)
      if problem := gold_answer_problem(prompt.answer):
        raise ValueError(f'has a gold answer that {problem}')
    except ValueError as error:
      quarantine.drop(row.where, str(error))
    else:
      prompts.append(prompt)
  if not prompts and not quarantine.dropped:
    raise UserError(f'data: {files[0]} has no rows')
  return prompts


def _where_to_get(source: Source, split: str) -> str:
  """Returns what a person does who lacks the files of a dataset."""
  if not source.hub or split != HELD_OUT:
    return f'get it from {source.origin}, as rows of {", ".join(source.fields)}'
  place = hub.place_of(source.hub)
  include = f" --include='{place.path}'" if place.path else ''
  folder = os.path.join(
    os.environ.get('R1JAX_DATA') or '$R1JAX_DATA', source.path(split)
  )
  return (
    'get it from the hub by `hf download --repo-type=dataset '
    f'{place.repository}{include} --local-dir={folder}` ({source.origin}), or '
    f'set data.eval_path={source.hub}'
  )


def _completed(row: readers.Row, fields: dict, source: Source) -> dict:
  """Returns fields with what a row leaves open: its id, its question, a text.

  An id is the name of the file and the number of the row; the question of a
  conversation is its last message of a user; numbers are texts where texts are
  wanted.
  """
  made = dict(fields)
  if 'id' in source.fields and made.get('id') is None:
    made['id'] = '/'.join(row.where.split('/')[-2:])
  if made.get(source.question) is None and made.get('messages'):
    said = [m.content for m in source.messages(made) if m.role == 'user']
    made[source.question] = said[-1] if said else None
  for field in ('id', 'answer'):
    if source.fields.get(field) is str:
      made[field] = _as_text(made.get(field))
  return made


def _as_text(value: Any) -> Any:
  """Returns a number as its text, 145.0 as '145'; anything else as it is."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return str(value) if is_number else value


def _form(source: Source, fields: dict | None) -> Source:
  """Returns the dataset whose fields a row has.

  A row of another dataset that names the grader 'code' is read as one of the
  dataset 'code', so that its field `tests` is what a program must pass.
  """
  if fields and fields.get('grader') == 'code' and source.grader != 'code':
    return registry.dataset.get('code')
  return source


def _prompt(source: Source, fields: dict, where: str) -> Prompt:
  language = fields.get('language') or source.language
  if not isinstance(language, str):
    raise ValueError(f"needs a str 'language', got {language!r:.200}")
  messages = source.messages(fields)
  conversation.check_ends_open(messages)
  conversation.parse_tools(fields.get('tools'))
  return Prompt(
    id=fields['id'],
    text='',
    question=fields[source.question],
    answer=source.answer(fields),
    source=_grader(fields, source.grader),
    where=where,
    language=language,
    messages=messages,
    fields=_as_json(
      {k: v for k, v in fields.items() if k not in source.hidden}
    ),
  )


def _grader(fields: dict, default: str) -> str:
  """Returns the grader that a row names in its field 'grader', or the default."""
  grader = fields.get('grader') or default
  if grader == default:
    return default
  if not isinstance(grader, str) or grader not in registry.grader:
    raise ValueError(
      f"names the grader {grader!r:.100} in 'grader'; known are "
      + ', '.join(registry.grader)
    )
  return grader


def _as_json(value: Any) -> Any:
  """Returns a row's value as JSON; dates, bytes and such of Parquet as text."""
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  if isinstance(value, dict):
    return {str(name): _as_json(inner) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [_as_json(inner) for inner in value]
  return str(value)


def _checked(
  row: readers.Row, fields: Mapping[str, type], seen: dict[str, str]
) -> dict:
  """Validates a row and returns its fields.

  Args:
    row: The row of a file.
    fields: Required fields and their types; none may be empty.
    seen: The ids of earlier rows and their locations; the row's is added.

  Raises:
    ValueError: the row is malformed; the message says why.
  """
  if row.fields is None:
    raise ValueError(row.problem)
  for field, kind in fields.items():
    value = row.fields.get(field)
    # A bool is an int to Python, but no number; an int may stand for a float.
    valid = (
      isinstance(value, (int, float) if kind is float else kind)
      and type(value) is not bool
    )
    if not valid or value == [] or (kind is str and not str(value).strip()):
      raise ValueError(
        f'needs a non-empty {kind.__name__} {field!r}, got {value!r:.200}'
      )
  for field, value in row.fields.items():
    if isinstance(value, str) and (problem := _text_problem(value)):
      raise ValueError(f'has {problem} in {field!r}')
  if 'id' in fields:
    name = row.fields['id']
    if name in seen:
      raise ValueError(f'repeats the id {name!r} of {seen[name]}')
    seen[name] = row.where
  return row.fields


def _text_problem(text: str) -> str:
  """Returns what makes a text unusable; '' if nothing does."""
  if '\0' in text:
    return 'a NUL'
  if len(text) > _MAX_CHARS:
    return f'{len(text)} characters, more than {_MAX_CHARS},'
  if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
    return 'half a character (a lone surrogate)'
  return ''


def read_jsonl(path: str, fields: dict[str, type]) -> list[dict]:
  """Reads rows that are no prompts.

  Args:
    path: See readers.files.
    fields: Required fields and their types.

  Raises:
    UserError: a file is missing or empty, or a row is malformed; the message
      names the file, the line and the field.
  """
  checked_rows: list[dict] = []
  seen: dict[str, str] = {}
  for row in readers.rows(readers.files(path)):
    try:
      checked_rows.append(_checked(row, fields, seen))
    except ValueError as error:
      raise UserError(f'data: {row.where} {error}'[:400]) from error
  if not checked_rows:
    raise UserError(f'data: {path} has no rows')
  return checked_rows
