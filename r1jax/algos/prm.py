"""Process reward models: the probability that a thought ends well, per step.

The label y of a step is the fraction of its continuations that reached the
right answer (Math-Shepherd, arXiv 2312.08935, eq. 3; soft), or whether any did
(eq. 2; hard). With s, the scalar head's output at the step's last token, the
loss is

  −y log σ(s) − (1 − y) log σ(−s)          averaged over all steps.
"""

from collections.abc import Callable

import jax
import numpy as np

from r1jax.algos import common
from r1jax.errors import unknown

LABELS = SOFT, HARD = 'soft', 'hard'


def labels(right: np.ndarray, continuations: int, kind: str) -> np.ndarray:
  """Returns the labels y of steps.

  Args:
    right: Number of right continuations of each step.
    continuations: Number of continuations of every step.
    kind: SOFT or HARD.
  """
  if kind == HARD:
    return (np.asarray(right) > 0).astype(np.float32)
  return np.asarray(right, np.float32) / np.float32(continuations)


def loss(score_BT, label_BT, mask_BT, total):
  """Returns one microbatch's share of the mean over the whole batch.

  Args:
    score_BT: float32 s of every token.
    label_BT: float32 y where mask_BT is True.
    mask_BT: bool, True at the last token of each step.
    total: Number of steps of the whole batch.

  Returns:
    The loss and a dict of metrics. All of them add up over microbatches.
  """

  def mean(x_BT):
    return common.masked_sum(x_BT, mask_BT) / total

  bce = mean(jax.nn.softplus(score_BT) - label_BT * score_BT)
  return bce, {
    'loss': bce,
    'label': mean(label_BT),
    'score': mean(jax.nn.sigmoid(score_BT)),
  }


AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
  'min': np.min,
  'product': np.prod,
  'mean': np.mean,
  'last': lambda chance: chance[-1],  # Like an outcome reward model.
}


def check_aggregate(key: str, name: str):
  """Raises a UserError that names the key if there is no such aggregate."""
  if name not in AGGREGATES:
    raise unknown(key, name, AGGREGATES)


def aggregate(chance: np.ndarray, name: str) -> float:
  """Returns a thought's score from those of its steps; 0 without steps.

  Args:
    chance: Probabilities of the steps, in order.
    name: A key of AGGREGATES.
  """
  return float(AGGREGATES[name](chance)) if len(chance) else 0.0


def classification_metrics(
  chance: np.ndarray, label: np.ndarray, bins: int = 10
) -> dict[str, float]:
  """Returns how well the predicted probabilities of n steps fit the labels.

  Args:
    chance: [n] predicted probabilities.
    label: [n] labels in [0, 1].
    bins: Number of equal bins for the calibration error.

  Returns:
    accuracy: Fraction of steps whose probability is on the label's side of 1/2,
      among the steps whose label is not 1/2.
    accuracy_stderr: Standard error of the accuracy.
    auc: Area under the ROC curve, see `auc`.
    calibration: Expected calibration error: |mean probability − mean label|
      per bin, averaged with the number of steps as weight.
    nll: Mean negative log-likelihood, the loss.
    entropy: Mean entropy of the labels, the smallest possible loss.
  """
  decided = label != 0.5
  right = (chance > 0.5)[decided] == (label > 0.5)[decided]
  bin_of = np.minimum((chance * bins).astype(int), bins - 1)
  gap = np.bincount(bin_of, chance - label, bins)  # Sums, not means.
  log = lambda p: np.log(np.clip(p, 1e-12, 1.0))
  cross = lambda p: float(-np.mean(label * log(p) + (1 - label) * log(1 - p)))
  return {
    'accuracy': float(right.mean()) if right.size else float('nan'),
    'accuracy_stderr': (
      float(right.std() / np.sqrt(right.size)) if right.size else float('nan')
    ),
    'auc': auc(chance, label),
    'calibration': float(np.abs(gap).sum() / len(chance)),
    'nll': cross(chance),
    'entropy': cross(label),
  }


def auc(score: np.ndarray, label: np.ndarray) -> float:
  """Returns the probability that a right step scores above a wrong one.

  A soft label y counts as y right steps and 1 − y wrong ones, as do its
  continuations. Ties count half. The result is NaN if all labels are 0, or 1.
  """
  values, value_of = np.unique(score, return_inverse=True)
  right = np.bincount(value_of, label, len(values))
  wrong = np.bincount(value_of, 1 - label, len(values))
  pairs = right.sum() * wrong.sum()
  if not pairs:
    return float('nan')
  below = np.cumsum(wrong) - wrong
  return float(np.sum(right * (below + wrong / 2)) / pairs)
