"""Metrics of the completions of an RL step, on the host."""

from collections import Counter

import numpy as np

from r1jax.data.datasets import GENERAL
from r1jax.evaluate import evaluator
from r1jax.graders.verdict import Verdict
from r1jax.records import FINISH_LENGTH, Rollout, ScoredRollout


def _known_mean(x_B) -> float:
  known_B = x_B[~np.isnan(x_B)]
  return known_B.mean() if known_B.size else np.nan


def of_rollout(
  scored: ScoredRollout, rollout: Rollout, reasoning_end: str
) -> dict[str, float]:
  """Returns metrics of a rollout and its rewards."""
  staleness = rollout.staleness_BT[rollout.mask_BT]
  ok_B = scored.scorable_B
  of_scorable = lambda f, x_B: f(x_B[ok_B]) if ok_B.any() else np.nan
  verdicts = Counter(scored.verdicts)
  # A part's mean is over the samples that have it: general ones lack accuracy.
  parts = {
    f'rewards/{name}/mean': of_scorable(_known_mean, part_B)
    for name, part_B in scored.parts.items()
  }
  shares = {
    f'verdict/{name}': verdicts[name] / len(ok_B)
    for name in (*Verdict, GENERAL)
  }
  self_corrections = [
    evaluator.self_corrects(text, reasoning_end) for text in scored.texts
  ]
  return (
    parts
    | shares
    | {
      'reward': of_scorable(np.mean, scored.reward_B),
      'reward_std': of_scorable(np.std, scored.reward_B),
      'completions/mean_length': np.mean(rollout.length_B),
      'completions/max_length': np.max(rollout.length_B),
      'completions/clipped_ratio': np.mean(rollout.finish_B == FINISH_LENGTH),
      'completions/self_correction': np.mean(self_corrections),
      'rollout/stale_token_frac': np.mean(staleness > 0),
      'rollout/max_staleness': np.max(staleness),
    }
  )
