"""Grades programs by their tests: extracts the program and runs it sandboxed.

One sandbox serves the whole process. A run that needs it opens it before its
first step, so that a machine without one fails early.
"""

from collections.abc import Sequence
import json
import os
import threading

from r1jax.data.code.cases import CodeTests
from r1jax.graders import code_runner
from r1jax.graders.code_runner import CodeVerdict
from r1jax.graders.verdict import Grade, Verdict
from r1jax.workers.sandbox.sandbox import Sandbox

_MAX_SLOTS = 16
_VERDICT = {
  CodeVerdict.CORRECT: Verdict.CORRECT,
  CodeVerdict.NO_PROGRAM: Verdict.UNPARSABLE,
  CodeVerdict.FORBIDDEN: Verdict.REFUSED,
  CodeVerdict.UNGRADED: Verdict.CRASH,
}  # Any other verdict means that the program is wrong.
# Time limit of a batch, fixed and per program. Whatever is not graded by then
# has no score.
_BATCH_SECS, _PROGRAM_SECS = 60.0, 1.0

_lock = threading.Lock()
_sandbox: Sandbox | None = None


def grade(
  pairs: Sequence[tuple[str | None, str]], partial: bool = False
) -> list[Grade]:
  """Grades each answer by its own tests.

  Args:
    pairs: Answers and their tests (CodeTests as JSON).
    partial: Whether a program that fails scores the share of its tests that it
      passes; then all tests run.

  Raises:
    SandboxUnavailable: There is no sandbox, or it is gone.
  """
  if not pairs:
    return []
  results = code_runner.run_tests_batch(
    [code_runner.extract_program(answer) for answer, _ in pairs],
    [CodeTests.from_json(json.loads(tests)) for _, tests in pairs],
    sandbox(),
    code_runner.GradingOptions(partial=partial),
    total_secs=_BATCH_SECS + _PROGRAM_SECS * len(pairs),
  )
  return [
    Grade(_VERDICT.get(result.verdict, Verdict.WRONG), result.score)
    for result in results
  ]


def sandbox() -> Sandbox:
  """Returns the process's sandbox, which the first call opens.

  Raises:
    SandboxUnavailable: No tier holds on this machine; says why.
  """
  global _sandbox
  with _lock:
    if _sandbox is None:
      slots = min(len(os.sched_getaffinity(0)), _MAX_SLOTS)
      _sandbox = Sandbox(slots)
    return _sandbox


def tier() -> str:
  """Returns the tier of the open sandbox, '' if none is open."""
  return _sandbox.tier if _sandbox else ''


def shutdown():
  """Closes the sandbox; the next call of `grade` opens another."""
  global _sandbox
  with _lock:
    if _sandbox is not None:
      _sandbox.close()
    _sandbox = None
