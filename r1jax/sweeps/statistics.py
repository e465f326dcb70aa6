"""Statistics over a few seeds: intervals, and a paired test.

Student's t is computed with mpmath, since the package has no SciPy.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import mpmath
import numpy as np

CONFIDENCE = 0.95
_EXACT_SEEDS = 20  # With more, signs are drawn instead of enumerated.
_DRAWS = 100_000


class Estimate(NamedTuple):
  """A mean over seeds.

  Attributes:
    mean: The mean; None where there is no value.
    low, high: The ends of its 95 % interval; None with a single value.
    seeds: The number of values.
  """

  mean: float | None
  low: float | None
  high: float | None
  seeds: int


def estimate(values: Sequence[float]) -> Estimate:
  """Returns the mean of some values and the interval by Student's t.

  The interval is mean ± t · s / √n, with the 97.5 % quantile of Student's t for
  n − 1 degrees of freedom and the standard deviation s with n − 1 in it.
  """
  n = len(values)
  if not n:
    return Estimate(None, None, None, 0)
  mean = float(np.mean(values))
  if n == 1:
    return Estimate(mean, None, None, 1)
  half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / n**0.5
  return Estimate(mean, mean - half, mean + half, n)


@functools.cache
def t_quantile(freedom: int) -> float:
  """Returns t with P(|T| < t) = 0.95 for Student's T.

  P(|T| > t) = I_x(ν/2, 1/2), where x = ν / (ν + t²) and I is the regularized
  incomplete beta function; it grows with x, so that bisection finds it.

  Args:
    freedom: Degrees of freedom ν, at least 1.
  """
  low, high = 0.0, 1.0
  for _ in range(60):
    x = (low + high) / 2
    tails = mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True)
    low, high = (low, x) if tails > 1 - CONFIDENCE else (x, high)
  return (freedom * (1 / low - 1)) ** 0.5


def sign_flip_p(differences: Sequence[float]) -> float:
  """Returns the two-sided p value of the sign-flip permutation test.

  If a change does nothing, each difference is as likely to have the other sign.
  p is the share of all 2ⁿ choices of signs whose sum is as far from 0 as that
  of the differences, or further. With more than 20 of them it is estimated from
  100,000 random choices, themselves included, with a fixed seed.

  Args:
    differences: Paired differences, one for each seed; at least one.
  """
  d = np.asarray(differences, float)
  if len(d) <= _EXACT_SEEDS:
    sums = np.zeros(1)
    for each in d:
      sums = np.concatenate([sums + each, sums - each])
  else:
    rng = np.random.default_rng(0)
    signs = 2 * rng.integers(0, 2, (_DRAWS, len(d)), dtype=np.int8) - 1
    sums = np.append(signs @ d, d.sum())
  # Sums of the same numbers in another order differ in their last digits.
  return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()))


def smallest_p(count: int) -> float:
  """Returns the smallest p value that sign_flip_p can have for so many pairs."""
  if count > _EXACT_SEEDS:
    return 1 / (1 + _DRAWS)
  return 2 / 2**count if count else 1.0
