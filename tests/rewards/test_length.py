"""Length and repetition against hand-made cases."""

import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.rewards import length


def test_overlong_is_zero_then_a_line_then_minus_one():
  values = [length.overlong(t, 100, 20) for t in (0, 80, 85, 90, 100, 500)]
  np.testing.assert_allclose(values, [0, 0, -0.25, -0.5, -1, -1])
  with pytest.raises(UserError, match='buffer_tokens = 0'):
    length.overlong(1, 100, 0)


def test_cosine_goes_from_short_to_long():
  at = lambda right, t: length.cosine(right, t, 100)
  assert at(True, 0) == 1 and at(False, 0) == -1
  np.testing.assert_allclose([at(True, 50), at(False, 50)], [0.75, -0.75])
  assert at(True, 99) == pytest.approx(0.5, abs=1e-3)
  assert at(True, 100) == at(False, 100) == -1
  right = [at(True, t) for t in range(100)]
  wrong = [at(False, t) for t in range(100)]
  assert (np.diff(right) < 0).all() and (np.diff(wrong) > 0).all()
  assert min(right) > max(wrong)


def test_repetition_is_the_share_of_old_n_grams():
  assert length.repetition('ababab', 2) == pytest.approx(-0.6)
  assert length.repetition('abcdef', 2) == 0
  assert length.repetition([1], 2) == 0
  assert length.repetition([7] * 1000, 4) < -0.99
  with pytest.raises(UserError, match='n must be at least 1'):
    length.repetition('ab', 0)
