"""Grades programs by their tests: extracts the program and runs it sandboxed.

One sandbox serves the whole process. A run that needs it opens it before its
first step, so that a machine without one fails early.
"""

from collections.abc import Sequence
import json
import logging
import os
import threading

from r1jax.data.code.cases import CodeTests
from r1jax.graders import code_runner
from r1jax.graders.code_program import CodeVerdict, GradingOptions
from r1jax.graders.verdict import Grade, Verdict
from r1jax.workers.sandbox.sandbox import Sandbox

_MAX_SLOTS = 16
_VERDICT = {
  CodeVerdict.CORRECT: Verdict.CORRECT,
  CodeVerdict.NO_PROGRAM: Verdict.UNPARSABLE,
  CodeVerdict.FORBIDDEN: Verdict.REFUSED,
  CodeVerdict.UNGRADED: Verdict.CRASH,
}  # Any other verdict means that the program is wrong.
# Wall-clock limit of a batch, fixed and for each program of a slot: only a machine
# that is broken reaches it. Whatever is not graded by then has no score.
_BATCH_SECS, _PROGRAM_SECS = 300.0, 60.0

_log = logging.getLogger(__name__)
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
  tests = [CodeTests.from_json(json.loads(text)) for _, text in pairs]
  programs = [
    code_runner.extract_program(answer, each)
    for (answer, _), each in zip(pairs, tests)
  ]
  box = sandbox()
  results = code_runner.run_tests_batch(
    programs,
    tests,
    box,
    GradingOptions(partial=partial),
    total_secs=_BATCH_SECS + _PROGRAM_SECS * len(pairs) / len(box),
  )
  ungraded = [r for r in results if r.verdict is CodeVerdict.UNGRADED]
  if ungraded:
    _log.warning(
      'code grader: %d of %d programs have no score; the first: %s',
      len(ungraded),
      len(results),
      ungraded[0].message,
    )
  return [
    Grade(_VERDICT.get(result.verdict, Verdict.WRONG), result.score)
    for result in results
  ]


def open_sandbox(packages: Sequence[str] = ()) -> Sandbox:
  """Opens the process's sandbox, or another one if other packages are asked for.

  Args:
    packages: Installed packages that programs may import beside the standard
      library.

  Raises:
    SandboxUnavailable: No tier holds on this machine; says why.
    UserError: a package is not installed.
  """
  global _sandbox
  with _lock:
    if _sandbox is not None and _sandbox.packages != tuple(packages):
      _sandbox.close()
      _sandbox = None
    if _sandbox is None:
      slots = min(len(os.sched_getaffinity(0)), _MAX_SLOTS)
      _sandbox = Sandbox(slots, packages=packages)
    return _sandbox


def sandbox() -> Sandbox:
  """Returns the process's sandbox; opens one if none is open."""
  return _sandbox or open_sandbox()


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
