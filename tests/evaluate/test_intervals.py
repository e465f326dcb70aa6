"""Bootstrap intervals and McNemar's test against what they should be."""

import itertools

import numpy as np
import pytest

from r1jax.evaluate.intervals import bootstrap, mcnemar_p


def test_the_interval_is_that_of_the_normal_law_for_many_problems():
  rng = np.random.default_rng(1)
  scores = rng.normal(0.4, 0.2, 2000)
  found = bootstrap(scores)
  half = 1.96 * scores.std() / np.sqrt(2000)
  assert found.mean == pytest.approx(scores.mean())
  assert found.low == pytest.approx(scores.mean() - half, abs=half / 10)
  assert found.high == pytest.approx(scores.mean() + half, abs=half / 10)


def test_few_problems_are_drawn_as_all_their_draws_say():
  """Three problems have 27 draws, whose means have known quantiles."""
  scores = [0.0, 0.5, 1.0]
  means = sorted(map(np.mean, itertools.product(scores, repeat=3)))
  found = bootstrap(scores)
  assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.17)
  assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.17)
  assert found.low < found.mean < found.high


def test_equal_scores_have_no_width_and_none_is_an_error():
  assert bootstrap([0.25] * 7) == (0.25, 0.25, 0.25)
  with pytest.raises(ValueError, match='no problems'):
    bootstrap([])


def test_the_draws_do_not_depend_on_their_chunks():
  scores = np.random.default_rng(0).random(4000)  # Several chunks.
  assert bootstrap(scores) == bootstrap(scores)
  assert bootstrap(scores).high - bootstrap(scores).low < 0.03


@pytest.mark.parametrize('lost,won', [(0, 0), (0, 5), (1, 9), (4, 4), (7, 2)])
def test_mcnemar_counts_all_outcomes(lost, won):
  """p is the share of all 2ⁿ outcomes that are at least as far apart."""
  n = lost + won
  outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
  far = [abs(2 * x - n) >= abs(won - lost) for x in outcomes]
  assert mcnemar_p(lost, won) == pytest.approx(np.mean(far))


def test_mcnemar_is_exact_for_many_problems():
  assert mcnemar_p(2000, 2000) == 1
  assert 0 < mcnemar_p(900, 1100) < 1e-5
