"""Flags of the launch scripts, and the way in which they run commands.

A script needs Python 3.11 and the tool of its cloud or cluster, nothing of
r1jax: it runs on a laptop. `--dry_run` prints what would run, in the form of a
shell script, and runs nothing.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import shlex
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[1]
# Commands of r1jax that run on several hosts.
COMMANDS = ('train', 'pipeline', 'eval', 'sample')


class LaunchError(Exception):
  """An error that its text explains.

  Attributes:
    code: The exit code of the script: that of a command that fails.
  """

  def __init__(self, text: str, code: int = 2):
    super().__init__(text)
    self.code = code


class Shell:
  """Runs commands, or prints them."""

  def __init__(self, dry_run: bool):
    self.dry_run = dry_run

  def say(self, text: str):
    """Prints a line for people; a comment of the script in a dry run."""
    print(f'# {text}' if self.dry_run else text, flush=True)

  def run(self, *command: str, standard_input: str | None = None):
    """Runs a command to its end.

    Args:
      *command: Its arguments.
      standard_input: The text that it reads; it inherits ours by default.

    Raises:
      LaunchError: it fails, or is not installed.
    """
    if self.dry_run:
      line = shlex.join(command)
      if standard_input is None:
        print(line)
      else:
        print(f"{line} <<'END'\n{standard_input.rstrip()}\nEND")
      return
    try:
      subprocess.run(command, input=standard_input, text=True, check=True)
    except FileNotFoundError as error:
      raise LaunchError(f'{command[0]} is not installed here') from error
    except subprocess.CalledProcessError as error:
      raise LaunchError(
        f'{" ".join(command[:4])} … has ended with exit code '
        f'{error.returncode}',
        error.returncode,
      ) from error

  def output(self, *command: str) -> str | None:
    """Returns what a command prints; None where it fails, or in a dry run."""
    if self.dry_run:
      print(shlex.join(command))
      return None
    try:
      done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
      raise LaunchError(f'{command[0]} is not installed here') from error
    return done.stdout.strip() if done.returncode == 0 else None


def parser(
  text: str | None, actions: Sequence[tuple[str, str]]
) -> argparse.ArgumentParser:
  """Returns a parser of `SCRIPT ACTION [flags] -- R1JAX_COMMAND`.

  Args:
    text: The docstring of the script, which is its help.
    actions: Its actions, and what each does.
  """
  made = argparse.ArgumentParser(
    description=text,
    epilog='actions: '
    + '; '.join(f'{name}: {meaning}' for name, meaning in actions),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  made.add_argument('action', choices=[name for name, _ in actions])
  made.add_argument(
    '--dry_run', action='store_true', help='print what would run, and run none'
  )
  made.add_argument(
    '--env',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='a variable of the run, such as R1JAX_DATA=DIR; may be repeated',
  )
  return made


def main(
  arguments: argparse.ArgumentParser,
  act: Callable[[Shell, argparse.Namespace, list[str]], None],
):
  """Parses the command line and acts; errors of users are one line.

  Args:
    arguments: The parser of what stands before `--`.
    act: Called with a shell, the flags, and what stands behind `--`: the
      command of r1jax; [] where there is none.
  """
  argv = sys.argv[1:]
  own, command = argv, []
  if '--' in argv:
    place = argv.index('--')
    own, command = argv[:place], argv[place + 1 :]
  flags = arguments.parse_args(own)
  try:
    act(Shell(flags.dry_run), flags, command)
  except LaunchError as error:
    print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr)
    sys.exit(error.code)


def host_command(
  command: Sequence[str], env: Sequence[str], *executable: str
) -> str:
  """Returns what a host runs, as a shell reads it.

  Args:
    command: The command of r1jax and its flags.
    env: Variables, each NAME=VALUE.
    *executable: The path of r1jax, or how else it starts.

  Raises:
    LaunchError: it is no command for several hosts, or has no --workdir, which
      would be a folder of each host.
  """
  if not command or command[0] not in COMMANDS:
    given = f'; got {command[0]!r}' if command else ''
    raise LaunchError(
      f'give {", ".join(COMMANDS[:-1])} or {COMMANDS[-1]} behind --, as in '
      f'-- train --config=r1_zero_gsm8k --workdir=DIR{given}'
    )
  if not any(part.split('=')[0] == '--workdir' for part in command):
    raise LaunchError(f'{command[0]}: give --workdir, which all hosts share')
  if wrong := [pair for pair in env if not pair.partition('=')[1]]:
    raise LaunchError(f'--env={wrong[0]} must be NAME=VALUE')
  prefix = ['env', *env] if env else []
  return shlex.join([*prefix, *executable, *command])
