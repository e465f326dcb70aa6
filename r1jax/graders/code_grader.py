"""Grading programs by their tests: find the program, run it in the sandbox.

One sandbox serves a process. A run that needs it opens it before its first
step, so that a machine without one is told then.
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
}  # Any other is a wrong program.
# A batch ends: what is not graded by then has no score.
_BATCH_SECS, _PROGRAM_SECS = 60.0, 1.0

_lock = threading.Lock()
_sandbox: Sandbox | None = None


def grade(
  pairs: Sequence[tuple[str | None, str]], partial: bool = False
) -> list[Grade]:
  """A verdict for each answer and its tests (CodeTests, in JSON).

  Args:
    pairs: Answers and their tests.
    partial: A program that fails scores the share of its tests that it passes;
      all of them run.

  Raises:
    SandboxUnavailable: there is none, or none any more.
  """
  if not pairs:
    return []
  found = code_runner.run_tests_batch(
    [code_runner.extract_program(answer) for answer, _ in pairs],
    [CodeTests.from_json(json.loads(tests)) for _, tests in pairs],
    sandbox(),
    code_runner.GradingOptions(partial=partial),
    total_secs=_BATCH_SECS + _PROGRAM_SECS * len(pairs),
  )
  return [
    Grade(_VERDICT.get(each.verdict, Verdict.WRONG), each.score)
    for each in found
  ]


def sandbox() -> Sandbox:
  """The sandbox, opened at the first question.

  Raises:
    SandboxUnavailable: no tier holds on this machine; says why.
  """
  global _sandbox
  with _lock:
    if _sandbox is None:
      slots = min(len(os.sched_getaffinity(0)), _MAX_SLOTS)
      _sandbox = Sandbox(slots)
    return _sandbox


def tier() -> str:
  """Of the sandbox that is open, or ''."""
  return _sandbox.tier if _sandbox else ''


def shutdown():
  """Ends the sandbox; the next question opens another."""
  global _sandbox
  with _lock:
    if _sandbox is not None:
      _sandbox.close()
    _sandbox = None
