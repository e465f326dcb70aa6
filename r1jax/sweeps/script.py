"""Sweeps in a script or notebook: the command is run, and its runs come back.

from r1jax.sweeps import script

runs = script.sweep(
  Path('runs/kl'),
  'r1_zero_tiny',
  grid=['rl.kl_coef=0,0.001'],
  seeds='3',
  changes={'rl.max_steps': 40},
)
[run.value('eval/pass@1') for run in runs]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import subprocess
import sys
import types
from typing import Any

from r1jax.sweeps import plan, results
from r1jax.sweeps.results import Result


def sweep(
  out: Path,
  config: str,
  *,
  grid: Sequence[str] = (),
  seeds: str = '1',
  changes: Mapping[str, Any] = types.MappingProxyType({}),
  flags: Sequence[str] = (),
) -> list[Result]:
  """Runs `r1jax sweep` in a process of its own.

  Args:
    out: The folder of all runs; those that are finished in it are not repeated.
    config: The name of a shipped experiment, or the path of a file.
    grid: The values of --grid.
    seeds: The value of --seeds.
    changes: Values of keys that all runs have, by dotted key.
    flags: Other arguments of the command.

  Returns:
    All runs, finished, by grid point and then by seed.

  Raises:
    SystemExit: The command has failed, and has said why.
  """
  command = [
    *(sys.executable, '-m', 'r1jax.cli.main', 'sweep'),
    f'--config={config}',
    f'--out={out}',
    f'--seeds={seeds}',
    *(f'--grid={each}' for each in grid),
    *(f'--config.{key}={value}' for key, value in changes.items()),
    *flags,
  ]
  with subprocess.Popen(command) as process:
    try:
      code = process.wait()
    except KeyboardInterrupt:  # The command has met it too, and saves its runs.
      process.wait()
      raise
  if code:
    sys.exit(code)
  return load(out)


def load(out: Path) -> list[Result]:
  """Returns the runs of a sweep that ran before.

  Raises:
    UserError: There is no sweep in the folder.
  """
  return results.read(plan.read(out), out)
