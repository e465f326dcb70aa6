"""A sweep, and its record: sweep.json in the folder of all its runs.

DIR/sweep.json, .lock                 what it sweeps; one sweep at a time
DIR/group_size=4/seed_0/              a run: the workdir of `train`
DIR/group_size=4/seed_0/sweep.log     what it printed
DIR/group_size=4/seed_0/sweep.jsonl   when it began and ended, and its exit code
DIR/table.md, table.csv, runs.csv, curves.png, curves.csv
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import json
from pathlib import Path

from r1jax import files
from r1jax.config.field import Change, walk
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.sweeps.grid import Axis, Point

RECORD, LOCK = 'sweep.json', '.lock'
_ELSEWHERE = 'use another --out'


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Runs of one config: grid points × seeds.

  Attributes:
    command: The command of each run, 'train' or 'pipeline'.
    config: The value of --config: a shipped experiment, or the path of a file.
    overrides: Arguments that all runs have, '--config.KEY=VALUE'.
    axes: The keys that are varied, and their values.
    seeds: The seeds of each grid point.
    points: The grid points.
    stages: For `train` the stage that runs last; for `pipeline` the path of
      each stage's folder, such as 'zero/rl', in order.
  """

  command: str
  config: str
  overrides: tuple[str, ...]
  axes: tuple[Axis, ...]
  seeds: tuple[int, ...]
  points: tuple[Point, ...]
  stages: tuple[str, ...]

  def run_folders(self, out: Path) -> list[tuple[Point, int, Path]]:
    """Returns the grid point, seed and folder of each run, in their order.

    All grid points of the first seed come first, so that a sweep that is cut
    off compares what there is.
    """
    return [
      (point, seed, folder(out, point, seed))
      for seed in self.seeds
      for point in self.points
    ]


def folder(out: Path, point: Point, seed: int) -> Path:
  """Returns the folder of a run."""
  return out / point.name / f'seed_{seed}'


def read(out: Path) -> Sweep:
  """Reads the record of a sweep.

  Raises:
    UserError: There is none, or it is broken.
  """
  path = out / RECORD
  try:
    record = json.loads(path.read_text())
    return Sweep(
      record['command'],
      record['config'],
      tuple(record['overrides']),
      tuple(
        Axis(tuple(axis['keys']), tuple(map(tuple, axis['values'])))
        for axis in record['axes']
      ),
      tuple(map(int, record['seeds'])),
      tuple(Point(each['name'], each['values']) for each in record['points']),
      tuple(record['stages']),
    )
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(f'--out: {out} holds no sweep') from error
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise UserError(
      f'--out: {path} is broken ({type(error).__name__}: {error}); remove it, '
      'and the same command writes it again'
    ) from error


def check(out: Path, sweep: Sweep):
  """Refuses a folder that holds something else than this sweep.

  A sweep may be given more values and more seeds than it had before, and other
  values of keys with which its runs may go on. It may find folders of its grid
  points there, with runs that are not its own.

  Raises:
    UserError: It is a file, or holds other things, or another sweep.
  """
  if out.exists() and not out.is_dir():
    raise UserError(f'--out: {out} is a file; {_ELSEWHERE}')
  if not (out / RECORD).exists():
    known = {LOCK, *(point.name for point in sweep.points)}
    if out.exists() and any(entry.name not in known for entry in out.iterdir()):
      raise UserError(
        f'--out: {out} is not empty and holds no sweep; {_ELSEWHERE}'
      )
    return
  before = read(out)
  for name, theirs, ours in (
    ('config', before.config, sweep.config),
    ('command', before.command, sweep.command),
    ('overrides', _fixed(before.overrides), _fixed(sweep.overrides)),
    ('grid keys', _keys(before), _keys(sweep)),
    ('stages', before.stages, sweep.stages),
  ):
    if theirs != ours:
      raise UserError(
        f'--out: {out} holds another sweep: its {name} '
        f'{"are" if name.endswith("s") else "is"} {_shown(theirs)} there and '
        f'{_shown(ours)} here; {_ELSEWHERE}'
      )
  lost = [point.name for point in before.points if point not in sweep.points]
  lost += [f'seed_{n}' for n in before.seeds if n not in sweep.seeds]
  if lost:
    raise UserError(
      f'--out: {out} holds another sweep, with {", ".join(lost[:3])}'
      f'{" and more" * (len(lost) > 3)}; give these too, or {_ELSEWHERE}'
    )


def _keys(sweep: Sweep) -> list[str]:
  return [key for axis in sweep.axes for key in axis.keys]


def _fixed(overrides: Sequence[str]) -> list[str]:
  """Returns the overrides of keys with which no run could go on otherwise."""
  free = {
    name
    for name, _, spec, _ in walk(RunConfig())
    if spec.change is not Change.NEVER
  }
  return sorted(
    arg
    for arg in overrides
    if arg.lstrip('-').removeprefix('config.').partition('=')[0] not in free
  )


def _shown(value) -> str:
  return value if isinstance(value, str) else ' '.join(value) or 'none'


@contextlib.contextmanager
def claimed(out: Path, sweep: Sweep) -> Iterator[None]:
  """Writes the record of a sweep, and keeps others out of its folder.

  Raises:
    UserError: Another sweep runs in it, or it cannot be written to.
  """
  with contextlib.ExitStack() as stack:
    try:
      out.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(out / LOCK, 'a'))
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      check(out, sweep)
      record = dataclasses.asdict(sweep)
      files.write_text(out / RECORD, json.dumps(record, indent=1) + '\n')
    except BlockingIOError as error:
      raise UserError(
        f'--out: another sweep runs in {out}; wait for it, or {_ELSEWHERE}'
      ) from error
    except OSError as error:
      raise UserError(f'--out: cannot write to {out}: {error}') from error
    yield
