"""Intervals and tests over the problems of an evaluation.

The problems are the independent samples: the completions of one problem are not,
so everything here resamples or pairs problems.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
_DRAWS = 10_000
_AT_ONCE = 1 << 22  # Numbers of resampled problems in memory at once.


class Interval(NamedTuple):
  """A mean over problems, and the ends of its 95 % bootstrap interval."""

  mean: float
  low: float
  high: float


def bootstrap(score_P: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
  """Returns the mean over problems and its percentile bootstrap interval.

  The problems are drawn with replacement 10,000 times; the interval holds the
  middle 95 % of the means of the draws. One problem has the interval [m, m].

  Args:
    score_P: One number a problem, float [P]; differences of two policies give a
      paired interval.
    seed: Seed of the draws.

  Raises:
    ValueError: there is no problem.
  """
  scores = np.asarray(score_P, np.float64)
  P = len(scores)
  if not P:
    raise ValueError('there are no problems to draw from')
  rng = np.random.default_rng(seed)
  rows = max(1, _AT_ONCE // P)
  means = np.concatenate(
    [
      scores[rng.integers(0, P, (min(rows, _DRAWS - start), P))].mean(1)
      for start in range(0, _DRAWS, rows)
    ]
  )
  tail = (1 - CONFIDENCE) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  return Interval(float(scores.mean()), float(low), float(high))


def mcnemar_p(lost: int, won: int) -> float:
  """Returns the exact two-sided p value of McNemar's test.

  Among the problems that one policy solves and the other does not, each is as
  likely to have the one winner as the other if the policies are equally good:
  p = min(1, 2 · P(X ≤ min(lost, won))) for X ~ Binomial(lost + won, 1/2).

  Args:
    lost: Problems that the first policy alone solves.
    won: Problems that the second policy alone solves.
  """
  n, fewer = lost + won, min(lost, won)
  tail = sum(math.comb(n, i) for i in range(fewer + 1))
  return min(1.0, 2 * tail / (1 << n))  # Whole numbers: exact for any n.
