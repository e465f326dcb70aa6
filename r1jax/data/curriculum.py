"""Filters and orders prompts by the rate at which a policy solves them."""

from collections.abc import Mapping, Sequence

import numpy as np

from r1jax.data.datasets import read_jsonl
from r1jax.errors import UserError
from r1jax.records import Prompt


def read_pass_rates(path: str) -> dict[str, float]:
  """Reads pass rates by prompt id from a file of rows with id and pass_rate.

  Raises:
    UserError: a rate is not within 0 and 1, or a row is malformed; see
      datasets.read_jsonl.
  """
  rates = {}
  for row in read_jsonl(path, {'id': str, 'pass_rate': float}):
    if not 0 <= row['pass_rate'] <= 1:
      raise UserError(
        f'data: {path}: the pass_rate of {row["id"]!r} is not '
        f'within 0 and 1: {row["pass_rate"]}'
      )
    rates[row['id']] = float(row['pass_rate'])
  return rates


def filter_by_pass_rate(
  prompts: Sequence[Prompt], rates: Mapping[str, float], low: float, high: float
) -> list[Prompt]:
  """Returns the prompts that have a pass rate within [low, high].

  A group whose samples are all right or all wrong has no advantages to learn
  from; pass rates near 0 and 1 predict such groups.
  """
  return [
    prompt for prompt in prompts if low <= rates.get(prompt.id, np.nan) <= high
  ]


def sort_by_pass_rate(
  prompts: Sequence[Prompt], rates: Mapping[str, float], seed: int
) -> list[Prompt]:
  """Returns the prompts from the easiest to the hardest, ties in random order."""
  order = np.random.default_rng(seed).permutation(len(prompts))
  return [
    prompts[i] for i in sorted(order, key=lambda i: -rates[prompts[i].id])
  ]
