"""Process reward models against NumPy, and against all pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import prm as process
from r1jax.errors import UserError


def _steps(n: int = 60):
  rng = np.random.default_rng(0)
  chance = np.round(rng.random(n), 1).clip(0.05, 0.95)  # With ties.
  return chance, rng.choice([0.0, 0.25, 0.5, 1.0], n)


def test_the_loss_is_cross_entropy_where_steps_end():
  rng = np.random.default_rng(1)
  score, label = 4 * rng.normal(size=(3, 5)), rng.random((3, 5))
  weight = (rng.random((3, 5)) < 0.4).astype(np.float32)
  score[weight == 0] = np.nan
  chance = 1 / (1 + np.exp(-score))
  each = -(label * np.log(chance) + (1 - label) * np.log(1 - chance))
  got, metrics = process.loss(
    jnp.float32(score), jnp.float32(label), weight, weight.sum()
  )
  np.testing.assert_allclose(got, each[weight > 0].mean(), rtol=1e-5)
  np.testing.assert_allclose(
    metrics['score'], chance[weight > 0].mean(), rtol=1e-5
  )


def test_labels_are_a_share_or_whether_any_was_right():
  right = np.array([0, 1, 4])
  assert process.labels(right, 4, 'soft').tolist() == [0, 0.25, 1]
  assert process.labels(right, 4, 'hard').tolist() == [0, 1, 1]


@pytest.mark.parametrize(
  'name,want',
  [('min', 0.25), ('product', 0.1), ('mean', 1.55 / 3), ('last', 0.5)],
)
def test_a_thought_is_as_good_as_its_steps(name, want):
  chance = np.array([0.8, 0.25, 0.5])
  assert process.aggregate(chance, name) == pytest.approx(want)
  assert process.aggregate(chance[:0], name) == 0.0
  with pytest.raises(UserError, match="key: unknown 'max'"):
    process.check_aggregate('key', 'max')


def test_auc_counts_all_pairs_of_continuations():
  chance, label = _steps()
  right, wrong = label[:, None], 1 - label[None]
  ahead = (chance[:, None] > chance) + 0.5 * (chance[:, None] == chance)
  want = (ahead * right * wrong).sum() / (right * wrong).sum()
  assert process.auc(chance, label) == pytest.approx(want)
  assert process.auc(label, (label > 0.4) * 1.0) == 1.0
  assert np.isnan(process.auc(chance, np.ones(60)))


def test_measures_are_those_of_numpy():
  chance, label = _steps()
  got = process.classification_metrics(chance, label, bins=4)
  sided = label != 0.5
  assert got['accuracy'] == pytest.approx(
    ((chance > 0.5) == (label > 0.5))[sided].mean()
  )
  gaps = 0.0
  for low in (0, 0.25, 0.5, 0.75):
    in_bin = (chance >= low) & (chance < low + 0.25)
    gaps += in_bin.mean() * abs(chance[in_bin].mean() - label[in_bin].mean())
  assert got['calibration'] == pytest.approx(gaps)
  each = label * np.log(chance) + (1 - label) * np.log(1 - chance)
  assert got['nll'] == pytest.approx(-each.mean())
  assert got['entropy'] <= got['nll']
  perfect = process.classification_metrics(label.clip(0.01, 0.99), label)
  assert perfect['accuracy'] == 1.0 and perfect['calibration'] < 0.011
