"""Reads what a sweep varies: grids of keys, seeds, and the names of its runs.

  --grid rl.group_size=4,8            two values of one key
  --grid 'data.mixture=("gsm8k","math"),("gsm8k",)'
                                      brackets keep their commas
  --grid 'data.system="Hello, you",Hi'
                                      so do quotes, which are not passed on; a
                                      doubled quote within stands for one
  --grid 'rl.kl_coef,rl.beta=(0,1),(1,0)'
                                      two keys that change together
  --seeds=3   --seeds=0,1,5   --seeds=7,
                                      seeds 0 to 2; these three; this one

A value is the text that `--config.KEY=` takes. A grid point is one value for
each key; the grid is the product of all --grid flags, the last one fastest.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import re
from typing import Any

from r1jax import files
from r1jax.errors import UserError, unknown

_CLOSING = {'(': ')', '[': ']', '{': '}'}
_QUOTES = '"\''
_KEY = re.compile(r'\w+(\.\w+)*')
_MAX_NAME = 40  # Characters of a value in the name of a folder.
_MAX_FOLDER = 200  # File systems allow 255 bytes.


@dataclasses.dataclass(frozen=True)
class Axis:
  """One --grid flag: keys that change together, and their values.

  Attributes:
    keys: Dotted keys of the config.
    values: Texts of the values, one tuple as long as `keys` for each.
  """

  keys: tuple[str, ...]
  values: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Point:
  """A grid point: one combination of values.

  Attributes:
    name: The name of its folder, such as 'group_size=4,kl_coef=0.001'.
    values: Text of each value by dotted key; {} where nothing is varied.
  """

  name: str
  values: Mapping[str, str]

  def overrides(self) -> list[str]:
    """Returns the arguments that set its values."""
    return [f'--config.{key}={value}' for key, value in self.values.items()]


def split(text: str) -> list[str]:
  """Splits a text at its commas, except in quotes and brackets.

  Quotes around a whole item are removed, and spaces around an item too:

    'a, "b, c", ("d","e")'  →  ['a', 'b, c', '("d","e")']

  Raises:
    UserError: A quote or bracket has no end, or an item is empty.
  """
  items, at = [], 0
  while at <= len(text):
    item, at = _item(text, at)
    items.append(item)
  return items


def _item(text: str, at: int) -> tuple[str, int]:
  """Returns the item that begins at an index, and where the next one begins."""
  start = at + len(text[at:]) - len(text[at:].lstrip(' '))
  if start < len(text) and text[start] in _QUOTES:
    return _quoted(text, start)
  closing: list[str] = []
  end = start
  while end < len(text) and (closing or text[end] != ','):
    char = text[end]
    if closing and char in _QUOTES:
      end = _end_of_string(text, end)
    elif char in _CLOSING:
      closing.append(_CLOSING[char])
    elif closing and char == closing[-1]:
      closing.pop()
    end += 1
  if closing:
    raise UserError(
      f'{text}: a bracket has no end; put a value that has one in quotes'
    )
  item = text[start:end].rstrip(' ')
  if not item:
    raise UserError('a value is empty; write "" for an empty text')
  return item, end + 1


def _quoted(text: str, start: int) -> tuple[str, int]:
  """Returns an item in quotes, without them, and where the next one begins."""
  quote = text[start]
  match = re.compile(f'{quote}((?:[^{quote}]|{quote}{quote})*){quote} *').match(
    text, start
  )
  if match is None or (match.end() < len(text) and text[match.end()] != ','):
    raise UserError(
      f'{text}: a value in quotes must end with its quote, before a comma; '
      'double a quote that is in it'
    )
  return match[1].replace(2 * quote, quote), match.end() + 1


def _end_of_string(text: str, start: int) -> int:
  """Returns the index of the quote that ends a Python string in brackets."""
  end = start + 1
  while end < len(text) and text[end] != text[start]:
    end += 2 if text[end] == '\\' else 1
  if end >= len(text):
    raise UserError(f'{text}: a quote has no end')
  return end


def parse_axis(text: str) -> Axis:
  """Reads one --grid flag.

  Raises:
    UserError: It has no key or no values, or not as many values as keys.
  """
  names, equals, rest = text.partition('=')
  keys = tuple(
    name.strip().removeprefix('config.') for name in names.split(',')
  )
  wrong = [key for key in keys if not _KEY.fullmatch(key)]
  if wrong or not equals:
    raise UserError(
      f'--grid {text}: give KEY=VALUE,VALUE, such as rl.group_size=4,8'
    )
  if not rest.strip():
    raise UserError(f'--grid {text}: {names} has no values')
  try:
    items = split(rest)
    if len(keys) == 1:
      return Axis(keys, tuple((item,) for item in items))
    values = tuple(tuple(split(_inside(item))) for item in items)
  except UserError as error:
    raise UserError(f'--grid {names}: {error}') from error
  for item, value in zip(items, values):
    if len(value) != len(keys):
      raise UserError(
        f'--grid {names}: {item} has {len(value)} values for {len(keys)} keys'
      )
  return Axis(keys, values)


def _inside(item: str) -> str:
  """Returns the text in the brackets of the values of several keys."""
  if not (item.startswith('(') and item.endswith(')')):
    raise UserError(f'{item}: several keys take values in brackets, (1,2)')
  return item[1:-1]


def points(axes: Sequence[Axis], name: str) -> tuple[Point, ...]:
  """Returns the grid points of some axes, the last axis fastest.

  Args:
    axes: The axes; without any there is one point, the config as it is.
    name: The name of that one point.

  Raises:
    UserError: A key is in two axes, or an axis has a value twice.
  """
  keys = [key for axis in axes for key in axis.keys]
  for key in keys:
    if keys.count(key) > 1:
      raise UserError(f'--grid: {key} is given twice')
  for axis in axes:
    for value in axis.values:
      if axis.values.count(value) > 1:
        raise UserError(
          f'--grid {",".join(axis.keys)}: {",".join(value)} is there twice'
        )
  if not axes:
    return (Point(name, {}),)
  shorts = short_names(keys)
  labels = [_labels(axis, shorts) for axis in axes]
  found = []
  for chosen in itertools.product(*(range(len(axis.values)) for axis in axes)):
    values = {
      key: value
      for axis, i in zip(axes, chosen)
      for key, value in zip(axis.keys, axis.values[i])
    }
    name = ','.join(label[i] for label, i in zip(labels, chosen))
    if len(name) > _MAX_FOLDER:
      name = f'{name[:_MAX_FOLDER]}~{files.digest_of(name)[:6]}'
    found.append(Point(name, values))
  return tuple(found)


def short_names(keys: Sequence[str]) -> dict[str, str]:
  """Returns the shortest ends of dotted keys that tell them apart.

  ['rl.kl_coef', 'rl.optimizer.lr', 'rl.critic.lr']
    →  kl_coef, optimizer.lr, critic.lr
  """
  found = {}
  for key in keys:
    parts = key.split('.')
    for count in range(1, len(parts) + 1):
      found[key] = '.'.join(parts[-count:])
      alike = [
        other for other in keys if f'.{other}'.endswith(f'.{found[key]}')
      ]
      if len(alike) == 1:
        break
  return found


def _labels(axis: Axis, shorts: Mapping[str, str]) -> list[str]:
  """Returns the part of a folder's name for each value of an axis."""
  labels = [
    ','.join(f'{shorts[k]}={_label(v)}' for k, v in zip(axis.keys, value))
    for value in axis.values
  ]
  return [
    f'{label}~{files.digest_of(repr(value))[:6]}'
    if labels.count(label) > 1
    else label
    for label, value in zip(labels, axis.values)
  ]


def _label(value: str) -> str:
  """Returns a value as a folder's name may have it: 'gsm8k-math'."""
  plain = re.sub(r'[^\w.+-]+', '-', value, flags=re.ASCII)
  plain = plain.strip('-') if plain != value else plain
  if len(plain) > _MAX_NAME:
    return f'{plain[:_MAX_NAME]}~{files.digest_of(value)[:6]}'
  return plain


def parse_seeds(text: str) -> tuple[int, ...]:
  """Reads --seeds: a number of seeds, or the seeds themselves.

  Raises:
    UserError: They are no numbers from 0, none at all, or one comes twice.
  """
  items = text.removesuffix(',').split(',')
  if not all(re.fullmatch(r' *\d+ *', item, re.ASCII) for item in items):
    raise UserError(
      f'--seeds={text}: give a number of seeds, such as 3, or the seeds '
      'themselves, such as 0,1,5; 7, is the seed 7 alone'
    )
  numbers = tuple(map(int, items))
  if ',' not in text:
    numbers = tuple(range(numbers[0]))
  if not numbers or len(set(numbers)) < len(numbers):
    raise UserError(
      f'--seeds={text}: there must be one seed at least, and none twice'
    )
  return numbers


def find(text: str, grid: Sequence[Point]) -> Point:
  """Returns the one grid point that 'KEY=VALUE,KEY=VALUE' describes.

  Args:
    text: Some or all keys, whole or by their short names, and their values.
    grid: The grid points.

  Raises:
    UserError: It describes none of them or several.
  """
  named = [point for point in grid if point.name == text]
  left = list(grid) if not named else named
  shorts = short_names(list(grid[0].values))
  wanted = {} if named else _wanted(text)
  for key, value in wanted.items():
    whole = next((k for k, short in shorts.items() if key in (k, short)), None)
    if whole is None:
      raise unknown('--baseline: key', key, shorts)
    left = [point for point in left if _alike(point.values[whole], value)]
  if len(left) != 1:
    raise UserError(
      f'--baseline: {text!r} is {len(left) or "none"} of the grid points '
      f'{"; ".join(point.name for point in left or grid)}; name one'
    )
  return left[0]


def _wanted(text: str) -> dict[str, str]:
  """Reads 'KEY=VALUE,KEY=VALUE', where a value may hold commas as in --grid."""
  found, at = {}, 0
  while at < len(text):
    match = re.compile(r' *([\w.]+)=').match(text, at)
    if match is None:
      raise UserError(
        f'--baseline: {text!r} is not the name of a grid point, nor '
        'KEY=VALUE,KEY=VALUE'
      )
    found[match[1]], at = _item(text, match.end())
  return found


def _alike(one: str, other: str) -> bool:
  """Returns whether two texts are the same value: '0' and '0.0' are."""
  return one == other or _literal(one) == _literal(other)


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text
