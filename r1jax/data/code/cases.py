"""Tests as data: what to call, and what must come back.

A benchmark's tests are programs that call the answer and assert. Run beside
the answer, their verdict can be forged: so they are taken apart when the data
is built. Only the call goes into the sandbox; what it returned is compared
outside, with an expected value that the answer never meets.

  assert f([1, 2]) == (2, 1)       call 'f([1, 2])', equal, (2, 1)
  assert not f('><')               call "f('><')", false
  assert abs(f(1.33) - 0.33) < e   call 'f(1.33)', near, 0.33 within e
  assert set(f(x)) == {1}          call 'f(x)', through set, equal, {1}

`code_asserts` reads asserts, `code_sources` the benchmarks' rows.
"""

from collections.abc import Sequence
import dataclasses

RELATIONS = (
  'equal',
  'unequal',
  'same',
  'true',
  'false',
  'in',
  'near',  # |got - expected| < tolerance
  'at_most',  # |got - expected| <= tolerance
  'close',  # math.isclose, tolerance = [relative, absolute]
  'judge',  # `judge` is an expression of `result`; see CodeTests.
)


@dataclasses.dataclass(frozen=True)
class CallCase:
  """One call, and what must hold of the value that it returns.

  Attributes:
    call: An expression, evaluated where the program and the setup ran.
    relation: One of RELATIONS.
    expected: An encoded value (`code_values`), or None.
    through: What the value goes through first, in order, by its name in
      `code_asserts.THROUGH` and with its further encoded arguments:
      [['round', 2]]. Outside the sandbox too.
    tolerance: See RELATIONS.
    judge: For 'judge'.
  """

  call: str
  relation: str
  expected: object = None
  through: Sequence = ()
  tolerance: Sequence[float] = ()
  judge: str = ''


@dataclasses.dataclass(frozen=True)
class StdioCase:
  """A run of the whole program: its standard input and output."""

  stdin: str
  stdout: str


@dataclasses.dataclass(frozen=True)
class CodeTests:
  """The tests of one problem.

  Attributes:
    id: Names the row in errors.
    cases: All of one kind.
    prelude: Source that runs before the program: the prompt's imports and
      helpers.
    setup: Source that runs after the program, before the calls.
    judge: Source that the judges' expressions use, the helpers of the tests.
      It runs in a sandbox of its own, where the program never was.
  """

  id: str
  cases: Sequence[CallCase] | Sequence[StdioCase]
  prelude: str = ''
  setup: str = ''
  judge: str = ''

  def to_json(self) -> dict:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, record: dict) -> 'CodeTests':
    cases = [
      StdioCase(**case) if 'stdin' in case else CallCase(**case)
      for case in record['cases']
    ]
    return cls(**{**record, 'cases': tuple(cases)})
