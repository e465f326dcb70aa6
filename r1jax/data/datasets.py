"""Prompts by index: endless synthetic ones, or the checked rows of files."""

from collections.abc import Callable, Sequence

from r1jax.data import readers, tasks
from r1jax.data.quarantine import Quarantine
from r1jax.data.sources import Source, countdown_answer
from r1jax.data.text.template import PromptTemplate
from r1jax.errors import UserError
from r1jax.records import Prompt

GENERAL = 'general'  # Prompt.source of rows that no rule can verify.
ENDLESS = 1 << 31  # More problems than any run draws.
_MAX_CHARS = 100_000  # Of a field: what is longer is a broken row.


class SyntheticPrompts(Sequence):
  """An endless stream of one task's problems."""

  def __init__(
    self,
    task: str,
    split: str,
    seed: int,
    template: PromptTemplate,
    length: int = ENDLESS,
  ):
    tasks.get(task)
    self._task, self._split, self._seed = task, split, seed
    self._template, self._length = template, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Prompt:
    made = tasks.problem_at(self._task, self._split, self._seed, index)
    answer = made.answer
    if self._task == 'countdown':
      answer = countdown_answer(made.numbers, int(made.answer))
    return Prompt(
      id=f'{self._task}-{self._split}-{self._seed}-{index}',
      text=self._template.render(made.question),
      question=made.question,
      answer=answer,
      source=GENERAL if tasks.get(self._task).general else self._task,
    )


class TemplatedPrompts(Sequence):
  """Rows of files, put into a template one by one as they are asked for."""

  def __init__(self, rows: Sequence[Prompt], template: PromptTemplate):
    self._rows, self._template = rows, template

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Prompt:
    row = self._rows[index]
    try:
      text = self._template.render(row.question, row.messages)
    except UserError as error:
      raise UserError(f'data: {row.where}: prompt {row.id}: {error}') from error
    return row.replace(text=text)


def read(
  source: Source,
  split: str,
  path: str = '',
  quarantine: Quarantine | None = None,
  gold_answer_problem: Callable[[str], str] = lambda answer: '',
) -> list[Prompt]:
  """Reads and checks every row of a dataset's split.

  Args:
    source: Says what a row holds.
    split: Of `tasks`.
    path: Other files with the same fields, instead of the dataset's own.
    quarantine: Where bad rows go; without one, a bad row is an error.
    gold_answer_problem: Why a grader could not read a gold answer; '' if it can.

  Returns:
    Prompts without `text`, in the order of the files.

  Raises:
    UserError: a missing file, with a hint where to get it; or a row, by file
      and line.
  """
  quarantine = quarantine or Quarantine()
  try:
    files = readers.files(path or source.path(split))
  except UserError as error:
    if path or split not in source.files:
      raise
    raise UserError(
      f'{error}; get it from {source.origin}, as rows of '
      f'{", ".join(source.fields)}'
    ) from error
  wanted = None if path else source.split_names.get(split)
  prompts, seen = [], {}
  for row in readers.rows(files):
    try:
      fields = _checked(row, source.fields, seen)
      if wanted and fields['split'] != wanted:
        continue
      prompt = _prompt(source, fields, row.where)
      if problem := gold_answer_problem(prompt.answer):
        raise ValueError(f'has a gold answer that {problem}')
    except ValueError as error:
      quarantine.drop(row.where, str(error))
    else:
      prompts.append(prompt)
  if not prompts and not quarantine.dropped:
    raise UserError(f'data: {files[0]} has no rows')
  return prompts


def _prompt(source: Source, fields: dict, where: str) -> Prompt:
  language = fields.get('language') or source.language
  if not isinstance(language, str):
    raise ValueError(f"needs a str 'language', got {language!r:.200}")
  return Prompt(
    id=fields['id'],
    text='',
    question=fields[source.question],
    answer=source.answer(fields),
    source=source.grader,
    where=where,
    language=language,
    messages=source.messages(fields),
  )


def _checked(
  row: readers.Row, fields: dict[str, type], seen: dict[str, str]
) -> dict:
  """The fields of a row.

  Args:
    row: As it was read.
    fields: What it must have, none of it empty.
    seen: Ids of earlier rows, and where they are; takes this one's.

  Raises:
    ValueError: what is wrong with it.
  """
  if row.fields is None:
    raise ValueError(row.problem)
  for field, kind in fields.items():
    value = row.fields.get(field)
    # A bool is an int to Python, but no target; an int is as good as a float.
    right = (
      isinstance(value, (int, float) if kind is float else kind)
      and type(value) is not bool
    )
    if not right or value == [] or (kind is str and not value.strip()):
      raise ValueError(
        f'needs a non-empty {kind.__name__} {field!r}, got {value!r:.200}'
      )
  for field, value in row.fields.items():
    if isinstance(value, str) and (problem := _poison(value)):
      raise ValueError(f'has {problem} in {field!r}')
  if 'id' in fields:
    name = row.fields['id']
    if name in seen:
      raise ValueError(f'repeats the id {name!r} of {seen[name]}')
    seen[name] = row.where
  return row.fields


def _poison(text: str) -> str:
  if '\0' in text:
    return 'a NUL'
  if len(text) > _MAX_CHARS:
    return f'{len(text)} characters, more than {_MAX_CHARS},'
  if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
    return 'half a character (a lone surrogate)'
  return ''


def read_jsonl(path: str, fields: dict[str, type]) -> list[dict]:
  """Reads rows that are no prompts; every one must have the fields.

  Raises:
    UserError: naming the file and, for a malformed row, the line and field.
  """
  found, seen = [], {}
  for row in readers.rows(readers.files(path)):
    try:
      found.append(_checked(row, fields, seen))
    except ValueError as error:
      raise UserError(f'data: {row.where} {error}'[:400]) from error
  if not found:
    raise UserError(f'data: {path} has no rows')
  return found
