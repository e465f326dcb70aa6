#!/usr/bin/env python3
"""Runs r1jax on nodes with GPUs that Slurm manages, one process a GPU.

  launch/slurm.py install
  launch/slurm.py run --name=zero --nodes=4 --gpus=8 --hours=24 -- \\
      train --config=r1_zero_gsm8k --workdir=/shared/runs/zero
  launch/slurm.py logs --name=zero
  launch/slurm.py delete --name=zero

This checkout and its .venv lie in a folder that all nodes see. Before the time
limit, or where Slurm takes the nodes away, the run saves a checkpoint; the job
then waits in the queue again, and goes on from there.
"""

# Syntax: https://slurm.schedmd.com/sbatch.html, srun.html, scontrol.html.

import argparse
from pathlib import Path
import shlex

import common

_ACTIONS = (
  ('install', 'make .venv in this checkout'),
  ('run', 'submit a job'),
  ('logs', 'follow the job'),
  ('stop', 'send SIGTERM to the run, which saves a checkpoint'),
  ('delete', 'cancel the job'),
)
# The signal goes to the tasks of srun, since it is given without B:. Tasks are
# not killed when one of them has ended: they end each other, and after SIGTERM all save together.
_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={time}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@{grace_secs}
{options}cd {root} || exit 1
rm -f {stopped}
srun --kill-on-bad-exit=0 {command}
code=$?
# After SIGTERM (143) or a lost process (6) the same command goes on.
if [ $code = 143 ] || [ $code = 6 ]; then
  if [ ! -e {stopped} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_restarts} ]
  then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit $code
"""


def _parser() -> argparse.ArgumentParser:
  made = common.parser(__doc__, _ACTIONS)
  made.add_argument('--name', default='r1jax', help='of the job')
  made.add_argument('--nodes', type=int, default=1)
  made.add_argument('--gpus', type=int, default=8, help='of a node')
  made.add_argument('--hours', type=float, default=24, help='time limit')
  made.add_argument(
    '--grace_secs',
    type=int,
    default=600,
    help='from SIGTERM to the time limit: more than a step and a checkpoint',
  )
  made.add_argument(
    '--sbatch',
    action='append',
    default=[],
    metavar='OPTION',
    help='such as --sbatch=partition=gpu; may be repeated',
  )
  made.add_argument('--max_restarts', type=int, default=50)
  made.add_argument('--extras', default='data', help='of r1jax')
  made.add_argument('--cuda', default='cuda12', help='extra of jax')
  return made


def _file(name: str, suffix: str) -> Path:
  return common.ROOT / 'runs' / 'slurm' / f'{name}.{suffix}'


def script(flags: argparse.Namespace, command: list[str]) -> str:
  """Returns the batch script of a run."""
  minutes = round(60 * flags.hours)
  if 60 * minutes <= flags.grace_secs:
    raise common.LaunchError('--hours must be longer than --grace_secs')
  return _SCRIPT.format(
    name=flags.name,
    nodes=flags.nodes,
    gpus=flags.gpus,
    time=f'{minutes // 60}:{minutes % 60:02d}:00',
    output=_file(flags.name, 'txt'),
    grace_secs=flags.grace_secs,
    options=''.join(f'#SBATCH --{option}\n' for option in flags.sbatch),
    root=shlex.quote(str(common.ROOT)),
    max_restarts=flags.max_restarts,
    stopped=shlex.quote(str(_file(flags.name, 'stopped'))),
    command=common.host_command(command, flags.env, '.venv/bin/r1jax'),
  )


def _act(shell: common.Shell, flags: argparse.Namespace, command: list[str]):
  if flags.action == 'install':
    folder = common.ROOT / '.venv'
    shell.run('python3', '-m', 'venv', str(folder))
    shell.run(
      *(f'{folder}/bin/pip', 'install', '-e'),
      *(f'{common.ROOT}[{flags.extras}]', f'jax[{flags.cuda}]'),
    )
  elif flags.action == 'run':
    text = script(flags, command)
    shell.run('mkdir', '-p', str(_file(flags.name, 'txt').parent))
    shell.run('sbatch', standard_input=text)
  elif flags.action == 'logs':
    shell.run('tail', '-n', '100', '-F', str(_file(flags.name, 'txt')))
  elif flags.action == 'stop':
    # The signal goes to the tasks, since --batch is not given; the batch script
    # waits for them.
    shell.run('touch', str(_file(flags.name, 'stopped')))
    shell.run('scancel', '--signal=TERM', f'--name={flags.name}', '--me')
  else:
    shell.run('scancel', f'--name={flags.name}', '--me')


if __name__ == '__main__':
  common.main(_parser(), _act)
