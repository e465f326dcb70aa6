"""Divides scoring between processes and gathers the scores in all of them.

Every process holds every completion, since all run the same sampler over all
requests, but grading need not be repeated in each. Process i mod N scores group
i and sends its scores to all others:

  groups       0   1   2   3   4
  process 0    ×       ×       ×     → all have 0, 1, 2, 3, 4
  process 1        ×       ×         → all have 0, 1, 2, 3, 4

A reward model must therefore run on the devices of its own process.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import processes
from r1jax.records import ScoredRollout
from r1jax.rewards.plugin_reward import RewardError


def is_local(index: int) -> bool:
  """Whether this process scores the group of this index."""
  return index % jax.process_count() == jax.process_index()


def gather_scores(
  texts: Sequence[Sequence[str]],
  local_groups: Sequence[int],
  score: Callable[[], ScoredRollout],
) -> ScoredRollout:
  """Scores the groups of this process and gathers the scores of all processes.

  A collective operation: every process must call it, and it returns the same
  everywhere.

  Args:
    texts: The G completions of each group, of all groups.
    local_groups: Indices of the groups that this process scores. Each group
      belongs to exactly one process.
    score: Scores local_groups in this order; not called if there are none.

  Returns:
    The scores of all groups, in the order of `texts`.

  Raises:
    RewardError: Scoring failed in another process; says why.
    Exception: Whatever `score` raises in this process.
  """
  if jax.process_count() == 1:
    return score()
  message: dict[str, Any] = {'groups': list(local_groups)}
  failure: Exception | None = None
  try:
    if local_groups:
      message |= _to_json(score())
  except Exception as error:  # The other processes wait for a message.
    message, failure = {'error': f'{type(error).__name__}: {error}'}, error
  messages = processes.exchange(message)
  if failure:
    raise failure
  for process, received in enumerate(messages):
    if 'error' in received:
      raise RewardError(
        f'reward: process {process} could not score its share: '
        + received['error']
      )
  return _from_json([m for m in messages if m['groups']], texts)


def _to_json(scored: ScoredRollout) -> dict:
  """Converts scores to JSON, which keeps float32 and NaN exact, without texts."""
  return {
    'reward': np.asarray(scored.reward_B).tolist(),
    'scorable': np.asarray(scored.scorable_B).tolist(),
    'parts': {
      name: np.asarray(part_B).tolist() for name, part_B in scored.parts.items()
    },
    'verdicts': list(map(str, scored.verdicts)),
  }


def _from_json(
  messages: list[dict], texts: Sequence[Sequence[str]]
) -> ScoredRollout:
  """Joins the messages of all processes, in the order of the groups."""
  size = len(texts[0])
  rows = np.concatenate(
    [
      group * size + np.arange(size)
      for message in messages
      for group in message['groups']
    ]
  )
  order = np.argsort(rows)
  assert (rows[order] == np.arange(len(texts) * size)).all(), rows
  # A process whose plugins name other parts than another's has none of these.
  names = dict.fromkeys(name for m in messages for name in m['parts'])
  none = lambda message: [np.nan] * len(message['reward'])
  concatenate = lambda field, dtype: np.concatenate(
    [np.array(field(message), dtype) for message in messages]
  )[order]
  verdicts = [
    verdict for message in messages for verdict in message['verdicts']
  ]
  return ScoredRollout(
    reward_B=concatenate(lambda m: m['reward'], np.float32),
    scorable_B=concatenate(lambda m: m['scorable'], bool),
    parts={
      name: concatenate(lambda m: m['parts'].get(name, none(m)), np.float32)
      for name in names
    },
    verdicts=[verdicts[row] for row in order],
    texts=[text for group in texts for text in group],
  )
