"""Checked access to the JSON of Hugging Face checkpoints."""

from collections.abc import Callable
import json
import math
from typing import Any

from r1jax.errors import UserError


class JsonObject:
  """Checked access to the values of a JSON object.

  Every method raises UserError in one line that names the key and what was
  expected. A key that is absent or null has its default, if that is not None.
  """

  def __init__(self, where: str, values: dict):
    self._where, self._values = where, values

  def count(self, key: str, least: int = 1, default: int | None = None) -> int:
    """Returns an integer of at least `least`."""
    return self._get(
      key,
      f'a whole number of at least {least}',
      default,
      lambda value: type(value) is int and value >= least,
    )

  def number(self, key: str, default: float | None = None) -> float:
    """Returns a finite number."""
    return self._get(
      key,
      'a number',
      default,
      lambda value: type(value) in (int, float) and math.isfinite(value),
    )

  def flag(self, key: str, default: bool) -> bool:
    """Returns a boolean."""
    return self._get(
      key, 'true or false', default, lambda value: type(value) is bool
    )

  def text(self, key: str, default: str) -> str:
    """Returns a string."""
    return self._get(key, 'a string', default, lambda value: type(value) is str)

  def section(self, key: str) -> 'JsonObject':
    """Returns the object at a key; an empty one if there is none."""
    values = self._get(key, 'an object', {}, lambda v: type(v) is dict)
    return JsonObject(f'{self._where}: {key}', values)

  def __contains__(self, key: str) -> bool:
    return self._values.get(key) is not None

  def _get(
    self, key: str, expected: str, default: Any, fits: Callable[[Any], bool]
  ) -> Any:
    value = self._values.get(key)
    if value is None and default is not None:
      return default
    if key not in self._values:
      raise UserError(f'import-hf: {self._where} lacks {key!r}, {expected}')
    if not fits(value):
      shown = json.dumps(value)
      shown = shown if len(shown) <= 60 else shown[:60] + '…'
      raise UserError(
        f'import-hf: {self._where} has {key} = {shown}; it must be {expected}'
      )
    return value
