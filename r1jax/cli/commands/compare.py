"""r1jax compare: two evaluations of the same problems, paired.

r1jax compare runs/eval-base runs/zero/suites
"""

import json
from pathlib import Path

from absl import flags

from r1jax import buckets
from r1jax.errors import UserError

KIND = 'args'
_FLIPS = 10  # Problems that the terminal lists of each kind.


def define_flags(values: flags.FlagValues):
  """Defines --suite and --out."""
  flags.DEFINE_string(
    'suite',
    '',
    'Compare these suites alone, by name; by default all that both have.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'out',
    '',
    'A JSON file with the numbers and every problem that flipped.',
    flag_values=values,
  )


def run(args: list[str]):
  """Prints a table of paired differences, and the problems that flipped.

  Args:
    args: The folders of two evaluations, and flags.

  Raises:
    UserError: a folder holds no results, they share no suite, or they have
      answered different problems.
  """
  values = flags.FlagValues()
  flags.DEFINE_bool(
    'help', False, 'Show this.', short_name='h', flag_values=values
  )
  define_flags(values)
  usage = 'usage: r1jax compare A B [--suite=NAME,NAME] [--out=FILE.json]'
  if any(arg in ('-h', '--help') for arg in args):
    print(f'{usage}\n{values.get_help()}')
    return
  try:
    folders = values(['r1jax', *args])[1:]
  except flags.Error as error:
    raise UserError(f'compare: {error}') from error
  if len(folders) != 2:
    raise UserError(usage)
  from r1jax.evaluate import comparison, suite_report

  one, other = map(_results, folders)
  names = _common(one, other, values.suite)
  found = [
    comparison.compare(
      *(suite_report.SuiteResult.from_json(x[name]) for x in (one, other))
    )
    for name in names
  ]
  print(f'A = {folders[0]}, B = {folders[1]}')
  print(suite_report.aligned(comparison.table(found)))
  for each in found:
    for kind, flips in (('only A', each.lost), ('only B', each.won)):
      for flip in flips[:_FLIPS]:
        print(
          f'{each.suite}: {kind} solves {flip.id}: '
          f'{flip.before:.0%} → {flip.after:.0%} right'
        )
      if len(flips) > _FLIPS:
        print(f'{each.suite}: {kind} solves {len(flips) - _FLIPS} more')
  if values.out:
    report = {
      'A': folders[0],
      'B': folders[1],
      'suites': list(map(comparison.to_json, found)),
    }
    try:
      buckets.local(values.out).write_text(json.dumps(report, indent=1) + '\n')
    except OSError as error:
      raise UserError(f'compare: cannot write {values.out}: {error}') from error


def _results(folder: str) -> dict[str, dict]:
  """Returns the results of an evaluation's folder, by suite."""
  from r1jax.runs.suite_evaluation import RESULTS

  path = Path(buckets.given(folder)) / RESULTS
  try:
    return json.loads(path.read_text())['suites']
  except FileNotFoundError as error:
    raise UserError(
      f'compare: {folder} has no {RESULTS}, which r1jax eval --suite writes '
      'when all completions are there'
    ) from error
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f'compare: cannot read {path}: {error}') from error


def _common(one: dict, other: dict, wanted: str) -> list[str]:
  """Returns the suites to compare."""
  common = [name for name in one if name in other]
  for name in filter(None, wanted.split(',')):
    if name not in common:
      raise UserError(
        f'compare: no suite {name!r} in both; they share '
        f'{", ".join(common) or "none"}'
      )
  if not common:
    raise UserError(
      f'compare: the first has {", ".join(one)} and the second '
      f'{", ".join(other)}: they share no suite'
    )
  return [name for name in common if not wanted or name in wanted.split(',')]
