"""Runs programs on their tests in the sandbox, one or a batch."""

from collections.abc import Sequence
from concurrent import futures
import math
import re
import threading
import time

from r1jax.data.code.cases import CallCase, CodeTests
from r1jax.graders import code_extract
from r1jax.graders.code_budget import Attempt, BatchBudget
from r1jax.graders.code_program import (
  CodeVerdict,
  GradingOptions,
  ProgramResult,
  ProgramRun,
)
from r1jax.workers.sandbox.sandbox import Sandbox

_NAME = re.compile(r'\w+')


def run_tests(
  program: str | None,
  tests: CodeTests,
  sandbox: Sandbox,
  options: GradingOptions = GradingOptions(),  # noqa: B008 (frozen)
) -> ProgramResult:
  """Runs one program on its tests, once a slot of the sandbox is free.

  Raises:
    SandboxUnavailable: The sandbox is gone, so nothing more can be scored.
  """
  return run_tests_batch([program], [tests], sandbox, options)[0]


def run_tests_batch(
  programs: Sequence[str | None],
  tests: Sequence[CodeTests],
  sandbox: Sandbox,
  options: GradingOptions = GradingOptions(),  # noqa: B008 (frozen)
  total_secs: float = math.inf,
) -> list[ProgramResult]:
  """Runs programs, each on its own tests, on all slots at once.

  A program that takes much longer than the others is a time-out, at the latest
  after its own limits, and earlier where the time of a batch full of them is used
  up; see code_budget.py.

  Args:
    programs: Programs; None where an answer holds none.
    tests: The tests of each program.
    sandbox: The sandbox that runs them.
    options: Limits and scoring.
    total_secs: Wall-clock limit of the call. A program that waits or runs when
      it is over is UNGRADED.

  Raises:
    SandboxUnavailable: See `run_tests`.
  """
  runs = [
    ProgramRun(program, each, options)
    for program, each in zip(programs, tests, strict=True)
  ]
  wall_end = time.monotonic() + total_secs
  _Batch(
    [run for run in runs if not run.is_finished], sandbox, options, wall_end
  ).run()
  return [run.result() for run in runs]


class _Batch:
  """Runs the attempts of a batch on the slots of the sandbox."""

  def __init__(
    self,
    runs: Sequence[ProgramRun],
    sandbox: Sandbox,
    options: GradingOptions,
    wall_end: float,
  ):
    """Starts without an attempt.

    Args:
      runs: Programs, none of which is finished.
      sandbox: The sandbox that runs them.
      options: Their limits.
      wall_end: Value of time.monotonic() after which a run is UNGRADED.
    """
    self._runs, self._sandbox, self._wall_end = runs, sandbox, wall_end
    self._budget = BatchBudget(
      [run.tests.id for run in runs], len(sandbox), options.case_secs
    )
    self._changed = threading.Condition()  # Of the budget.
    self._stopped = False

  def run(self):
    """Finishes all runs."""
    with futures.ThreadPoolExecutor(len(self._sandbox)) as pool:
      workers = [
        pool.submit(self._work, slot) for slot in range(len(self._sandbox))
      ]
      try:
        for worker in workers:
          worker.result()
      finally:
        self._stop()
    for run in self._runs:
      if not run.is_finished:
        run.end(
          CodeVerdict.TIMEOUT,
          'it takes much longer than the others of a batch whose time is used up',
        )

  def _work(self, number: int):
    """Runs attempts until there are none, as slot `number` of the budget."""
    try:
      while attempt := self._next_attempt(number):
        run = self._runs[attempt.index]
        secs, wasted_secs = run.secs, run.wasted_secs
        self._attempt(run, attempt.secs)
        with self._changed:
          self._budget.record(
            number, run.secs - secs, run.wasted_secs - wasted_secs, run.outcome
          )
          self._changed.notify_all()
    except BaseException:
      self._stop()
      raise

  def _next_attempt(self, number: int) -> Attempt | None:
    """Waits for an attempt; returns None if there are no more."""
    with self._changed:
      while not self._stopped:
        attempt = self._budget.next_attempt(number)
        if attempt or not self._budget.is_running:
          return attempt
        self._changed.wait()
    return None

  def _stop(self):
    """Lets no further attempt start."""
    with self._changed:
      self._stopped = True
      self._changed.notify_all()

  def _attempt(self, run: ProgramRun, secs: float):
    wait = self._wall_end - time.monotonic()
    try:
      with self._sandbox.slot(
        None if wait == math.inf else max(wait, 0)
      ) as slot:
        if time.monotonic() >= self._wall_end:
          raise TimeoutError
        run.attempt(slot, secs, self._wall_end)
    except TimeoutError:
      run.end(CodeVerdict.UNGRADED, 'no time was left for it')


def extract_program(
  answer: str | None, tests: CodeTests | None = None
) -> str | None:
  """Returns the program in an answer; see code_extract.find_program.

  Args:
    answer: The answer.
    tests: Its tests, which tell what the program must define.
  """
  return code_extract.find_program(answer, _entry_name(tests))


def _entry_name(tests: CodeTests | None) -> str:
  """Returns the name that the calls of tests need, '' for scripts."""
  for case in tests.cases if tests else ():
    if isinstance(case, CallCase) and (name := _NAME.match(case.call)):
      return name[0]
  return ''
