"""Grades the grids of zebra puzzles: JSON of all houses, right in every cell.

  {"House 1": {"name": "Ann", "job": "pilot"}, "House 2": {…}}

The grid may stand in a text or a fence, and under a key such as "solution", as
in ZebraLogic. Case and spaces of keys and values do not matter.
"""

import json

from r1jax import registry
from r1jax.graders import text_graders
from r1jax.graders.verdict import Verdict

_MAX_TRIES = 500  # Braces at which an object may begin.
Grid = dict[str, dict[str, str]]


def grid(text: str) -> Grid | None:
  """Returns the last grid in a text; None without one."""
  decoder, found, begin = json.JSONDecoder(), None, 0
  for _ in range(_MAX_TRIES):
    begin = text.find('{', begin)
    if begin < 0:
      break
    try:
      value, begin = decoder.raw_decode(text, begin)
    except (ValueError, RecursionError):
      begin += 1
    else:
      found = _houses(value) or found
  return found


def _houses(value: object) -> Grid | None:
  """Returns the houses of a JSON object, or of an object in it."""
  if not isinstance(value, dict):
    return None
  plain = {_plain(key): each for key, each in value.items()}
  houses = {
    key: {_plain(name): _plain(cell) for name, cell in each.items()}
    for key, each in plain.items()
    if key.startswith('house') and isinstance(each, dict)
  }
  return houses or next(filter(None, map(_houses, plain.values())), None)


def _plain(value: object) -> str:
  return ' '.join(str(value).casefold().split())


def _zebra(answer: str, gold: str) -> Verdict:
  """Compares every cell of the gold grid; further cells do not count."""
  given, wanted = grid(answer), grid(gold)
  if given is None:
    return Verdict.UNPARSABLE
  right = wanted is not None and given.keys() == wanted.keys()
  if right and wanted:
    right = all(
      given[house].get(name) == cell
      for house, cells in wanted.items()
      for name, cell in cells.items()
    )
  return Verdict.CORRECT if right else Verdict.WRONG


def _final(answer: str) -> str:
  """Returns the grid of an answer in one form, for votes; '' without one."""
  found = grid(answer)
  return json.dumps(found, sort_keys=True) if found else ''


registry.grader('zebra', batch=True, whole_response=True, final_answer=_final)(
  text_graders.batch_grader(_zebra)
)
