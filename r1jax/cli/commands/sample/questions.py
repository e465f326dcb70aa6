"""Reads the questions of `r1jax sample`."""

from collections.abc import Iterator
from typing import NamedTuple, TextIO

from r1jax.errors import UserError


class Question(NamedTuple):
  """One question to complete.

  Attributes:
    text: The question.
    name: Its name in error messages, such as 'questions.txt:3'.
  """

  text: str
  name: str


def from_flags(prompts: list[str], path: str) -> list[Question]:
  """Returns the questions of --prompt flags, then those of a file.

  Args:
    prompts: Values of --prompt.
    path: Value of --prompts, a file with one question a line; '' for none.

  Raises:
    UserError: The file cannot be read, or is empty.
  """
  questions = [Question(prompt, repr(prompt)) for prompt in prompts]
  if not path:
    return questions
  try:
    with open(path, encoding='utf-8') as file:
      return questions + from_lines(file, path)
  except OSError as error:
    raise UserError(f'sample: cannot read {path}: {error}') from error


def from_lines(file: TextIO, name: str) -> list[Question]:
  """Returns one question for each line of a text.

  Args:
    file: The text.
    name: Its name in error messages.

  Raises:
    UserError: It is empty, or not text.
  """
  try:
    lines = [line.rstrip('\n') for line in file]
    if lines:
      lines[0] = lines[0].removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    raise UserError(f'sample: cannot read {name}: {error}') from error
  if not lines:
    raise UserError(f'sample: {name} holds no question')
  return [
    Question(line, f'{name}:{number}') for number, line in enumerate(lines, 1)
  ]


def typed() -> Iterator[Question]:
  """Yields the lines that a user types, until the end of input."""
  while True:
    try:
      line = input('> ').strip()
    except EOFError:
      print()
      return
    if line:
      yield Question(line, repr(line))
