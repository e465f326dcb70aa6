"""Runs one program on its tests in the sandbox and decides outside of it.

Inputs go into the sandbox one at a time and values come back; the expected
values are known only here (`code_compare`). So a program cannot forge a verdict:
it passes a case by sending the right value for it, and in no other way.
"""

import contextlib
import dataclasses
import enum
import math
import time

from r1jax.data.code.cases import CallCase, CodeTests, StdioCase
from r1jax.graders import code_compare
from r1jax.graders.code_budget import Outcome
from r1jax.workers.sandbox.slot import CallSession, Reply, Slot

MAX_PROGRAM_CHARS = 100_000


class CodeVerdict(enum.StrEnum):
  """The result of all cases of a program, or the first reason why it fails.

  All but UNGRADED are statements about the program: it had the time and memory
  that it is entitled to.
  """

  CORRECT = 'correct'
  WRONG = 'wrong'  # A value or an output differs from the expected one.
  ERROR = 'error'  # It raised, exited or does not compile.
  TIMEOUT = 'timeout'
  MEMORY = 'memory'
  OUTPUT = 'output'  # It wrote more than is allowed.
  FORBIDDEN = 'forbidden'  # It used something that the sandbox forbids.
  NO_PROGRAM = 'no_program'  # The answer holds no program.
  UNGRADED = 'ungraded'  # The sandbox failed, or the batch ran out of time.


@dataclasses.dataclass(frozen=True)
class GradingOptions:
  """Limits and scoring of a program's tests.

  Times are those of workers/clock.py: seconds in which the program computes or
  sleeps, but not those in which it waits for a core.

  Attributes:
    case_secs: Limit of one call or one run on one input, and of loading the
      program. A program ends at the first limit that it exceeds.
    program_secs: Limit of all cases of a program.
    partial: Whether the score is the share of cases passed. Otherwise a program
      must pass all cases, and the first failure ends the run.
  """

  case_secs: float = 5.0
  program_secs: float = 20.0
  partial: bool = False


@dataclasses.dataclass(frozen=True)
class ProgramResult:
  """The outcome of a program's tests.

  Attributes:
    verdict: Verdict of the first case that failed; CORRECT if none did.
    passed: Number of cases passed. The cases after a time-out are not run and
      count as not passed; without partial credit, those after any failure.
    total: Number of cases.
    score: Within [0, 1], or None if UNGRADED: such a sample is masked.
    message: Message of the first failure; the program may have written it.
    secs: Seconds that the program used, of the kind that its limits count.
  """

  verdict: CodeVerdict
  passed: int
  total: int
  score: float | None
  message: str = ''
  secs: float = 0.0

  @property
  def share(self) -> float:
    """The share of cases passed."""
    return self.passed / self.total


class _Suspended(Exception):
  """A case exceeded the limit of an attempt, but not that of the program."""


class ProgramRun:
  """A program on its tests, in one or several attempts.

  An attempt that ends early leaves the cases that are not decided to the next
  one.

  Attributes:
    tests: The tests.
    is_finished: Whether the verdict is known.
    secs: Seconds that loading the program and its decided cases took.
    wasted_secs: Seconds of cases that ran out of time.
  """

  def __init__(
    self, program: str | None, tests: CodeTests, options: GradingOptions
  ):
    self.tests, self._options = tests, options
    self._program = program or ''
    self._cases = list(tests.cases)
    self._passed = 0
    self._verdict, self._message = CodeVerdict.CORRECT, ''
    # Expressions of the relation 'checker', evaluated in the end, where the
    # program never ran; None for a value that no checker accepts.
    self._expressions: list[str | None] = []
    self.is_finished = self._timed_out = False
    self.secs = self.wasted_secs = 0.0
    if not self._program.strip():
      self.end(CodeVerdict.NO_PROGRAM)
    elif len(self._program) > MAX_PROGRAM_CHARS:
      self.end(CodeVerdict.ERROR, 'the program is too long')

  @property
  def outcome(self) -> Outcome:
    """How the last attempt ended."""
    if not self.is_finished:
      return Outcome.SUSPENDED
    if self._timed_out or self._verdict is CodeVerdict.UNGRADED:
      return Outcome.TIMED_OUT
    passes = 2 * self._passed >= len(self.tests.cases)
    return Outcome.PASSED if passes else Outcome.FAILED

  def result(self) -> ProgramResult:
    """Returns the outcome of a run that is finished."""
    score: float | None = float(self._verdict is CodeVerdict.CORRECT)
    if self._verdict is CodeVerdict.UNGRADED:
      score = None
    elif self._options.partial:
      score = self._passed / len(self.tests.cases)
    return ProgramResult(
      self._verdict,
      self._passed,
      len(self.tests.cases),
      score,
      self._message,
      self.secs,
    )

  def end(self, verdict: CodeVerdict, message: str = ''):
    """Ends the run; cases that are not decided count as not passed."""
    self._fail(verdict, message)
    self.is_finished = True

  def attempt(
    self, slot: Slot, secs: float = math.inf, wall_end: float = math.inf
  ):
    """Runs the cases that are left, until all are decided or one takes too long.

    Args:
      slot: The sandbox slot of the program.
      secs: Limit of one case in this attempt, if it is below that of the options.
      wall_end: Value of time.monotonic() after which the run is UNGRADED.
    """
    self._attempt_secs, self._wall_end = secs, wall_end
    with contextlib.suppress(_Suspended):
      if isinstance(self.tests.cases[0], StdioCase):
        self._run_scripts(slot)
      else:
        self._run_calls(slot)
        self._run_checker(slot)
      self.is_finished = True

  def _run_scripts(self, slot: Slot):
    """Runs the program as a script once per case, each in a new process."""
    while self._cases and self._goes_on():
      case = self._cases[0]
      assert isinstance(case, StdioCase)
      reply = slot.run_script(
        self._program,
        case.stdin,
        self._limit(),
        reply_bytes=(64 << 10) + 2 * len(case.stdout),
        prelude=self.tests.prelude,
        wall_end=self._wall_end,
      )
      if self._is_decided(reply):
        self._add(code_compare.outputs_match(str(reply.value), case.stdout))
      self._cases.pop(0)

  def _run_calls(self, slot: Slot):
    """Calls the program in one process, replaced after a case that kills it."""
    sources = [
      (name, text)
      for name, text in (
        ('prelude', self.tests.prelude),
        ('program', self._program),
        ('setup', self.tests.setup),
      )
      if text
    ]
    while self._cases and self._goes_on():
      with slot.call_session(sources, self._limit(), self._wall_end) as session:
        if not self._is_decided(session.loaded):
          self._cases.clear()
          return
        self._call_cases(session)

  def _call_cases(self, session: CallSession):
    while self._cases and self._goes_on():
      case = self._cases[0]
      assert isinstance(case, CallCase)
      reply = session.call(case.call, self._limit(), self._wall_end)
      if self._is_decided(reply):
        if case.relation == 'checker':
          self._expressions.append(
            code_compare.checker_expression(case, reply.value)
          )
        else:
          self._add(code_compare.case_passes(case, reply.value))
      self._cases.pop(0)
      if not reply.alive:
        return

  def _run_checker(self, slot: Slot):
    """Evaluates checker expressions; see code_compare.checker_expression."""
    expressions, self._expressions = self._expressions, []
    source = [('checker', self.tests.checker_source)]
    secs = self._options.case_secs
    with contextlib.ExitStack() as stack:
      session = None
      for expression in expressions:
        if not self._goes_on():
          return
        if expression is None:
          self._add(False)
          continue
        if session is None:
          session = stack.enter_context(
            slot.call_session(source, secs, self._wall_end)
          )
        reply = session.call(expression, secs, self._wall_end)
        if reply.status == 'lost' or time.monotonic() >= self._wall_end:
          self._fail(CodeVerdict.UNGRADED)
        else:
          self._add(reply.value is True)
        if not reply.alive:
          return

  def _limit(self) -> float:
    """Returns the limit of the next request."""
    return min(self._own_limit(), self._attempt_secs)

  def _own_limit(self) -> float:
    """Returns the time to which the program is entitled for the next request."""
    left = max(self._options.program_secs - self.secs, 0.0)
    return min(self._options.case_secs, left)

  def _is_decided(self, reply: Reply) -> bool:
    """Records a reply of the program.

    Returns:
      Whether it has a value that decides the case; otherwise the case fails.

    Raises:
      _Suspended: It has none, because the attempt is over.
    """
    if reply.status == 'timeout':
      if time.monotonic() >= self._wall_end:
        self._fail(CodeVerdict.UNGRADED, 'no time was left for it')
        return False
      self.wasted_secs += reply.secs
      if self._attempt_secs < self._own_limit():
        raise _Suspended
    else:
      self.secs += reply.secs
    if reply.status == 'lost':
      self._fail(CodeVerdict.UNGRADED, 'the sandbox failed')
    elif reply.status != 'ok':
      self._fail(CodeVerdict(reply.status), reply.message)
    return reply.status == 'ok'

  def _goes_on(self) -> bool:
    """Whether further cases are run."""
    if self._verdict is CodeVerdict.CORRECT:
      return True
    is_stopped = self._timed_out or self._verdict is CodeVerdict.UNGRADED
    return self._options.partial and not is_stopped

  def _add(self, passed: bool):
    self._passed += passed
    if not passed:
      self._fail(CodeVerdict.WRONG)

  def _fail(self, verdict: CodeVerdict, message: str = ''):
    """Records a failure; the first one counts, but UNGRADED always.

    After some no further case is run, even with partial credit: an endless loop
    would take its limit again and again.
    """
    self._timed_out = self._timed_out or verdict is CodeVerdict.TIMEOUT
    if self._verdict is CodeVerdict.CORRECT or (
      verdict is CodeVerdict.UNGRADED
    ):
      self._verdict, self._message = verdict, message
