"""Program tests as data: the calls to make and the values to expect.

The tests of a benchmark are programs that call a candidate solution and assert.
A candidate that runs in the same process can forge their verdict, so they are
converted to data when the dataset is read. Only the call goes into the sandbox;
the value that it returns is compared outside, with an expected value that the
candidate cannot read.

  assert f([1, 2]) == (2, 1)       call 'f([1, 2])', equal, (2, 1)
  assert not f('><')               call "f('><')", false
  assert abs(f(1.33) - 0.33) < e   call 'f(1.33)', near, 0.33 within e
  assert set(f(x)) == {1}          call 'f(x)', transform set, equal, {1}

asserts.py parses asserts, sources.py converts the rows of benchmarks, values.py
encodes values.
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
  'checker',  # `checker` is an expression in `result`, run in a sandbox.
)


@dataclasses.dataclass(frozen=True)
class CallCase:
  """One call and the relation that its value must satisfy.

  Attributes:
    call: Python expression, evaluated after the program and the setup.
    relation: One of RELATIONS.
    expected: The expected value, encoded by values.py; or None.
    transforms: Functions to apply to the value before it is compared, outside
      the sandbox: in order, each its name in asserts.TRANSFORMS and further
      encoded arguments, as in [['round', 2]].
    tolerance: The tolerances of the relation; see RELATIONS.
    checker: Python expression for the relation 'checker', a bool that depends
      on `result`, the value of the call; '' for other relations.
  """

  call: str
  relation: str
  expected: object = None
  transforms: Sequence = ()
  tolerance: Sequence[float] = ()
  checker: str = ''


@dataclasses.dataclass(frozen=True)
class StdioCase:
  """One run of the whole program.

  Attributes:
    stdin: The standard input.
    stdout: The expected standard output.
  """

  stdin: str
  stdout: str


@dataclasses.dataclass(frozen=True)
class CodeTests:
  """The tests of one problem.

  Attributes:
    id: Id of the row, for error messages.
    cases: The cases, all CallCase or all StdioCase.
    prelude: Python source that runs before the program: the prompt's imports
      and helpers.
    setup: Python source that runs after the program and before the calls.
    checker_source: Python source that the checker expressions need: the
      prelude and the helpers of the tests. It runs in a sandbox of its own, in
      which the program never runs.
  """

  id: str
  cases: Sequence[CallCase] | Sequence[StdioCase]
  prelude: str = ''
  setup: str = ''
  checker_source: str = ''

  def to_json(self) -> dict:
    """Returns the tests as JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, record: dict) -> 'CodeTests':
    """Inverts to_json."""
    cases = [
      StdioCase(**case) if 'stdin' in case else CallCase(**case)
      for case in record['cases']
    ]
    return cls(**{**record, 'cases': tuple(cases)})
