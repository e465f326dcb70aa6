"""Which prompts, and in which order, by how often a policy solves them."""

from collections.abc import Mapping, Sequence

import numpy as np

from r1jax.data.datasets import read_jsonl
from r1jax.errors import UserError
from r1jax.records import Prompt


def read_pass_rates(path: str) -> dict[str, float]:
  """Pass rates by prompt id, from a file with rows of id and pass_rate.

  Raises:
    UserError: a rate is not within 0 and 1; or see datasets.read_jsonl.
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
  """The prompts that were measured and whose rate lies within [low, high].

  A group that is all right or all wrong teaches nothing: rates of 0 and 1
  promise such groups.
  """
  return [
    prompt for prompt in prompts if low <= rates.get(prompt.id, np.nan) <= high
  ]


def sort_by_pass_rate(
  prompts: Sequence[Prompt], rates: Mapping[str, float], seed: int
) -> list[Prompt]:
  """From the easiest to the hardest; those of one rate in random order."""
  order = np.random.default_rng(seed).permutation(len(prompts))
  return [
    prompts[i] for i in sorted(order, key=lambda i: -rates[prompts[i].id])
  ]
