"""Runs programs on their tests in the sandbox and decides outside of it.

Inputs go into the sandbox one at a time and values come back; the expected
values are known only here (`code_compare`). So a program cannot forge a verdict:
it passes a case by sending the right value for it, and in no other way.
"""

from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import enum
import time

from r1jax.data.code.cases import CallCase, CodeTests, StdioCase
from r1jax.graders import code_compare
from r1jax.workers.sandbox.sandbox import Sandbox
from r1jax.workers.sandbox.slot import Reply, Slot

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

  Attributes:
    case_secs: Wall-clock limit of one call or one run on one input, and of
      loading the program.
    program_secs: Wall-clock limit of all cases of a program.
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
    passed: Number of cases passed. Without partial credit, the cases after the
      first failure are not run and count as not passed.
    total: Number of cases.
    score: Within [0, 1], or None if UNGRADED: such a sample is masked.
    message: Message of the first failure; the program may have written it.
    secs: Wall-clock time of the run.
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


def run_tests(
  program: str | None,
  tests: CodeTests,
  sandbox: Sandbox,
  options: GradingOptions = GradingOptions(),
) -> ProgramResult:
  """Runs one program on its tests, once a slot of the sandbox is free.

  Raises:
    SandboxUnavailable: The sandbox is gone, so nothing more can be scored.
  """
  return _run_program(program, tests, sandbox, options, float('inf'))


def run_tests_batch(
  programs: Sequence[str | None],
  tests: Sequence[CodeTests],
  sandbox: Sandbox,
  options: GradingOptions = GradingOptions(),
  total_secs: float = 600.0,
) -> list[ProgramResult]:
  """Runs programs, each on its own tests, on all slots at once.

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
  deadline = time.monotonic() + total_secs
  with futures.ThreadPoolExecutor(len(sandbox)) as pool:
    pending = [
      pool.submit(_run_program, *pair, sandbox, options, deadline)
      for pair in zip(programs, tests, strict=True)
    ]
    try:
      return [future.result() for future in pending]
    finally:
      for future in pending:
        future.cancel()


def extract_program(answer: str | None) -> str | None:
  """Returns the program in an answer: its last ```python block, or all of it.

  'so: ```python\\nx = 1\\n``` done' → 'x = 1\\n'. A block that never closes
  extends to the end of the answer. A block without a language is used if no block
  is marked as Python.
  """
  blocks: dict[str, str] = {}
  language: str | None = None
  lines: list[str] = []
  for line in (answer or '').splitlines(keepends=True):
    fence = line.strip()
    if language is None and '```' in line:
      # Prose may precede the fence on its line, but nothing follows it.
      language, lines = fence.rpartition('```')[2].strip().lower(), []
    elif language is not None and fence.startswith('```'):
      blocks[language] = ''.join(lines)
      language = None
    elif language is not None:
      lines.append(line)
  if language is not None:
    blocks[language] = ''.join(lines)
  for name in ('python', 'python3', 'py', ''):
    if name in blocks:
      return blocks[name]
  return answer


# --- One program -------------------------------------------------------------


class _Tally:
  """Counts the passed cases and keeps the first failure."""

  def __init__(self, total: int):
    self.total, self.passed = total, 0
    self.verdict, self.message = CodeVerdict.CORRECT, ''

  def add(self, passed: bool):
    self.passed += passed
    if not passed:
      self.fail(CodeVerdict.WRONG)

  def fail(self, verdict: CodeVerdict, message: str = ''):
    if self.verdict is CodeVerdict.CORRECT or verdict is CodeVerdict.UNGRADED:
      self.verdict, self.message = verdict, message

  def result(self, options: GradingOptions, start: float) -> ProgramResult:
    score: float | None = float(self.verdict is CodeVerdict.CORRECT)
    if self.verdict is CodeVerdict.UNGRADED:
      score = None
    elif options.partial:
      score = self.passed / self.total
    return ProgramResult(
      self.verdict,
      self.passed,
      self.total,
      score,
      self.message,
      time.monotonic() - start,
    )


class _Clock:
  """The time limits of one program and of its batch."""

  def __init__(self, options: GradingOptions, batch_end: float):
    self._case_secs, self._batch_end = options.case_secs, batch_end
    self._end = min(time.monotonic() + options.program_secs, batch_end)

  def secs(self) -> float:
    """Returns the limit of the next call or run; 0 if no time is left."""
    return max(0.0, min(self._case_secs, self._end - time.monotonic()))

  def verdict(self) -> CodeVerdict:
    """Returns the verdict of a timeout: UNGRADED if the batch is over."""
    batch_over = time.monotonic() >= self._batch_end
    return CodeVerdict.UNGRADED if batch_over else CodeVerdict.TIMEOUT


def _run_program(
  program: str | None,
  tests: CodeTests,
  sandbox: Sandbox,
  options: GradingOptions,
  batch_end: float,
) -> ProgramResult:
  tally, start = _Tally(len(tests.cases)), time.monotonic()
  if start >= batch_end:
    tally.fail(CodeVerdict.UNGRADED, 'no time was left for it')
  elif not program or not program.strip():
    tally.fail(CodeVerdict.NO_PROGRAM)
  elif len(program) > MAX_PROGRAM_CHARS:
    tally.fail(CodeVerdict.ERROR, 'the program is too long')
  else:
    try:
      _run_cases(program, tests, sandbox, options, batch_end, tally)
    except TimeoutError as error:  # No slot became free in time.
      tally.fail(CodeVerdict.UNGRADED, str(error))
  return tally.result(options, start)


def _run_cases(
  program: str,
  tests: CodeTests,
  sandbox: Sandbox,
  options: GradingOptions,
  batch_end: float,
  tally: _Tally,
):
  """Waits for a slot and runs the cases of a program in it."""
  wait = batch_end - time.monotonic()
  with sandbox.slot(None if wait == float('inf') else max(wait, 0)) as slot:
    clock = _Clock(options, batch_end)
    stdio = [case for case in tests.cases if isinstance(case, StdioCase)]
    if stdio:
      _run_stdio_cases(program, stdio, slot, options, clock, tally)
    else:
      _run_call_cases(program, tests, slot, options, clock, tally)


def _run_stdio_cases(
  program: str,
  cases: Sequence[StdioCase],
  slot: Slot,
  options: GradingOptions,
  clock: _Clock,
  tally: _Tally,
):
  """Runs the program as a script once per case, each in a new process."""
  for case in cases:
    if not _should_continue(tally, options) or _out_of_time(clock, tally):
      return
    reply = slot.run_script(
      program,
      case.stdin,
      clock.secs(),
      reply_bytes=(64 << 10) + 2 * len(case.stdout),
    )
    if reply.status == 'ok':
      tally.add(code_compare.outputs_match(str(reply.value), case.stdout))
    else:
      tally.fail(_verdict(reply, clock), reply.message)


def _run_call_cases(
  program: str,
  tests: CodeTests,
  slot: Slot,
  options: GradingOptions,
  clock: _Clock,
  tally: _Tally,
):
  """Calls the program in one process, replaced after a case that kills it.

  Cases that only a checker (CallCase.checker) can decide are checked
  after the program's process has ended.
  """
  sources = [
    (name, text)
    for name, text in (
      ('prelude', tests.prelude),
      ('program', program),
      ('setup', tests.setup),
    )
    if text
  ]
  left = [case for case in tests.cases if isinstance(case, CallCase)]
  expressions: list[str | None] = []
  while (
    left and _should_continue(tally, options) and not _out_of_time(clock, tally)
  ):
    before = len(left)
    with slot.call_session(sources, clock.secs()) as process:
      if process.loaded.status != 'ok':
        tally.fail(_verdict(process.loaded, clock), process.loaded.message)
        return
      while left and _should_continue(tally, options):
        case = left.pop(0)
        reply = process.call(case.call, clock.secs())
        if reply.status != 'ok':
          tally.fail(_verdict(reply, clock), reply.message)
          if not reply.alive:
            break
        elif case.relation == 'checker':
          expressions.append(code_compare.checker_expression(case, reply.value))
        else:
          tally.add(code_compare.case_passes(case, reply.value))
    assert len(left) < before
  if expressions and _should_continue(tally, options):
    _run_checker(expressions, tests, slot, options, clock, tally)


def _run_checker(
  expressions: Sequence[str | None],
  tests: CodeTests,
  slot: Slot,
  options: GradingOptions,
  clock: _Clock,
  tally: _Tally,
):
  """Evaluates checker expressions where the program never ran; see
  code_compare.checker_expression."""
  with contextlib.ExitStack() as stack:
    process = None
    for expression in expressions:
      if not _should_continue(tally, options):
        return
      if expression is None:
        tally.add(False)
        continue
      if process is None:
        process = stack.enter_context(
          slot.call_session([('checker', tests.checker_source)], clock.secs())
        )
      reply = process.call(expression, clock.secs())
      if reply.status != 'ok' and (
        _verdict(reply, clock) is CodeVerdict.UNGRADED
      ):
        tally.fail(CodeVerdict.UNGRADED)
      else:
        tally.add(reply.value is True)
      if not reply.alive:
        return


def _should_continue(tally: _Tally, options: GradingOptions) -> bool:
  return tally.verdict is CodeVerdict.CORRECT or (
    options.partial and tally.verdict is not CodeVerdict.UNGRADED
  )


def _out_of_time(clock: _Clock, tally: _Tally) -> bool:
  """Whether no time is left; if so, the remaining cases fail."""
  if clock.secs() <= 0:
    tally.fail(clock.verdict(), 'no time was left for all of its cases')
    return True
  return False


def _verdict(reply: Reply, clock: _Clock) -> CodeVerdict:
  """Returns the verdict of a reply whose status is not 'ok'."""
  if reply.status == 'timeout':
    return clock.verdict()
  if reply.status == 'lost':
    return CodeVerdict.UNGRADED
  return CodeVerdict(reply.status)
