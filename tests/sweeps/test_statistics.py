"""Statistics of a sweep against SciPy, tables and plain enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from r1jax.sweeps import statistics


@pytest.mark.parametrize('freedom', [1, 2, 3, 4, 9, 30, 200])
def test_quantiles_of_students_t(freedom):
  expected = stats.t.ppf(0.975, freedom)
  assert statistics.t_quantile(freedom) == pytest.approx(expected, rel=1e-9)


def test_the_interval_is_that_of_a_worked_example():
  # Mean 5, s = √(20 / 3), t = 3.1824: ± 3.1824 · 2.5820 / 2 = 4.1085.
  found = statistics.estimate([2, 4, 6, 8])
  assert found.mean == 5 and found.seeds == 4
  assert found.low == pytest.approx(5 - 4.1085, abs=1e-4)
  assert found.high == pytest.approx(5 + 4.1085, abs=1e-4)


def test_the_interval_agrees_with_scipy():
  values = np.random.default_rng(0).normal(3, 2, 7)
  low, high = stats.t.interval(
    0.95, 6, loc=values.mean(), scale=stats.sem(values)
  )
  found = statistics.estimate(list(values))
  assert (found.low, found.high) == pytest.approx((low, high))


def test_one_value_has_no_interval_and_none_no_mean():
  assert statistics.estimate([0.5]) == (0.5, None, None, 1)
  assert statistics.estimate([]) == (None, None, None, 0)


def _by_enumeration(differences) -> float:
  """Counts the choices of signs one by one."""
  seen = abs(math.fsum(differences))
  sums = [
    abs(math.fsum(s * d for s, d in zip(signs, differences)))
    for signs in itertools.product((-1, 1), repeat=len(differences))
  ]
  return sum(each >= seen - 1e-12 for each in sums) / len(sums)


@pytest.mark.parametrize(
  'differences, p',
  [
    ([1.0], 1.0),
    ([0.1, 0.2, 0.3], 0.25),
    ([-0.1, -0.2, -0.3], 0.25),
    ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2 / 64),
    ([0.1, -0.1], 1.0),
    ([0.0, 0.0, 0.0], 1.0),
    # |3 + 2 − 1| = 4: of the 8 sums 6, 4, 2, 0 and their negatives four are.
    ([3.0, 2.0, -1.0], 0.5),
  ],
)
def test_p_values_that_are_known(differences, p):
  assert statistics.sign_flip_p(differences) == p
  assert _by_enumeration(differences) == p


def test_p_values_agree_with_enumeration_and_scipy():
  rng = np.random.default_rng(1)
  for count in (2, 5, 8):
    differences = list(rng.normal(0.5, 1, count))
    p = statistics.sign_flip_p(differences)
    assert p == pytest.approx(_by_enumeration(differences))
    theirs = stats.permutation_test(
      (differences,), np.mean, permutation_type='samples', n_resamples=np.inf
    )
    assert p == pytest.approx(theirs.pvalue)
    assert p >= statistics.smallest_p(count)


def test_ties_by_rounding_count():
  """0.1 + 0.2 − 0.3 is not 0 in floating point."""
  assert statistics.sign_flip_p([0.1, 0.2, -0.3]) == 1.0


def test_many_seeds_are_estimated():
  differences = list(np.random.default_rng(2).normal(0.4, 1, 25))
  p = statistics.sign_flip_p(differences)
  normal = 2 * stats.norm.sf(
    abs(sum(differences)) / math.sqrt(sum(d * d for d in differences))
  )
  assert p == pytest.approx(normal, abs=0.01)
  assert p == statistics.sign_flip_p(differences)
  assert statistics.sign_flip_p([1.0] * 25) == statistics.smallest_p(25)


@pytest.mark.parametrize('count, p', [(1, 1), (2, 0.5), (3, 0.25), (6, 1 / 32)])
def test_the_smallest_p(count, p):
  assert statistics.smallest_p(count) == p
  assert statistics.sign_flip_p([1.0 + i for i in range(count)]) == p
