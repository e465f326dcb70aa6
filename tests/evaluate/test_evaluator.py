"""The arithmetic of pass@k and self-corrections, and a whole evaluation."""

import itertools

import numpy as np
import pytest

from r1jax.evaluate import evaluator


@pytest.mark.parametrize(
  'n,c', [(1, 0), (1, 1), (4, 1), (6, 2), (7, 5), (8, 8)]
)
def test_pass_at_k_is_the_mean_over_all_choices_of_k(n, c):
  right = [True] * c + [False] * (n - c)
  for k in range(1, n + 1):
    drawn = [any(some) for some in itertools.combinations(right, k)]
    assert evaluator.pass_at_k(n, c, k) == pytest.approx(np.mean(drawn))


def test_pass_at_k_is_refused_beyond_the_samples():
  for k in (0, 5):
    with pytest.raises(ValueError, match=f'pass@{k} needs'):
      evaluator.pass_at_k(4, 1, k)


def test_pass_at_k_is_exact_for_many_samples():
  """A product of floats loses what is left of 1 here."""
  assert evaluator.pass_at_k(1024, 1, 512) == 0.5
  assert evaluator.pass_at_k(10_000, 1, 1) == 1e-4


def test_metrics_of_pass_at_k_are_means_over_problems():
  correct_PG = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
  assert evaluator.pass_at_k_metrics(correct_PG, [1, 2, 4]) == {
    'eval/pass@1': pytest.approx(5 / 12),
    'eval/pass@2': pytest.approx(0.5),
    'eval/pass@4': pytest.approx(2 / 3),
  }
  assert evaluator.divisors(8) == (1, 2, 4, 8)
  assert evaluator.divisors(6) == (1, 2, 3, 6)


@pytest.mark.parametrize(
  'text,corrects',
  [
    ('<think>3 wait 4</think>', True),
    ('<think>Wait, no</think>', True),
    ('<think>the waiter came</think>', False),
    ('<think>3</think>wait', False),
    ('', False),
  ],
)
def test_a_self_correction_is_a_word_of_the_reasoning(text, corrects):
  assert evaluator.self_corrects(text, '</think>') == corrects
