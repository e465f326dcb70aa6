"""Rows of anybody's files as rows of a dataset: columns, answers, choices.

{'problem': 'Add 2 and 3.', 'solution': '2 + 3 = 5\n#### 5'}
  columns = {'question': 'problem', 'answer': 'solution'}, answer_in = 'hashes'
→ {'question': 'Add 2 and 3.', 'answer': '5', …}
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
import string
from typing import Any

from r1jax.data.sources import Source
from r1jax.data.text import final_answer

# Fields that say how a row is read; columns of these names may mean other things.
_MEANINGFUL = ('messages', 'tools', 'grader', 'language', 'split')
_LETTERED = re.compile(r'\(?A\s*[).:]')  # Options that say their letters.


def renamed(
  source: Source, columns: Mapping[str, str], answer_in: str = 'whole'
) -> Source:
  """Returns a dataset that reads rows with other columns.

  Args:
    source: The dataset.
    columns: The column of each field; or a text with columns in braces, which
      are filled in: '{Body} {Question}'. Fields that say how a row is read, such
      as `messages` and `grader`, are taken from columns that are named here
      alone. The field `choices` has the options of a multiple-choice question:
      they are appended to the question, and the answer becomes the letter of
      the right one, whether the row gives its letter, its number from 0, or
      its text.
    answer_in: The answer's place in its field: the 'whole' of it, behind the
      last '####' ('hashes'), or in the last \\boxed{} ('boxed').
  """
  if not columns and answer_in == 'whole':
    return source

  def adapt(row: dict) -> dict:
    fields = taken(row, columns)
    if columns.get('choices'):
      fields |= _multiple_choice(fields)
    if answer_in != 'whole':
      fields['answer'] = _found(str(fields.get('answer')), answer_in)
    return source.adapt(fields)

  return dataclasses.replace(source, adapt=adapt)


def taken(row: dict, columns: Mapping[str, str]) -> dict:
  """Returns a row with fields of other columns; see `renamed`.

  Raises:
    ValueError: the row has no such column; the message lists those that it has.
  """
  fields = {name: row[name] for name in row if name not in _MEANINGFUL}
  return fields | {name: _value(row, columns[name]) for name in columns}


def _value(row: dict, column: str) -> Any:
  """Returns the value of a column, or a text in which columns are filled in."""
  if '{' not in column:
    return _cell(row, column)
  names = [name for _, name, _, _ in string.Formatter().parse(column) if name]
  return column.format_map({name: _cell(row, name) for name in names})


def _cell(row: dict, column: str) -> Any:
  if column not in row:
    raise ValueError(
      f'has no column {column!r}; it has {", ".join(map(str, row))}'[:300]
    )
  return row[column]


def _multiple_choice(fields: dict) -> dict[str, str]:
  """Returns question, answer and grader of a row with `choices`."""
  options = fields['choices']
  if isinstance(options, dict):  # {'text': […], 'label': […]}
    options = options.get('text')
  if not isinstance(options, Sequence) or not 2 <= len(options) <= 26:
    raise ValueError(f'needs a list of 2 to 26 choices, got {options!r:.200}')
  options, letters = list(map(str, options)), string.ascii_uppercase
  shown = options
  if not _LETTERED.match(options[0]):
    shown = [f'{letter}) {each}' for letter, each in zip(letters, options)]
  return {
    'question': '\n'.join([str(fields.get('question', '')), *shown]),
    'answer': _letter(fields.get('answer'), options),
    'grader': fields.get('grader') or 'choice',
  }


def _letter(answer: Any, options: list[str]) -> str:
  """Returns the letter of the right one of the options.

  Raises:
    ValueError: the answer is none of them.
  """
  letters = string.ascii_uppercase[: len(options)]
  if type(answer) is int and 0 <= answer < len(options):
    return letters[answer]
  text = str(answer).strip()
  if text in options:
    return letters[options.index(text)]
  if len(text) == 1 and text.upper() in letters:
    return text.upper()
  raise ValueError(
    f'has the answer {answer!r:.100}, which is no letter, number or text of '
    f'its {len(options)} choices'
  )


def _found(answer: str, place: str) -> str:
  """Returns the answer that a solution ends in.

  Raises:
    ValueError: there is none.
  """
  if place == 'hashes':
    _, mark, found = answer.rpartition('####')
    if mark and found.strip():
      return found.strip()
    raise ValueError(f"has no '#### ANSWER' in {answer[-100:]!r}")
  boxed = final_answer.boxed(answer)
  if boxed is None:
    raise ValueError(f'has no \\boxed{{}} in {answer[-100:]!r}')
  return final_answer.unboxed(boxed)
