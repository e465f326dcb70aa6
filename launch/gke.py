#!/usr/bin/env python3
"""Runs r1jax on TPU slices of a GKE cluster by XPK.

  launch/gke.py run --cluster=CLUSTER --name=zero --type=v6e-64 -- \\
      train --config=r1_zero_gsm8k --workdir=gs://BUCKET/runs/zero
  launch/gke.py logs   --cluster=CLUSTER --name=zero
  launch/gke.py delete --cluster=CLUSTER --name=zero

XPK puts the folder of this checkout, as it lies here, into an image. GKE starts
the same command again on all hosts where a host is taken away, or the run ends
by an error of a host; it goes on from its newest checkpoint. A cluster is made
by `xpk cluster create`.
"""

# Syntax of XPK 1.16: https://github.com/AI-Hypercomputer/xpk, docs/usage/
# {workloads,docker,storage}.md and src/xpk/parser/workload.py.

import argparse

import common

# XPK restarts after 42 and 127 to 255 by itself: a host that is killed, or
# SIGTERM. After 6, another process of the run has ended.
_RESTARTED = '6'
_ACTIONS = (
  ('run', 'start a workload'),
  ('list', 'show the workloads of the cluster'),
  ('logs', 'follow the first host'),
  ('delete', 'end the workload'),
)


def _parser() -> argparse.ArgumentParser:
  made = common.parser(__doc__, _ACTIONS)
  made.add_argument('--cluster', required=True)
  made.add_argument('--name', required=True, help='of the workload')
  made.add_argument('--zone', help="gcloud's own by default")
  made.add_argument('--project', help="gcloud's own by default")
  made.add_argument('--type', help='such as v6e-64')
  made.add_argument('--slices', type=int, default=1, help='joined by network')
  made.add_argument('--image', help='with r1jax in it; by default one is built')
  made.add_argument('--base_image', default='python:3.12', help='to build on')
  made.add_argument('--extras', default='tpu,data,gcs', help='of r1jax')
  made.add_argument('--storage', action='append', default=[], help='of XPK')
  made.add_argument('--max_restarts', type=int, default=50)
  made.add_argument(
    '--grace_secs',
    type=int,
    default=600,
    help='from SIGTERM to the end: more than a step and a checkpoint take',
  )
  return made


def _run(flags: argparse.Namespace, command: list[str]) -> list[str]:
  if not flags.type:
    raise common.LaunchError('run needs --type, such as v6e-64')
  host = f'exec {common.host_command(command, flags.env, "r1jax")}'
  if '\n' in host:  # XPK puts it into one line of YAML.
    raise common.LaunchError('the command of r1jax must be one line')
  if flags.image:
    image = [f'--docker-image={flags.image}']
  else:
    # XPK starts it in the folder of the checkout. It sends SIGTERM to the shell
    # of the command, in whose place `exec` puts r1jax.
    host = f"pip install -q -e '.[{flags.extras}]' && {host}"
    image = [
      f'--base-docker-image={flags.base_image}',
      f'--script-dir={common.ROOT}',
    ]
  return [
    f'--tpu-type={flags.type}',
    f'--num-slices={flags.slices}',
    *image,
    *(f'--storage={name}' for name in flags.storage),
    f'--max-restarts={flags.max_restarts}',
    f'--restart-on-exit-codes={_RESTARTED}',
    f'--termination-grace-period-seconds={flags.grace_secs}',
    f'--command={host}',
  ]


def _act(shell: common.Shell, flags: argparse.Namespace, command: list[str]):
  place = [f'--cluster={flags.cluster}']
  place += [f'--zone={flags.zone}'] if flags.zone else []
  place += [f'--project={flags.project}'] if flags.project else []
  workload = f'--workload={flags.name}'
  if flags.action == 'run':
    started = _run(flags, command)
    shell.run('xpk', 'workload', 'create', workload, *place, *started)
  elif flags.action == 'list':
    shell.run('xpk', 'workload', 'list', *place)
  elif flags.action == 'delete':
    shell.run('xpk', 'workload', 'delete', workload, *place, '--force')
  else:
    # A workload is a JobSet, whose first pod is that of process 0.
    # https://jobset.sigs.k8s.io/docs/concepts/
    shell.run(
      *('kubectl', 'logs', '--follow', '--tail=100', '--container=jax-tpu'),
      f'--selector=jobset.sigs.k8s.io/jobset-name={flags.name},'
      'jobset.sigs.k8s.io/job-index=0,'
      'batch.kubernetes.io/job-completion-index=0',
    )


if __name__ == '__main__':
  common.main(_parser(), _act)
