"""Compares two evaluations problem by problem.

Both have answered the same problems, so that differences are paired: an interval
of their mean, and McNemar's test of how many problems each alone solves.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from r1jax.errors import UserError
from r1jax.evaluate.intervals import Interval, bootstrap, mcnemar_p
from r1jax.evaluate.suite_report import SuiteResult

_SHOWN_IDS = 3


@dataclasses.dataclass(frozen=True)
class Flip:
  """A problem that one of two policies solves.

  Attributes:
    id: The problem.
    before, after: Share of right completions of each policy.
  """

  id: str
  before: float
  after: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two policies on one suite.

  A policy solves a problem if its most frequent answer is right; where there are
  no votes, if at least half of its completions are.

  Attributes:
    suite: The suite.
    num_problems: P.
    before, after: pass@1 of each policy.
    difference: Mean difference of pass@1 over problems, paired.
    lost: Problems that only the first policy solves, the clearest ones first.
    won: Problems that only the second one solves.
    p: Two-sided p value of McNemar's exact test on `lost` and `won`.
  """

  suite: str
  num_problems: int
  before: Interval
  after: Interval
  difference: Interval
  lost: list[Flip]
  won: list[Flip]
  p: float


def compare(one: SuiteResult, other: SuiteResult) -> Comparison:
  """Compares two policies on one suite.

  Args:
    one: The first policy's result.
    other: The second one's.

  Raises:
    UserError: they have answered different problems.
  """
  ids, others = ([p['id'] for p in r.problems] for r in (one, other))
  if ids != others:
    raise UserError(_difference(one.suite, ids, others))
  share_P, other_P = (
    np.array([p['correct'] for p in r.problems]) / r.num_samples
    for r in (one, other)
  )
  solved_P, other_solved_P = (_solved(r) for r in (one, other))
  flips = lambda chosen_P: sorted(
    (
      Flip(ids[p], float(share_P[p]), float(other_P[p]))
      for p in np.flatnonzero(chosen_P)
    ),
    key=lambda flip: -abs(flip.after - flip.before),
  )
  lost = flips(solved_P & ~other_solved_P)
  won = flips(~solved_P & other_solved_P)
  return Comparison(
    one.suite,
    len(ids),
    one.pass_at_1,
    other.pass_at_1,
    bootstrap(other_P - share_P),
    lost,
    won,
    mcnemar_p(len(lost), len(won)),
  )


def _solved(found: SuiteResult) -> np.ndarray:
  if found.consensus:
    return np.array([problem['consensus'] for problem in found.problems])
  correct_P = np.array([problem['correct'] for problem in found.problems])
  return correct_P >= found.num_samples / 2


def _difference(suite: str, ids: Sequence[str], others: Sequence[str]) -> str:
  """Says how the problems of two evaluations differ."""
  first = [name for name in ids if name not in set(others)]
  second = [name for name in others if name not in set(ids)]
  shown = ', '.join((first or second)[:_SHOWN_IDS])
  which = 'first' if first else 'second'
  reason = (
    f'only the {which} has {shown}' if shown else 'their order is another one'
  )
  return (
    f'compare: {suite}: the first has {len(ids)} problems and the second '
    f'{len(others)}, and they are not the same: {reason}; evaluate both on the '
    'same problems'
  )


_COLUMNS = (
  'suite',
  'problems',
  'A pass@1',
  'B pass@1',
  'B − A',
  '95 % interval',
  'only A solves',
  'only B solves',
  'McNemar p',
)


def table(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
  """Returns the rows of a table, the names of its columns first."""
  return [
    _COLUMNS,
    *(
      (
        c.suite,
        str(c.num_problems),
        f'{c.before.mean:.3f}',
        f'{c.after.mean:.3f}',
        f'{c.difference.mean:+.3f}',
        f'{c.difference.low:+.3f} – {c.difference.high:+.3f}',
        str(len(c.lost)),
        str(len(c.won)),
        f'{c.p:.3g}',
      )
      for c in found
    ),
  ]


def to_json(found: Comparison) -> dict:
  """Returns a comparison as JSON, with intervals as {'mean', 'low', 'high'}."""
  return dataclasses.asdict(found) | {
    name: getattr(found, name)._asdict()
    for name in ('before', 'after', 'difference')
  }
