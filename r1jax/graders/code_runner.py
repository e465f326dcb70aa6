"""Does a program pass its tests? The program inside, the verdict outside.

Inputs go in one at a time and values come back; what they should have been is
known only here (`code_compare`). So there is no verdict to forge in there: a
program passes a case by sending the right value for it, and in no other way.
"""

from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import enum
import time

from r1jax.data.code.cases import CodeTests, StdioCase
from r1jax.graders import code_compare
from r1jax.workers.sandbox.sandbox import Sandbox
from r1jax.workers.sandbox.slot import Reply, Slot

MAX_PROGRAM_CHARS = 100_000


class CodeVerdict(enum.StrEnum):
  """Why a program is right, or the first reason why it is not.

  All but UNGRADED speak of the program: it had its time and its memory.
  """

  CORRECT = 'correct'
  WRONG = 'wrong'  # A value or an output is not what it must be.
  ERROR = 'error'  # It raised, exited, or does not compile.
  TIMEOUT = 'timeout'
  MEMORY = 'memory'
  OUTPUT = 'output'  # Too much of it.
  FORBIDDEN = 'forbidden'  # It wanted what the sandbox does not give.
  NO_PROGRAM = 'no_program'  # Nothing in the answer that could be one.
  UNGRADED = 'ungraded'  # The sandbox failed, or the batch had no time left.


@dataclasses.dataclass(frozen=True)
class GradingOptions:
  """How a program is graded.

  Attributes:
    case_secs: For one call, or one run on one input; and to load.
    program_secs: For all of a program's cases.
    partial: The score is the share of cases passed. Otherwise a program must
      pass all, and its first failure ends it.
  """

  case_secs: float = 5.0
  program_secs: float = 20.0
  partial: bool = False


@dataclasses.dataclass(frozen=True)
class ProgramResult:
  """What a program's cases came to.

  Attributes:
    verdict: Of the first case that failed; CORRECT if none did.
    passed, total: Cases. Without partial credit those after the first failure
      are not run, and count as not passed.
    score: In 0…1, or None where nothing was found out: such a sample is
      masked.
    message: Of the first failure; may be the program's own words.
    secs: That it took.
  """

  verdict: CodeVerdict
  passed: int
  total: int
  score: float | None
  message: str = ''
  secs: float = 0.0

  @property
  def share(self) -> float:
    """Of the cases, those passed."""
    return self.passed / self.total


def run_tests(
  program: str | None,
  tests: CodeTests,
  sandbox: Sandbox,
  options: GradingOptions = GradingOptions(),
) -> ProgramResult:
  """Grades one program; waits for a slot.

  Raises:
    SandboxUnavailable: the sandbox is gone: nothing more can be scored.
  """
  return _grade(program, tests, sandbox, options, float('inf'))


def run_tests_batch(
  programs: Sequence[str | None],
  tests: Sequence[CodeTests],
  sandbox: Sandbox,
  options: GradingOptions = GradingOptions(),
  total_secs: float = 600.0,
) -> list[ProgramResult]:
  """Grades programs, each by its own tests, on all slots at once.

  Ends within total_secs and a moment: what is not graded by then is UNGRADED,
  whether it waited or ran. Raises as `run_tests`.
  """
  deadline = time.monotonic() + total_secs
  with futures.ThreadPoolExecutor(len(sandbox)) as pool:
    running = [
      pool.submit(_grade, *pair, sandbox, options, deadline)
      for pair in zip(programs, tests, strict=True)
    ]
    try:
      return [one.result() for one in running]
    finally:
      for one in running:
        one.cancel()


def extract_program(answer: str | None) -> str | None:
  """The program in an answer: its last ```python block, or all of it.

  'so: ```python\\nx = 1\\n``` done' → 'x = 1\\n'; a block that never closes
  goes to the end. A block without a language counts if none says Python.
  """
  blocks: dict[str, str] = {}
  language, lines = None, []
  for line in (answer or '').splitlines(keepends=True):
    fence = line.strip()
    if language is None and '```' in line:
      # The fence may stand in a line of prose, but nothing follows it.
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
  """Counts cases, and remembers the first failure."""

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
  """What time a program has left, and whose end comes first."""

  def __init__(self, options: GradingOptions, batch_end: float):
    self._case_secs, self._batch_end = options.case_secs, batch_end
    self._end = min(time.monotonic() + options.program_secs, batch_end)

  def secs(self) -> float:
    """For the next step; 0 if there is none."""
    return max(0.0, min(self._case_secs, self._end - time.monotonic()))

  def verdict(self) -> CodeVerdict:
    """What it means that a step did not end."""
    late = time.monotonic() >= self._batch_end
    return CodeVerdict.UNGRADED if late else CodeVerdict.TIMEOUT


def _grade(
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
      _run(program, tests, sandbox, options, batch_end, tally)
    except TimeoutError as error:  # Others had the slots all the time.
      tally.fail(CodeVerdict.UNGRADED, str(error))
  return tally.result(options, start)


def _run(
  program: str,
  tests: CodeTests,
  sandbox: Sandbox,
  options: GradingOptions,
  batch_end: float,
  tally: _Tally,
):
  wait = batch_end - time.monotonic()
  with sandbox.slot(None if wait == float('inf') else max(wait, 0)) as slot:
    clock = _Clock(options, batch_end)
    if isinstance(tests.cases[0], StdioCase):
      _runs(program, tests.cases, slot, options, clock, tally)
    else:
      _calls(program, tests, slot, options, clock, tally)


def _runs(
  program: str,
  cases: Sequence[StdioCase],
  slot: Slot,
  options: GradingOptions,
  clock: _Clock,
  tally: _Tally,
):
  """A process for each case."""
  for case in cases:
    if not _goes_on(tally, options) or _over(clock, tally):
      return
    reply = slot.run_script(
      program,
      case.stdin,
      clock.secs(),
      reply_bytes=(64 << 10) + 2 * len(case.stdout),
    )
    if reply.status == 'ok':
      tally.add(code_compare.same_output(reply.value, case.stdout))
    else:
      tally.fail(_verdict(reply, clock), reply.message)


def _calls(
  program: str,
  tests: CodeTests,
  slot: Slot,
  options: GradingOptions,
  clock: _Clock,
  tally: _Tally,
):
  """One process for all cases, and another after one that it did not survive.

  What only a judge can decide waits until the program's process is gone.
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
  left, judged = list(tests.cases), []
  while left and _goes_on(tally, options) and not _over(clock, tally):
    before = len(left)
    with slot.call_session(sources, clock.secs()) as process:
      if process.loaded.status != 'ok':
        tally.fail(_verdict(process.loaded, clock), process.loaded.message)
        return
      while left and _goes_on(tally, options):
        case = left.pop(0)
        reply = process.call(case.call, clock.secs())
        if reply.status != 'ok':
          tally.fail(_verdict(reply, clock), reply.message)
          if not reply.alive:
            break
        elif case.relation == 'judge':
          judged.append(code_compare.judged(case, reply.value))
        else:
          tally.add(code_compare.holds(case, reply.value))
    assert len(left) < before
  if judged and _goes_on(tally, options):
    _judge(judged, tests, slot, options, clock, tally)


def _judge(
  expressions: Sequence[str | None],
  tests: CodeTests,
  slot: Slot,
  options: GradingOptions,
  clock: _Clock,
  tally: _Tally,
):
  with contextlib.ExitStack() as stack:
    process = None
    for expression in expressions:
      if not _goes_on(tally, options):
        return
      if expression is None:
        tally.add(False)
        continue
      if process is None:
        process = stack.enter_context(
          slot.call_session([('judge', tests.judge)], clock.secs())
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


def _goes_on(tally: _Tally, options: GradingOptions) -> bool:
  return tally.verdict is CodeVerdict.CORRECT or (
    options.partial and tally.verdict is not CodeVerdict.UNGRADED
  )


def _over(clock: _Clock, tally: _Tally) -> bool:
  """No time is left, which fails the cases that are."""
  if clock.secs() <= 0:
    tally.fail(clock.verdict(), 'no time was left for all of its cases')
    return True
  return False


def _verdict(reply: Reply, clock: _Clock) -> CodeVerdict:
  """Of a reply that is not 'ok'."""
  if reply.status == 'timeout':
    return clock.verdict()
  if reply.status == 'lost':
    return CodeVerdict.UNGRADED
  return CodeVerdict(reply.status)
