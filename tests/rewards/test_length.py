"""Rewards of length against hand-made cases."""

import numpy as np
import pytest

from r1jax.errors import UserError
from r1jax.rewards import length, parts
from r1jax.rewards.parts import RewardOptions
from r1jax.rewards.sample import Sample, SamplePrompt


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


@pytest.mark.parametrize(
  'text',
  [
    'We add three and four.',
    '我们把三和四相加。',
    '三と四を足します。',
    'เราบวกสามกับสี่',
    'نجمع ثلاثة وأربعة.',
    'So `f(x)` 等于 $x^2$.',
  ],
)
def test_tokens_alone_count_in_every_language(text):
  """A language is neither cheaper nor dearer than what its tokens are."""
  options = RewardOptions(100, 20, 4, 1.0)
  sample = lambda tokens, verdict: Sample(
    completion=text,
    reasoning=None,
    answer=text,
    gold=text,
    prompt=SamplePrompt('1', '', '', 'math'),
    num_tokens=tokens,
    accuracy=1.0,
    verdict=verdict,
  )
  assert parts.overlong(sample(90, 'correct'), options) == -0.5
  assert parts.cosine(sample(50, 'correct'), options) == pytest.approx(0.75)
  assert parts.cosine(sample(50, 'wrong'), options) == pytest.approx(-0.75)
