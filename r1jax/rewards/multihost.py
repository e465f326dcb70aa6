"""Scoring, divided between processes: each scores its share, all get the whole.

Every process holds every completion, since all run the same sampler over all
requests; only graders need not do the same work N times. Group i is scored by
process i mod N, and what it found goes to all others:

  groups       0   1   2   3   4
  process 0    ×       ×       ×     → all have 0, 1, 2, 3, 4
  process 1        ×       ×         → all have 0, 1, 2, 3, 4

A learned part of the reward must therefore run on its own process's devices.
"""

from collections.abc import Callable, Sequence
import json

import jax
from jax.experimental import multihost_utils
import numpy as np

from r1jax.records import ScoredRollout
from r1jax.rewards.reward_manager import RewardError


def is_local(index: int) -> bool:
  """Whether this process scores the group of this index."""
  return index % jax.process_count() == jax.process_index()


def gather_scores(
  texts: Sequence[Sequence[str]],
  mine: Sequence[int],
  score: Callable[[], ScoredRollout],
) -> ScoredRollout:
  """The scores of all groups, the same in all processes, which wait for it.

  Args:
    texts: Of each group, G each.
    mine: The groups that this process scores; each is one process's.
    score: Of these, one after the other; not called where there are none.

  Raises:
    RewardError: in another process scoring failed; says why.
    Exception: that of `score`.
  """
  if jax.process_count() == 1:
    return score()
  message, failure = {'groups': list(mine)}, None
  try:
    if mine:
      message |= _packed(score())
  except Exception as error:  # The others wait for word, whatever it is.
    message, failure = {'error': f'{type(error).__name__}: {error}'}, error
  told = [
    json.loads(each) for each in _exchanged(json.dumps(message).encode('ascii'))
  ]
  if failure:
    raise failure
  for process, each in enumerate(told):
    if 'error' in each:
      raise RewardError(
        f'reward: process {process} could not score its share: ' + each['error']
      )
  return _unpacked([each for each in told if each['groups']], texts)


def _packed(scored: ScoredRollout) -> dict:
  """In JSON, which keeps every float32 and NaN as it is. The texts stay."""
  return {
    'reward': np.asarray(scored.reward_B).tolist(),
    'scorable': np.asarray(scored.scorable_B).tolist(),
    'parts': {
      name: np.asarray(part_B).tolist() for name, part_B in scored.parts.items()
    },
    'verdicts': list(map(str, scored.verdicts)),
  }


def _unpacked(
  told: list[dict], texts: Sequence[Sequence[str]]
) -> ScoredRollout:
  """From what each process says of its groups; in the order of all."""
  size = len(texts[0])
  rows = np.concatenate(
    [
      group * size + np.arange(size)
      for each in told
      for group in each['groups']
    ]
  )
  order = np.argsort(rows)
  assert (rows[order] == np.arange(len(texts) * size)).all(), rows
  beside = lambda take, dtype: np.concatenate(
    [np.array(take(each), dtype) for each in told]
  )[order]
  verdicts = [verdict for each in told for verdict in each['verdicts']]
  return ScoredRollout(
    reward_B=beside(lambda each: each['reward'], np.float32),
    scorable_B=beside(lambda each: each['scorable'], bool),
    parts={
      name: beside(lambda each: each['parts'][name], np.float32)
      for name in told[0]['parts']
    },
    verdicts=[verdicts[row] for row in order],
    texts=[text for group in texts for text in group],
  )


def _exchanged(message: bytes) -> list[bytes]:
  """The messages of all processes, in their order."""
  sizes = multihost_utils.process_allgather(np.array(len(message), np.int32))
  # Few lengths, and so few programs.
  padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
  padded[: len(message)] = np.frombuffer(message, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row[:size].tobytes() for row, size in zip(rows, sizes)]
