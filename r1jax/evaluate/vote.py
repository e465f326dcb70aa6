"""Majority voting over final answers (cons@k, arXiv 2203.11171).

A vote is the final answer of a completion, extracted as its grader does, so
that wording never splits a candidate. Two answers are one candidate if the
grader finds them equal: '\\frac12', '0.5' and '1/2' are three votes for one half.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from r1jax.data.datasets import GENERAL
from r1jax.data.text.response_formats import ResponseParser
from r1jax.graders import dispatch
from r1jax.graders.verdict import Verdict

# Pairs of answers to one problem that the grader compares, at most; 28 distinct
# answers need no more. Further answers are equal only as texts, rare ones first.
MAX_COMPARISONS = 400
# Verdicts of answers that the grader could not read in the time it has: it is
# not asked again, and they are equal only as texts.
_COSTLY = (Verdict.REFUSED, Verdict.TIMEOUT, Verdict.CRASH)
_INTEGER = re.compile(r'-?\d{1,30}')


@dataclasses.dataclass(frozen=True)
class Vote:
  """The final answer of a completion.

  Attributes:
    answer: The final answer; never blank.
    source: Name of its grader.
    comparable: Whether the grader is asked whether it equals another one;
      otherwise answers are compared as texts.
  """

  answer: str
  source: str
  comparable: bool


class Poll:
  """The votes of all samples of each problem, for elections among some."""

  def __init__(self, groups: Sequence[list[dict]], parser: ResponseParser):
    """Finds the candidates.

    Args:
      groups: Sample records, one list a problem; see evaluator.sample_records.
        A record without a source or a gold answer is one of mathematics.
      parser: Finds the answer in a completion.
    """
    self._groups = groups
    self._votes = [
      votes_of(
        [_graded_text(record, parser) for record in records],
        [record.get('source', 'math') for record in records],
        [record.get('gold', '') for record in records],
        [record['verdict'] for record in records],
      )
      for records in groups
    ]
    self._candidates = candidates_of(self._votes)

  def is_correct(self, problem: int, samples: Sequence[int]) -> bool:
    """Returns whether the answer that some samples elect is right.

    The candidate of most votes is elected, and of equals the one whose first
    vote came first. Its verdict is that of most of its votes that have a score.
    Without any vote or any score it counts as wrong.

    Args:
      problem: Number of the problem.
      samples: Numbers of the samples that vote.
    """
    candidates = self._candidates[problem]
    # Counter keeps the order of occurrence among equals.
    count = Counter(candidates[i] for i in samples if candidates[i] is not None)
    if not count:
      return False
    elected, _ = count.most_common(1)[0]
    verdicts = Counter(
      verdict
      for i in samples
      if candidates[i] == elected
      and Verdict(verdict := self._groups[problem][i]['verdict']).score
      is not None
    )
    return bool(verdicts) and verdicts.most_common(1)[0][0] == Verdict.CORRECT


def _graded_text(record: dict, parser: ResponseParser) -> str | None:
  source = record.get('source', 'math')
  parsed = parser.parse(record['completion'])
  if source == GENERAL:
    return parsed.answer
  return dispatch.graded_text(parsed, source)


def majority_correct(
  groups: Sequence[list[dict]], parser: ResponseParser
) -> list[bool]:
  """Returns whether the most frequent answer to each problem is right (cons@k).

  Completions without an answer, or with one in which the grader finds nothing
  to grade, do not vote. One that the grader failed on votes as any other.

  Args:
    groups: Sample records, one list a problem; see Poll.
    parser: Finds the answer in a completion.
  """
  poll = Poll(groups, parser)
  return [
    poll.is_correct(p, range(len(records))) for p, records in enumerate(groups)
  ]


def votes_of(
  answers: Sequence[str | None],
  sources: Sequence[str],
  golds: Sequence[str],
  verdicts: Sequence[str | None],
) -> list[Vote | None]:
  """Returns the vote of each sample of a problem; None where it has none.

  Gold answers say how answers are compared, and choose none of them.

  Args:
    answers: The text where the response format has the answer.
    sources: The names of the graders.
    golds: The gold answers.
    verdicts: The grader's verdicts; None for answers that are not graded yet.
  """
  compares: dict[tuple[str, str], bool] = {}
  votes: list[Vote | None] = []
  for answer, source, gold, verdict in zip(
    answers, sources, golds, verdicts, strict=True
  ):
    votes.append(None)
    if source == GENERAL or verdict == Verdict.UNPARSABLE:
      continue
    final = dispatch.final_answer(answer, source)
    if not final:
      continue
    if (source, gold) not in compares:
      compares[source, gold] = dispatch.compares_answers(source, gold)
    comparable = (
      compares[source, gold]
      and verdict not in _COSTLY
      and not dispatch.is_too_expensive(final, source)
    )
    votes[-1] = Vote(final, source, comparable)
  return votes


def candidates_of(
  votes: Sequence[Sequence[Vote | None]],
) -> list[list[int | None]]:
  """Returns the number of the candidate that each vote of each problem is for.

  Texts are taken in the order of their frequency, then of their occurrence, and
  each joins the first candidate that it equals. All problems are compared side
  by side, since the grader works in several processes.
  """
  ballots = [_Ballot(own) for own in votes]
  while asked := [b for b in ballots if b.advance()]:
    for is_reversed in (False, True):  # A grader may accept one way only.
      pairs = [(b, p) for b in asked for p in b.pairs if p not in b.equal]
      items: list[Any] = [
        (*(reversed(pair) if is_reversed else pair), b.source_of[pair[0]])
        for b, pair in pairs
      ]
      for (b, pair), verdict in zip(pairs, dispatch.verdicts(items)):
        if verdict is Verdict.CORRECT:
          b.equal.add(pair)
    for b in asked:
      b.settle()
  return [
    [ballot.candidate_of[vote.answer] if vote else None for vote in own]
    for ballot, own in zip(ballots, votes)
  ]


class _Ballot:
  """The distinct answers to one problem, on their way to candidates.

  Attributes:
    source_of: The grader of each distinct answer.
    candidate_of: The candidate of each answer that has one.
    pairs: Pairs (next answer, answer of a candidate) for the grader to compare.
    equal: Pairs that are equal.
  """

  def __init__(self, votes: Sequence[Vote | None]):
    known = [vote for vote in votes if vote]
    self.source_of = {vote.answer: vote.source for vote in known}
    self._as_text = {vote.answer for vote in known if not vote.comparable}
    count = Counter(vote.answer for vote in known)
    self._waiting = [answer for answer, _ in count.most_common()]
    self._first_of: list[str] = []  # The first answer of each candidate.
    self._left = MAX_COMPARISONS
    self.candidate_of: dict[str, int] = {}
    self.pairs: list[tuple[str, str]] = []
    self.equal: set[tuple[str, str]] = set()

  def advance(self) -> bool:
    """Goes on to the next answer that the grader must compare, if any."""
    while self._waiting:
      new = self._waiting[0]
      self.pairs = [
        (new, old) for old in self._first_of if self._is_open(new, old)
      ][: self._left]
      self._left -= len(self.pairs)
      if self.pairs:
        return True
      self.settle()
    return False

  def settle(self):
    """Gives the next answer its candidate."""
    new = self._waiting.pop(0)
    number = next(
      (i for i, old in enumerate(self._first_of) if (new, old) in self.equal),
      len(self._first_of),
    )
    if number == len(self._first_of):
      self._first_of.append(new)
    self.candidate_of[new] = number

  def _is_open(self, new: str, old: str) -> bool:
    """Returns whether the grader must be asked if two answers are equal."""
    if {new, old} & self._as_text or self.source_of[new] != self.source_of[old]:
      return False
    if self.source_of[new] == 'math' and all(
      _INTEGER.fullmatch(answer) for answer in (new, old)
    ):
      if int(new) == int(old):  # Such as 7 and 07.
        self.equal.add((new, old))
      return False
    return True
