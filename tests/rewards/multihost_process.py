"""One of several processes that score together; prints what it got.

python -m tests.rewards.multihost_process ADDRESS PROCESSES PROCESS
"""

import json
import sys

import jax
import numpy as np

from r1jax.records import ScoredRollout
from r1jax.rewards import multihost

GROUPS, SIZE = 5, 3
TEXTS = [[f'{group}/{i}' for i in range(SIZE)] for group in range(GROUPS)]


def main(address: str, processes: int, process: int):
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(address, processes, process)
  mine = [group for group in range(GROUPS) if multihost.is_local(group)]
  output = {'mine': mine, 'whole': together(mine, mine)}
  output['first'] = together([0] if process == 0 else [], [0], groups=1)
  for failing in range(processes):
    try:
      together(mine, [] if process == failing else mine)
    except Exception as error:
      output[f'failure of {failing}'] = f'{type(error).__name__}: {error}'
  output['after'] = together(mine, mine)
  print(json.dumps(output))


def together(mine, can, groups: int = GROUPS) -> dict:
  """Every group that is scored must be one of `can`."""
  scored = multihost.gather_scores(
    TEXTS[:groups],
    mine,
    lambda: ScoredRollout.concatenate(
      [graded(group) for group in mine if known(group, can)]
    ),
  )
  return as_json(scored)


def known(group: int, can) -> bool:
  if group not in can:
    raise ValueError(f'nobody grades {group}')
  return True


def graded(group: int) -> ScoredRollout:
  """Numbers that no JSON should bend: thirds and NaN."""
  number = np.arange(SIZE, dtype=np.float32) + group * SIZE
  part = np.where(number % 4 == 1, np.float32(np.nan), number / 3)
  scorable = ~np.isnan(part)
  return ScoredRollout(
    reward_B=np.where(scorable, part, np.float32(0)),
    scorable_B=scorable,
    parts={'accuracy': part, 'format': number},
    verdicts=[f'verdict {n:.0f}' for n in number],
    texts=TEXTS[group],
  )


def as_json(scored: ScoredRollout) -> dict:
  exact = lambda array: [f'{array.dtype}', array.tobytes().hex()]
  return {
    'reward': exact(scored.reward_B),
    'scorable': exact(scored.scorable_B),
    'parts': {name: exact(x) for name, x in scored.parts.items()},
    'verdicts': list(scored.verdicts),
    'texts': list(scored.texts),
  }


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
