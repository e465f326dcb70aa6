#!/usr/bin/env python3
"""Runs r1jax on one host that has an accelerator already: Colab, Kaggle.

  !git clone https://github.com/OWNER/r1jax
  !r1jax/launch/host.py install
  !r1jax/launch/host.py run --hours=8.5 -- \\
      train --config=r1_zero_gsm8k --workdir=/kaggle/working/zero
  !r1jax/launch/host.py run --hours=8.5 --earlier=/kaggle/input/zero -- \\
      train --config=r1_zero_gsm8k --workdir=/kaggle/working/zero

Sessions there end after some hours. Before that, --hours ends the run with a
checkpoint. A later session goes on from a copy of the earlier one's folder, such
as its saved output, or from a bucket.
"""

import argparse
from pathlib import Path
import sys

import common

_ACTIONS = (
  ('install', 'install r1jax into the Python that runs this'),
  ('run', 'run a command here'),
)


def _parser() -> argparse.ArgumentParser:
  made = common.parser(__doc__, _ACTIONS)
  made.add_argument('--extras', default='tpu,data', help='of r1jax')
  made.add_argument(
    '--hours', type=float, help='until SIGTERM; none by default'
  )
  made.add_argument(
    '--earlier', help='the --workdir of an earlier session, which is copied'
  )
  return made


def _workdir(command: list[str]) -> str:
  for i, part in enumerate(command):
    name, equals, value = part.partition('=')
    if name == '--workdir':
      return value if equals else ''.join(command[i + 1 : i + 2])
  return ''


def _act(shell: common.Shell, flags: argparse.Namespace, command: list[str]):
  if flags.action == 'install':
    shell.run(
      *(sys.executable, '-m', 'pip', 'install', '-q', '-e'),
      f'{common.ROOT}[{flags.extras}]',
    )
    return
  # Whatever the metadata of the machine say, it is alone.
  command = [*command, '--num_processes=1'] if command else command
  host = common.host_command(
    command, flags.env, sys.executable, '-m', 'r1jax.cli.main'
  )
  if flags.earlier and not Path(_workdir(command)).exists():
    shell.run(
      'cp', '-r', '--no-preserve=mode', flags.earlier, _workdir(command)
    )
  if flags.hours:
    secs = round(3600 * flags.hours)
    host = f'timeout --preserve-status --signal=TERM {secs} {host}'
  shell.run('bash', '-c', f'exec {host}')


if __name__ == '__main__':
  common.main(_parser(), _act)
