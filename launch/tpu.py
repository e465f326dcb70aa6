#!/usr/bin/env python3
"""Runs r1jax on a Cloud TPU slice, or on several, by queued resources.

  launch/tpu.py create  --name=zero --zone=us-east5-a --type=v6e-64 --spot
  launch/tpu.py install --name=zero --zone=us-east5-a
  launch/tpu.py run     --name=zero --zone=us-east5-a -- \\
      train --config=r1_zero_gsm8k --workdir=gs://BUCKET/runs/zero
  launch/tpu.py logs    --name=zero --zone=us-east5-a
  launch/tpu.py resume  (the flags of create) -- (the command of run)
  launch/tpu.py delete  --name=zero --zone=us-east5-a

`install` copies the commit that is checked out here to every host. `run` starts
the command on every host, where it goes on without this machine. Spot slices are
taken away at times; `resume` asks for another one, and the same command goes on
from its newest checkpoint.
"""

# Syntax of gcloud: https://cloud.google.com/sdk/gcloud/reference/compute/tpus/
# queued-resources/{create,describe,ssh,scp,delete}; states of a queued resource:
# https://cloud.google.com/tpu/docs/queued-resources.

import argparse
import shlex
import tempfile
import time

import common

# https://cloud.google.com/tpu/docs/runtimes, PyTorch and JAX.
RUNTIMES = {
  'v6e': 'v2-alpha-tpuv6e',
  'v5p': 'v2-alpha-tpuv5',
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v4': 'tpu-ubuntu2204-base',
}
_ACTIONS = (
  ('create', 'ask for the slice and wait for it'),
  ('install', 'put this commit on every host'),
  ('run', 'start the command on every host'),
  ('logs', 'show the last lines of every host'),
  ('stop', 'send SIGTERM to the run, which saves a checkpoint'),
  ('resume', 'get the slice back if it is gone, and run'),
  ('delete', 'give the slice back'),
)
_GONE = ('SUSPENDED', 'FAILED')
_POLL_SECS = 30
_ARCHIVE = 'r1jax.tar.gz'


def _parser() -> argparse.ArgumentParser:
  made = common.parser(__doc__, _ACTIONS)
  made.add_argument('--name', required=True, help='of the queued resource')
  made.add_argument('--zone', required=True)
  made.add_argument('--project', help="gcloud's own by default")
  made.add_argument('--type', help='such as v6e-64: see gcloud compute tpus')
  made.add_argument('--slices', type=int, default=1, help='joined by network')
  made.add_argument('--runtime', help='software of the hosts; by the type')
  made.add_argument('--spot', action='store_true', help='cheap; may be taken')
  made.add_argument('--reserved', action='store_true', help='of a reservation')
  made.add_argument('--network', help='of the hosts')
  made.add_argument('--service_account', help='of the hosts')
  made.add_argument('--extras', default='tpu,data,gcs', help='of r1jax')
  made.add_argument('--lines', type=int, default=20, help='of logs')
  return made


class Slice:
  """A queued resource and what is done with it."""

  def __init__(self, shell: common.Shell, flags: argparse.Namespace):
    self._shell, self._flags = shell, flags
    self._place = [f'--zone={flags.zone}']
    if flags.project:
      self._place.append(f'--project={flags.project}')

  def _gcloud(self, verb: str, *rest: str) -> list[str]:
    return [
      *('gcloud', 'compute', 'tpus', 'queued-resources', verb),
      *rest,
      *self._place,
    ]

  def create(self):
    """Asks for the slice and waits until it is there."""
    flags = self._flags
    if not flags.type:
      raise common.LaunchError('create and resume need --type, such as v6e-64')
    family = flags.type.split('-')[0]
    runtime = flags.runtime or RUNTIMES.get(family)
    if runtime is None:
      raise common.LaunchError(
        f'--type={flags.type}: give its --runtime too; known are those of '
        + ', '.join(RUNTIMES)
      )
    # https://cloud.google.com/tpu/docs/multislice-introduction
    nodes = (
      [f'--node-count={flags.slices}', f'--node-prefix={flags.name}']
      if flags.slices > 1
      else [f'--node-id={flags.name}']
    )
    optional = [
      f'--{name}={value}'
      for name, value in (
        ('network', flags.network),
        ('service-account', flags.service_account),
      )
      if value
    ]
    optional += ['--spot'] * flags.spot + ['--reserved'] * flags.reserved
    self._shell.run(
      *self._gcloud(
        'create',
        flags.name,
        *nodes,
        f'--accelerator-type={flags.type}',
        f'--runtime-version={runtime}',
        *optional,
      )
    )
    state = self._settled()
    if state != 'ACTIVE' and not self._shell.dry_run:
      raise common.LaunchError(
        f'{flags.name} is {state or "not there"}: see '
        + shlex.join(self._gcloud('describe', flags.name))
      )

  def _state(self) -> str | None:
    """Returns the state of the queued resource; None where there is none."""
    return self._shell.output(
      *self._gcloud('describe', self._flags.name, '--format=value(state.state)')
    )

  def _settled(self) -> str | None:
    """Waits until the slice is there or gone; returns its state."""
    self._shell.say(f'until it is ACTIVE, or gone, every {_POLL_SECS} s:')
    while True:
      state = self._state()
      if state in (None, 'ACTIVE', *_GONE):
        return state
      self._shell.say(f'{self._flags.name} is {state}')
      time.sleep(_POLL_SECS)

  def _on_hosts(self, script: str):
    """Runs a script on every host of every slice, all at once."""
    self._shell.run(
      *self._gcloud(
        'ssh',
        self._flags.name,
        '--node=all',
        '--worker=all',
        '--batch-size=all',
        f'--command={script}',
      )
    )

  def install(self):
    """Puts the commit that is checked out here on every host."""
    with tempfile.TemporaryDirectory() as folder:
      archive = f'{"/tmp" if self._shell.dry_run else folder}/{_ARCHIVE}'
      self._shell.run(
        *('git', '-C', str(common.ROOT), 'archive', '--format=tar.gz'),
        *(f'--output={archive}', 'HEAD'),
      )
      self._shell.run(
        *self._gcloud(
          'scp',
          archive,
          f'{self._flags.name}:{_ARCHIVE}',
          '--node=all',
          '--worker=all',
          '--batch-size=all',
        )
      )
    # The hosts' own Python is 3.10; uv brings another one.
    # https://docs.astral.sh/uv/getting-started/installation/
    self._on_hosts(f"""set -e
mkdir -p r1jax
tar -xzf {_ARCHIVE} -C r1jax
cd r1jax
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --clear --python=3.12 .venv
uv pip install --python=.venv -e '.[{self._flags.extras}]'""")

  def run(self, command: str):
    """Starts a command on every host, where none is running already.

    Two processes cannot have one TPU: a lock lets one of them run. It goes on
    when the connection ends, and run.log ends in its exit code.

    Args:
      command: The command of r1jax, as a shell reads it.
    """
    self._on_hosts(f"""set -e
cd r1jax
if ! flock -n run.lock true; then
  echo 'a run is going on here: see logs, or stop it'
  exit 75
fi
cat >run.sh <<'END'
echo $$ >run.pid
exec {command}
END
setsid --fork nohup bash -c 'flock -n -o run.lock bash run.sh
echo "ended with exit code $?"' >>run.log 2>&1 </dev/null""")

  def logs(self):
    """Shows the last lines of every host."""
    self._on_hosts(f'tail -n {self._flags.lines} r1jax/run.log')

  def stop(self):
    """Ends the run, which saves a checkpoint after its step."""
    self._on_hosts("""cd r1jax
flock -n run.lock true || kill -TERM "$(cat run.pid)\"""")

  def resume(self, command: str):
    """Runs a command on a slice that is there, is gone, or never was."""
    state = self._settled()
    if self._shell.dry_run:
      self._shell.say('if it is SUSPENDED or FAILED:')
    if state in _GONE or self._shell.dry_run:
      self.delete()
    if state != 'ACTIVE':
      self.create()
      self.install()
    if self._shell.dry_run:
      self._shell.say('in any case:')
    self.run(command)

  def delete(self):
    self._shell.run(
      *self._gcloud('delete', self._flags.name, '--force', '--quiet')
    )


def _act(shell: common.Shell, flags: argparse.Namespace, command: list[str]):
  work = Slice(shell, flags)
  if flags.action in ('run', 'resume'):
    getattr(work, flags.action)(
      common.host_command(command, flags.env, '.venv/bin/r1jax')
    )
  else:
    getattr(work, flags.action)()


if __name__ == '__main__':
  common.main(_parser(), _act)
