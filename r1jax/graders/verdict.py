"""What a grader says of one answer."""

import enum
from typing import NamedTuple


class Verdict(enum.StrEnum):
  """CORRECT scores 1; WRONG, UNPARSABLE and REFUSED score 0. TIMEOUT and CRASH
  say nothing of the answer: such a sample has no score and is masked."""

  CORRECT = 'correct'
  WRONG = 'wrong'
  UNPARSABLE = 'unparsable'  # Nothing in it that could be an answer.
  REFUSED = 'refused'  # By the guard: it would only keep the grader busy.
  TIMEOUT = 'timeout'  # The grader did not end.
  CRASH = 'crash'  # The grader's process died.

  @property
  def score(self) -> float | None:
    """1, 0, or None where there is no score."""
    if self in (Verdict.TIMEOUT, Verdict.CRASH):
      return None
    return float(self is Verdict.CORRECT)


class Grade(NamedTuple):
  """A verdict, and what it is worth: where a grader gives partial credit, a
  wrong answer may score between 0 and 1."""

  verdict: Verdict
  score: float | None
