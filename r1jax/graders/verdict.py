"""The result of grading one answer."""

import enum
from typing import NamedTuple


class Verdict(enum.StrEnum):
  """The decision of a grader about an answer.

  CORRECT scores 1; WRONG, UNPARSABLE and REFUSED score 0. TIMEOUT and CRASH say
  nothing about the answer: such a sample has no score and is masked.
  """

  CORRECT = 'correct'
  WRONG = 'wrong'
  UNPARSABLE = 'unparsable'  # It holds nothing that could be an answer.
  REFUSED = 'refused'  # The guard rejected it: grading it would cost too much.
  TIMEOUT = 'timeout'  # The grader did not finish.
  CRASH = 'crash'  # The grader's process died.

  @property
  def score(self) -> float | None:
    """The score of the verdict: 1, 0, or None if it has none."""
    if self in (Verdict.TIMEOUT, Verdict.CRASH):
      return None
    return float(self is Verdict.CORRECT)


class Grade(NamedTuple):
  """A verdict and its score.

  Attributes:
    verdict: The verdict.
    score: Within [0, 1], or None if the answer could not be graded. With partial
      credit a WRONG answer may score between 0 and 1.
  """

  verdict: Verdict
  score: float | None
