"""Calls a function of a plugin, inside a worker process."""

import asyncio
from collections.abc import Callable, Sequence
import inspect
import math
import os
import traceback
from typing import Any

from r1jax import registry
from r1jax.errors import UserError


def load(plugin: str, digest: str):
  """Imports a plugin into the worker.

  Args:
    plugin: See registry.Origin.
    digest: SHA-256 of its file where the run imported it; '' for unknown.

  Raises:
    UserError: it fails, or its file has changed since.
  """
  built_in = [kind.built_in for kind in registry.KINDS]
  for kind in registry.KINDS:  # Most of the package would come with these.
    kind.built_in = ''
  [now] = registry.load_plugins([plugin]).values()
  for kind, module in zip(registry.KINDS, built_in):
    kind.built_in = module
  if digest and digest != now:
    raise UserError(
      f'plugins: {plugin} has changed since the run began; start the run again'
    )


def call(
  kind: registry.Registry,
  name: str,
  arguments: Sequence[Any],
  convert: Callable[[Any], Any],
) -> dict:
  """Calls a registered function, and awaits what it returns if it is async.

  Args:
    kind: The registry that holds it.
    name: Its name.
    arguments: Its arguments.
    convert: Turns what it returned into JSON, or raises ValueError.

  Returns:
    {'value': …}, or {'error': …} with one line that names the exception and
    the line of the plugin that raised it.
  """
  try:
    value = kind.get(name)(*arguments)
    if inspect.isawaitable(value):
      value = asyncio.run(_result(value))
    return {'value': convert(value)}
  except MemoryError:  # Other parts of the process may be damaged by now.
    os._exit(1)
  except (Exception, SystemExit) as error:
    return {'error': _one_line(error, kind.origin(name).file)}


async def _result(awaitable):
  return await awaitable


class BadValueError(ValueError):
  """A function returned what it may not."""


def number(value: Any) -> float:
  """Returns a finite number as a float, also a bool or a scalar of NumPy.

  Raises:
    BadValueError: it is none.
  """
  if hasattr(value, 'item') and getattr(value, 'shape', None) == ():
    value = value.item()
  if not isinstance(value, (bool, int, float)):
    raise BadValueError(f'returned {value!r:.60}, of type {_type(value)}')
  try:
    value = float(value)
  except OverflowError as error:
    raise BadValueError('returned an integer beyond all floats') from error
  if not math.isfinite(value):
    raise BadValueError(f'returned {value}')
  return value


def _type(value: Any) -> str:
  return type(value).__name__


def _one_line(error: BaseException, file: str) -> str:
  text = ' '.join(str(error).split())[:300]
  if isinstance(error, BadValueError):
    return text
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == file
  ]
  where = f' at line {lines[-1]}' if lines else ''
  return f'{type(error).__name__}: {text}{where}'
