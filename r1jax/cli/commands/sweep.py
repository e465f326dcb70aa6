"""r1jax sweep: runs a config for all points of a grid and several seeds.

r1jax sweep --config=r1_zero_tiny --out=runs/kl --grid rl.kl_coef=0,0.001 --seeds=3
r1jax sweep --out=runs/kl --report --metric=eval/cons@8
"""

from collections.abc import Sequence
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

from absl import flags

from r1jax import buckets
from r1jax.cli import config_file
from r1jax.errors import UserError

KIND = 'args'
FAILED = 7  # The exit code where a run has failed.
_REPORT_READS = 'it reads what is in --out'
_REPORT_FLAGS = ('out', 'metric', 'baseline', 'last_lines', 'report')


def define_flags(values: flags.FlagValues):
  """Defines the grid, the seeds, and what the report shows."""
  flags.DEFINE_string('out', '', 'The folder of all runs.', flag_values=values)
  flags.DEFINE_multi_string(
    'grid',
    [],
    'KEY=VALUE,VALUE,…: values of a key of the config, once for each key. Commas '
    'in brackets and quotes belong to a value. KEY,KEY=(VALUE,VALUE),… changes '
    'keys together.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'seeds',
    '1',
    'The number of seeds, such as 3; or the seeds, such as 0,1,5.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'parallel', 1, 'Runs at once.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Check and list all runs, and run none.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'report',
    False,
    'Write the report of what is there in --out, and run nothing.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'metric',
    [],
    'A metric to report, such as eval/cons@8; may be repeated. By default the '
    'main one of the last stage.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'baseline',
    '',
    'The grid point that others are compared with, KEY=VALUE,…; by default the '
    'first.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'last_lines',
    1,
    'Report the mean of so many last lines of metrics.jsonl that have a metric: '
    'for losses, which are noisy.',
    lower_bound=1,
    flag_values=values,
  )


def run(args: list[str]):
  """Runs what is not finished, and reports.

  Raises:
    UserError: A flag, key or value is wrong; nothing was written.
    SystemExit: A run has failed; the others have gone on.
  """
  given = args
  args = config_file.normalized(args)
  values, holder = config_file.config_flags_of(args)
  define_flags(values)
  if any(arg in ('-h', '--help') for arg in args):
    print(
      f'usage: r1jax sweep --config=CONFIG --out=DIR [flags]\n{values.get_help()}'
    )
    return
  if any(re.fullmatch('--?report(=true)?', arg) for arg in args):
    _parse(values, args)
  else:
    config_file.load(values, holder, args)
  if not values.out:
    raise UserError('sweep: give --out=DIR, the folder of all runs')
  out = buckets.local(values.out)
  if values.report:
    _report(out, values)
  else:
    _sweep(given, args, out, values)


def _parse(values: flags.FlagValues, args: list[str]):
  """Parses the flags of --report, which takes no config."""
  names = [arg.lstrip('-').partition('=')[0] for arg in args]
  if any(name.partition('.')[0] == 'config' for name in names):
    raise UserError(f'sweep: --report takes no --config; {_REPORT_READS}')
  try:
    extra = values(['r1jax', *args])[1:]
  except flags.Error as error:
    raise UserError(f'sweep: {" ".join(str(error).split())}') from error
  others = [f'--{f}' for f in values if values[f].present]
  others = [f for f in others if f[2:] not in _REPORT_FLAGS] + extra
  if values.report and others:
    raise UserError(f'sweep: --report takes no {others[0]}; {_REPORT_READS}')


def _report(out: Path, values: flags.FlagValues):
  from r1jax.sweeps import plan, report

  sweep = plan.read(out)
  baseline = _baseline(values.baseline, sweep.points)
  print(report.write(sweep, out, values.metric, baseline, values.last_lines))


def _baseline(text: str, points):
  from r1jax.sweeps import grid

  return grid.find(text, points) if text else points[0]


def _sweep(given: list[str], args: list[str], out: Path, values):
  """Checks all runs, runs them and reports.

  Args:
    given: The arguments of the command.
    args: The same, with the file in place of a shipped experiment's name.
    out: The folder of all runs.
    values: The flags.
  """
  sweep, configs = _planned(given, _of_runs(args), values)
  from r1jax.cli import sweep_configs
  from r1jax.sweeps import plan, report, results, runner

  plan.check(out, sweep)
  baseline = _baseline(values.baseline, sweep.points)
  if (out / plan.RECORD).exists():  # A name that is wrong is said at once.
    results.choose(results.read(sweep, out), sweep, values.metric)
  if values.dry_run:
    sweep_configs.check(configs, sweep, out)
    _check_devices(values.parallel)
    _show(sweep, out, values.parallel)
    return
  _check_apart(given)
  with plan.claimed(out, sweep):
    reopened = sweep_configs.reopened(configs, sweep, out)
    failed = runner.run_all(sweep, out, values.parallel, reopened)
    print(report.write(sweep, out, values.metric, baseline, values.last_lines))
  if failed:
    print(
      f'r1jax: {len(failed)} of {len(sweep.points) * len(sweep.seeds)} runs have '
      f'failed: {"; ".join(failed)}; the same command tries them again',
      file=sys.stderr,
    )
    sys.exit(FAILED)


def _of_runs(args: Sequence[str]) -> list[str]:
  """Returns --config and the overrides, without the flags of the sweep."""
  own = flags.FlagValues()
  define_flags(own)
  kept, left = [], iter(args)
  for arg in left:
    name, equals, _ = arg.lstrip('-').partition('=')
    is_bool = (
      name.removeprefix('no') in own and own[name.removeprefix('no')].boolean
    )
    if not arg.startswith('-') or not (name in own or is_bool):
      kept.append(arg)
    elif not equals and not is_bool:
      next(left, '')
  return kept


def _planned(given: list[str], config_args: list[str], values):
  """Returns the sweep that the flags describe, and the config of each point."""
  from r1jax.sweeps import grid, plan

  axes = tuple(map(grid.parse_axis, values.grid))
  if not axes and not values['seeds'].present:
    raise UserError(
      'sweep: there is nothing to sweep; give --grid KEY=VALUE,VALUE or --seeds'
    )
  seeds = grid.parse_seeds(values.seeds)
  name = os.path.basename(config_file.default_workdir(values))
  points = grid.points(axes, name)
  overridden = config_file.overridden(config_args)
  swept = [key for axis in axes for key in axis.keys]
  for key in overridden:
    if key in swept:
      raise UserError(f'sweep: {key} is in --grid and in --config.{key}')
  if 'seed' in overridden or 'seed' in swept:
    raise UserError('sweep: seed is set by --seeds; give no other seed')
  # Imported last, so that what is wrong with the flags is said at once.
  from r1jax.cli import sweep_configs

  configs = sweep_configs.load(config_args, points, seeds[0])
  sweep = plan.Sweep(
    command='train' if configs[0].is_run else 'pipeline',
    config=_portable(config_file.config_argument(config_file.joined(given))),
    overrides=tuple(
      arg for arg in config_args if not re.match('--?config=', arg)
    ),
    axes=axes,
    seeds=seeds,
    points=points,
    stages=sweep_configs.stages(configs),
  )
  return sweep, configs


def _portable(config: str) -> str:
  """Returns a config's argument that means the same in any folder."""
  path, colon, argument = config.partition(':')
  if not re.fullmatch(r'\w+', path):
    path = os.path.abspath(path)
  return f'{path}{colon}{argument}'


def _check_apart(given: list[str]):
  """Lets a process of its own check all runs.

  It builds their models and meshes, and so takes the accelerators, which must
  be free again when the runs begin.

  Raises:
    UserError: A run would be refused.
    SystemExit: The check has crashed.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'r1jax.cli.main', 'sweep', *given, '--dry_run'],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )
  if done.returncode == 0:
    return
  lines = [
    line for line in done.stderr.splitlines() if line.startswith('r1jax: ')
  ]
  if done.returncode == UserError.exit_code and lines:
    raise UserError(lines[-1].removeprefix('r1jax: '))
  print(done.stderr, end='', file=sys.stderr)
  sys.exit(done.returncode)


def _check_devices(parallel: int):
  """Refuses runs at once on an accelerator, which one of them would fill."""
  import jax

  if parallel > 1 and jax.default_backend() != 'cpu':
    raise UserError(
      f'--parallel={parallel}: each run takes the memory of all '
      f'{jax.default_backend()} devices of this machine; use --parallel=1'
    )


def _show(sweep, out: Path, parallel: int):
  from r1jax.sweeps import attempts, runner

  runs = sweep.run_folders(out)
  print(
    f'{len(runs)} runs in {out} (grid points × seeds: {len(sweep.points)} × '
    f'{len(sweep.seeds)}); {runner.shares_text(parallel)}'
  )
  for point, seed, folder in runs:
    done = ' (finished)' * attempts.is_finished(folder, sweep.stages)
    args = runner.command(sweep, point, seed, folder)
    print(f'{point.name}/seed_{seed}{done}\n  r1jax {shlex.join(args)}')
