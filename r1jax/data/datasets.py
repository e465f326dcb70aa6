"""Prompts by index: endless synthetic ones, or the rows of a JSONL file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from r1jax.data import tasks
from r1jax.data.template import Template
from r1jax.errors import UserError
from r1jax.records import Prompt

ENDLESS = 1 << 31  # More problems than any run draws.


class SyntheticPrompts(Sequence):
  """An endless stream of one task's problems."""

  def __init__(self, task: str, split: str, seed: int, template: Template,
               length: int = ENDLESS):
    tasks.get(task)
    self._task, self._split, self._seed = task, split, seed
    self._template, self._length = template, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Prompt:
    made = tasks.problem(self._task, self._split, self._seed, index)
    answer = made.answer
    if self._task == 'countdown':
      answer = countdown_answer(made.numbers, int(made.answer))
    return Prompt(
        id=f'{self._task}-{self._split}-{self._seed}-{index}',
        text=self._template.render(made.question), question=made.question,
        answer=answer, source=self._task)


class FilePrompts(Sequence):
  """The rows of a JSONL file, all read and checked at start-up.

  A row has an id and a question; and an answer (grader 'math'), or nums and
  target (grader 'countdown').
  """

  def __init__(self, path: str, grader: str, template: Template,
               limit: int | None = None):
    self._template, self._grader = template, grader
    self._rows = read_jsonl(path, _FIELDS[grader])[:limit]
    self._file = resolve(path)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Prompt:
    row = self._rows[index]
    if self._grader == 'countdown':
      answer = countdown_answer(row['nums'], row['target'])
    else:
      answer = row['answer']
    return Prompt(
        id=row['id'], text=self._template.render(row['question']),
        question=row['question'], answer=answer, source=self._grader,
        where=f'{self._file}:{index + 1}')  # Every line is a row.


_FIELDS = {
    'math': {'id': str, 'question': str, 'answer': str},
    'countdown': {'id': str, 'question': str, 'nums': list, 'target': int},
}


def countdown_answer(numbers, target: int) -> str:
  """The gold answer that the countdown grader reads."""
  return json.dumps({'numbers': [int(n) for n in numbers], 'target': target})


def read_jsonl(path: str, fields: dict[str, type]) -> list[dict]:
  """Reads every row.

  Raises:
    UserError: naming the file and, for a malformed row, the line and field.
  """
  file = resolve(path)
  if not path or not file.is_file():
    raise UserError(f'data: {path!r} is not a file; set --config.data.path and '
                    '--config.data.eval_path')
  rows, first_line = [], {}
  with open(file, 'rb') as lines:
    for number, line in enumerate(lines, 1):
      try:
        row = json.loads(line.decode('utf-8'))
      except ValueError as error:  # Of the encoding, or of the JSON.
        raise UserError(
            f'data: {file}:{number} is not JSON: {error}') from error
      if not isinstance(row, dict):
        raise UserError(f'data: {file}:{number} is not a JSON object')
      for field, kind in fields.items():
        if not isinstance(row.get(field), kind) or row[field] in ('', []):
          raise UserError(
              f'data: {file}:{number} needs a non-empty {kind.__name__} '
              f'{field!r}, got {row.get(field)!r}'[:300])
      if 'nums' in fields and not all(type(n) is int for n in row['nums']):
        raise UserError(f"data: {file}:{number} needs integers in 'nums', got "
                        f"{row['nums']!r}"[:300])
      name = row.get('id', number)
      if name in first_line:
        raise UserError(f'data: {file}:{number} repeats the id {name!r} of '
                        f'line {first_line[name]}')
      first_line[name] = number
      rows.append(row)
  if not rows:
    raise UserError(f'data: {file} has no rows')
  return rows


def resolve(path: str) -> Path:
  """Finds a data file or folder: as given, or under $R1JAX_DATA."""
  root = os.environ.get('R1JAX_DATA', '')
  for place in (Path(path).expanduser(), Path(root) / path):
    if place.exists():
      return place
  raise UserError(
      f'data: no {path}' + (f', nor in R1JAX_DATA={root}' if root else
                            '; set R1JAX_DATA to the folder that holds it'))
