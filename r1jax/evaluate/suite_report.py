"""The results of suites: numbers from stored completions, a table, JSON.

Everything is computed from the records on the disk, so that a report can be
made again, and checked, without the model.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import numpy as np

from r1jax.data.text.response_formats import ResponseParser
from r1jax.evaluate.evaluator import divisors, pass_at_k_metrics
from r1jax.evaluate.intervals import Interval, bootstrap
from r1jax.evaluate.vote import majority_correct
from r1jax.graders import ifeval_grader, instructions
from r1jax.graders.verdict import Verdict

IFEVAL = 'ifeval'
_WITHOUT_VOTES = {'code', IFEVAL}  # Graders of programs and of whole texts.


@dataclasses.dataclass(frozen=True)
class SuiteResult:
  """The numbers of one suite.

  Attributes:
    suite: Its name.
    num_problems: P.
    available: Problems of the whole suite.
    excluded: Rows of it that could not be read or graded.
    num_samples: k.
    pass_at_1: Mean over problems of the share of right completions.
    pass_at_k: Unbiased pass@k by k, for every divisor of the samples.
    consensus: cons@k: share of the problems whose most frequent answer is
      right, by what the grader calls equal; None if k = 1, and where answers
      are programs or texts, which have no votes.
    format: Share of completions in the response format.
    truncated: Share cut off at the limit of tokens.
    unparsable: Share in which the grader found no answer.
    unscorable: Share on which the grader failed; they count as wrong.
    mean_tokens: Mean tokens of a completion.
    problems: One {'id', 'correct', 'consensus'} a problem: right completions,
      and whether the most frequent answer is right, or None.
    more: Further numbers of the suite; for IFEval its four accuracies.
  """

  suite: str
  num_problems: int
  available: int
  excluded: int
  num_samples: int
  pass_at_1: Interval
  pass_at_k: dict[int, float]
  consensus: Interval | None
  format: float
  truncated: float
  unparsable: float
  unscorable: float
  mean_tokens: float
  problems: list[dict[str, Any]]
  more: dict[str, float] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict:
    """Returns it as JSON, with intervals as {'mean', 'low', 'high'}."""
    found = dataclasses.asdict(self)
    found['pass_at_1'] = self.pass_at_1._asdict()
    found['consensus'] = self.consensus and self.consensus._asdict()
    found['pass_at_k'] = {str(k): x for k, x in self.pass_at_k.items()}
    return found

  @classmethod
  def from_json(cls, found: dict) -> 'SuiteResult':
    """Returns what `to_json` was called on."""
    voted = found['consensus']
    return cls(
      **found
      | {
        'pass_at_1': Interval(**found['pass_at_1']),
        'consensus': voted and Interval(**voted),
        'pass_at_k': {int(k): x for k, x in found['pass_at_k'].items()},
      }
    )


def result(
  suite: str,
  records: Sequence[dict],
  parser: ResponseParser,
  num_samples: int,
  available: int = 0,
  excluded: int = 0,
) -> SuiteResult:
  """Returns the numbers of a suite.

  Args:
    suite: Its name.
    records: Its P · k stored completions, sorted by problem and sample.
    parser: Finds the answer in a completion, for votes.
    num_samples: k.
    available: Problems of the whole suite; by default those of the records.
    excluded: Rows that could not be read or graded.
  """
  k = num_samples
  groups = [list(records[i : i + k]) for i in range(0, len(records), k)]
  for group in groups:
    assert [r['sample'] for r in group] == list(range(k)), group[0]['id']
    assert len({r['problem'] for r in group}) == 1, group[0]['id']
  correct_PG = np.array(
    [[r['verdict'] == Verdict.CORRECT for r in group] for group in groups]
  )
  votes = k > 1 and not {r['source'] for r in records} & _WITHOUT_VOTES
  voted: list = (
    majority_correct(groups, parser) if votes else [None] * len(groups)
  )
  metrics = pass_at_k_metrics(correct_PG, divisors(k))
  mean = lambda values: float(np.mean(list(values)))
  responses = [
    (r['answer'], r['gold']) for r in records if r['source'] == IFEVAL
  ]
  return SuiteResult(
    suite=suite,
    num_problems=len(groups),
    available=available or len(groups),
    excluded=excluded,
    num_samples=k,
    pass_at_1=bootstrap(correct_PG.mean(1)),
    pass_at_k={n: metrics[f'eval/pass@{n}'] for n in divisors(k)},
    consensus=bootstrap(voted) if votes else None,
    format=mean(r['format'] for r in records),
    truncated=mean(r['truncated'] for r in records),
    unparsable=mean(r['verdict'] == Verdict.UNPARSABLE for r in records),
    unscorable=mean(r['accuracy'] is None for r in records),
    mean_tokens=mean(r['tokens'] for r in records),
    problems=[
      {
        'id': g[0]['id'],
        'correct': int(n),
        'consensus': bool(vote) if votes else None,
      }
      for g, n, vote in zip(groups, correct_PG.sum(1), voted)
    ],
    more=_instruction_accuracies(responses) if responses else {},
  )


def _instruction_accuracies(
  responses: Sequence[tuple[str | None, str]],
) -> dict[str, float]:
  """Returns IFEval's four accuracies; a response that was not read follows none.

  Args:
    responses: Each with its gold answer.
  """
  checked = []
  for (_, gold), outcome in zip(responses, ifeval_grader.check(responses)):
    if isinstance(outcome, Verdict):
      count = len(json.loads(gold)['instruction_id_list'])
      outcome = instructions.Followed((False,) * count, (False,) * count)
    checked.append(outcome)
  return instructions.accuracies(checked)


def notes(results: Sequence[SuiteResult]) -> list[str]:
  """Returns a line for each suite that has further numbers."""
  return [
    f'{r.suite}: '
    + ', '.join(f'{name} {value:.3f}' for name, value in r.more.items())
    for r in results
    if r.more
  ]


_COLUMNS = (
  'suite',
  'problems',
  'k',
  'pass@1',
  '95 % interval',
  'pass@k',
  'cons@k',
  'truncated',
  'unparsable',
  'format',
  'tokens',
)


def table(results: Sequence[SuiteResult]) -> list[tuple[str, ...]]:
  """Returns the rows of a table, the names of its columns first."""
  return [_COLUMNS, *map(_row, results)]


def _row(r: SuiteResult) -> tuple[str, ...]:
  problems = f'{r.num_problems}'
  if r.num_problems + r.excluded < r.available:
    problems = f'first {r.num_problems} of {r.available}'
  elif r.excluded:
    problems += f' ({r.excluded} left out)'
  return (
    r.suite,
    problems,
    str(r.num_samples),
    f'{r.pass_at_1.mean:.3f}',
    f'{r.pass_at_1.low:.3f}–{r.pass_at_1.high:.3f}',
    f'{r.pass_at_k[r.num_samples]:.3f}',
    f'{r.consensus.mean:.3f}' if r.consensus else '–',
    f'{r.truncated:.3f}',
    f'{r.unparsable:.3f}',
    f'{r.format:.3f}',
    f'{r.mean_tokens:.0f}',
  )


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table as text for a terminal; the first column is of names."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for row in rows:
    name, *numbers = (
      (cell.ljust if i == 0 else cell.rjust)(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    )
    lines.append('  '.join([name, *numbers]).rstrip())
  return '\n'.join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table as Markdown."""
  head, *body = (f'| {" | ".join(row)} |' for row in rows)
  return '\n'.join([head, '|---' * len(rows[0]) + '|', *body]) + '\n'
