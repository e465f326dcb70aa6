"""Grades IFEval in worker processes, and reports its four accuracies.

A response is right if it follows every instruction of its prompt strictly, which
is IFEval's prompt-level strict accuracy; `check` returns all verdicts of stored
responses, from which instructions.accuracies computes the others.
"""

from collections.abc import Sequence
import threading

from r1jax import registry
from r1jax.graders import instructions
from r1jax.graders.instructions import Followed
from r1jax.graders.verdict import Grade, Verdict
from r1jax.workers.job_queue import JobFailure, WorkerLimits
from r1jax.workers.pool import WorkerPool

# In units of a typical response of some thousand characters, 0.02 CPU-seconds:
# one that is read in several languages takes up to 0.5 s.
_LIMITS = WorkerLimits(
  first_attempt=50,
  deadline=250,
  budget_capacity=500,
  budget_refill=0.2,
  typical_job_secs=0.02,
)
# Time limit of a batch, fixed and per response; what is left has no score.
_BATCH_SECS, _RESPONSE_SECS = 60.0, 1.0
_MAX_CHARS = 200_000  # A longer response is refused.
_lock = threading.Lock()
_pool: WorkerPool | None = None


def check(pairs: Sequence[tuple[str | None, str]]) -> list[Followed | Verdict]:
  """Checks responses against the instructions of their prompts.

  Args:
    pairs: Responses, each with its gold answer: JSON of instruction_id_list and
      kwargs.

  Returns:
    For each response what it follows, or the verdict UNPARSABLE for none,
    REFUSED for one that is too long, and TIMEOUT or CRASH for one that could
    not be checked.
  """
  jobs = {
    (response, gold): {'response': response, 'gold': gold}
    for response, gold in pairs
    if response and response.strip() and len(response) <= _MAX_CHARS
  }
  results: dict = {}
  if jobs:
    total = _BATCH_SECS + _RESPONSE_SECS * len(jobs)
    results = dict(zip(jobs, _workers().map(list(jobs.values()), total)))
  return [_outcome(pair[0], results.get(pair)) for pair in pairs]


def _outcome(response: str | None, result) -> Followed | Verdict:
  if isinstance(result, JobFailure):
    return Verdict(result.kind)
  if result is None:
    is_long = len((response or '').strip()) > 0
    return Verdict.REFUSED if is_long else Verdict.UNPARSABLE
  return Followed(tuple(result['strict']), tuple(result['loose']))


@registry.grader(
  'ifeval', batch=True, gold_is_answer=False, whole_response=True
)
def _ifeval(
  pairs: Sequence[tuple[str | None, str]], partial: bool
) -> list[Grade]:
  del partial
  grades = []
  for outcome in check(pairs):
    if isinstance(outcome, Followed):
      right = all(outcome.strict)
      outcome = Verdict.CORRECT if right else Verdict.WRONG
    grades.append(Grade(outcome, outcome.score))
  return grades


def _workers() -> WorkerPool:
  """Returns the worker pool of all threads, which the first call creates."""
  global _pool
  with _lock:
    if _pool is None:
      _pool = WorkerPool(instructions.__name__, _LIMITS)
    return _pool


def shutdown():
  """Stops the worker processes; the next call of `check` starts others."""
  global _pool
  with _lock:
    if _pool is not None:
      _pool.close()
    _pool = None
