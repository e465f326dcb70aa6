"""Process reward models: how likely a thought is to end well, step by step.

Of a step, y is the share of its continuations that reached the right answer
(Math-Shepherd, arXiv 2312.08935, eq. 3; soft) or whether any did (eq. 2;
hard), and s the scalar head's number at the step's last token:

  −y log σ(s) − (1 − y) log σ(−s)          a mean over all steps
"""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import unknown

LABELS = SOFT, HARD = 'soft', 'hard'


def labels(right: np.ndarray, continuations: int, kind: str) -> np.ndarray:
  """y of steps, from how many of their continuations were right."""
  if kind == HARD:
    return (np.asarray(right) > 0).astype(np.float32)
  return np.asarray(right, np.float32) / np.float32(continuations)


def loss(score_BT, label_BT, weight_BT, total):
  """One microbatch's share of the mean over the whole batch.

  Args:
    score_BT: float32 s of every token.
    label_BT: float32 y, where weight_BT is not 0.
    weight_BT: 1 at the last token of a step, and 0 elsewhere.
    total: Sum of the weights of the WHOLE batch.

  Returns:
    The loss and a dict of metrics; all of them sum over microbatches.
  """

  def mean(x_BT):
    return jnp.sum(jnp.where(weight_BT > 0, x_BT * weight_BT, 0)) / total

  bce = mean(jax.nn.softplus(score_BT) - label_BT * score_BT)
  return bce, {
    'loss': bce,
    'label': mean(label_BT),
    'score': mean(jax.nn.sigmoid(score_BT)),
  }


AGGREGATES = {
  'min': np.min,
  'product': np.prod,
  'mean': np.mean,
  'last': lambda chance: chance[-1],  # As an outcome reward model.
}


def check_aggregate(key: str, how: str):
  """Raises UserError, naming the key, for one that there is not."""
  if how not in AGGREGATES:
    raise unknown(key, how, AGGREGATES)


def aggregate(chance: np.ndarray, how: str) -> float:
  """One number for a thought, from those of its steps; 0 without any."""
  return float(AGGREGATES[how](chance)) if len(chance) else 0.0


def measures(
  chance: np.ndarray, label: np.ndarray, bins: int = 10
) -> dict[str, float]:
  """How good the chances of n steps are, against their labels.

  Returns:
    accuracy: Share of the steps whose chance is on the label's side of 1/2, of
      those whose label is on one.
    accuracy_stderr: Of that mean.
    auc: See `auc`.
    calibration: Mean over equal bins of the chance, weighed by their steps, of
      |mean chance − mean label| (expected calibration error).
    nll: The loss.
    entropy: The least that the loss can be with these labels.
  """
  sided = label != 0.5
  right = (chance > 0.5)[sided] == (label > 0.5)[sided]
  place = np.minimum((chance * bins).astype(int), bins - 1)
  gap = np.bincount(place, chance - label, bins)  # Sums, not means.
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
  """The chance that a step that came out right has the higher score.

  A soft label y counts y times as right and 1 − y times as wrong, as its
  continuations did. Ties count half; NaN where all labels are 0, or 1.
  """
  values, place = np.unique(score, return_inverse=True)
  right = np.bincount(place, label, len(values))
  wrong = np.bincount(place, 1 - label, len(values))
  pairs = right.sum() * wrong.sum()
  if not pairs:
    return float('nan')
  below = np.cumsum(wrong) - wrong
  return float(np.sum(right * (below + wrong / 2)) / pairs)
