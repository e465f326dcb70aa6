"""A plugin that injects one fault into a run, where $FAULT names one.

  FAULT=kill:rename:3    kill -9 at the third rename of an unfinished folder
  FAULT=term:last        SIGTERM within the last step
  FAULT=full:4           no file may grow from the save of step 4 on
  FAULT=readonly:4       the folder of checkpoints may not be written to then
  FAULT=clock:-86400:3   the clock jumps back by a day in step 3
  FAULT=nan:3:loss       the loss of step 3 is NaN; also 'weights'

Without $FAULT it does nothing, so that a run with it and one without have the
same config and may be compared byte for byte.
"""

import os
from pathlib import Path
import resource
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp

from r1jax.rewards.reward_manager import RewardManager
from r1jax.rollout.session import Session
from r1jax.stages.collect import Collector
from r1jax.stages.rl import RL

_counts: dict[str, int] = {}


def _die(phase: str):
  print(f'FAULT: killed in {phase}', flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(60)  # The signal is on its way.


def _before(owner, name: str, act, *, after: bool = False):
  """Calls act(its arguments) before, or after, a function of a module."""
  original = getattr(owner, name)

  def wrapped(*args, **kwargs):
    if not after:
      act(*args)
    result = original(*args, **kwargs)
    if after:
      act(*args)
    return result

  setattr(owner, name, wrapped)


def _kill(phase: str, count: int):
  """Arranges for a kill -9 at the `count`-th time that a phase is met."""

  def met(*args):
    del args
    _counts[phase] = _counts.get(phase, 0) + 1
    if _counts[phase] == count:
      _die(phase)

  def met_rename(source, *args):
    if 'orbax-checkpoint-tmp' in str(source):
      met()

  original = shutil.rmtree

  def half_removed(path, *args, **kwargs):
    if Path(str(path)).parent.name == 'checkpoints':
      _counts[phase] = _counts.get(phase, 0) + 1
      if _counts[phase] == count:
        files = [x for x in sorted(Path(str(path)).rglob('*')) if x.is_file()]
        for file in files[: len(files) // 2]:
          file.unlink()
        _die(phase)
    original(path, *args, **kwargs)

  from r1jax.train import checksums, manifest

  if phase == 'rollout':
    _before(Session, 'step', met)
  elif phase == 'reward':
    _before(RewardManager, 'score', met, after=True)
  elif phase == 'update':
    _before(RL, '_next_reference', met)
  elif phase == 'position':  # The update is made; where the data are is not.
    _before(Collector, 'get_state', met)
  elif phase == 'save':
    _before(checksums, 'of_tree', met, after=True)
  elif phase == 'files':  # The arrays are written, and not yet hashed.
    _before(manifest, 'write_part', met)
  elif phase == 'rename':
    for name in ('rename', 'replace'):
      _before(os, name, met_rename, after=bool(count % 2))
  elif phase == 'collection':
    shutil.rmtree = half_removed
  else:
    raise ValueError(phase)


def _at_save(step: int, act):
  """Calls act(folder of the checkpoints) when a step is about to be saved."""
  from r1jax.train.checkpoint import Checkpointer

  def check(self, at, *_):
    if at == step:
      act(self._directory)

  _before(Checkpointer, 'save', check)


def _fill(folder: Path):
  del folder
  # The signal that comes with it would end the process without a word.
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def _forbid(folder: Path):
  folder.chmod(0o555)
  if os.geteuid() == 0:  # Root may write everywhere.
    os.setuid(65534)


def _in_step(step: int, act, *, after: bool = False):
  def check(self, state, at, data):
    del state, data
    if at == (step or self.num_steps):
      act()

  _before(RL, 'train_step', check, after=after)


def _jump(secs: float):
  now = time.time
  time.time = lambda: now() + secs


def _poison(step: int, what: str):
  """Makes the loss of a step NaN, or the weights after it."""
  original = RL.train_step

  def poisoned(self, state, at, data):
    output = original(self, state, at, data)
    if at < step:
      return output
    nan = float('nan')
    if what == 'loss':
      return output._replace(metrics=output.metrics | {'loss': nan})
    bad = lambda x: x * nan if jnp.issubdtype(x.dtype, jnp.floating) else x
    train = output.state.train
    train = train.replace(params=jax.tree.map(bad, train.params))
    return output._replace(state=output.state.replace(train=train))

  RL.train_step = poisoned


def _install(kind: str, *args: str):
  if kind == 'kill':
    _kill(args[0], int(args[1]))
  elif kind == 'term':
    _in_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
  elif kind == 'full':
    _at_save(int(args[0]), _fill)
  elif kind == 'readonly':
    _at_save(int(args[0]), _forbid)
  elif kind == 'clock':
    _in_step(int(args[1]), lambda: _jump(float(args[0])))
  elif kind == 'nan':
    _poison(int(args[0]), args[1])
  else:
    raise ValueError(kind)


# The workers of rewards import plugins too: the fault is of the run alone.
if os.environ.get('FAULT') and 'r1jax.cli' in getattr(
  sys.modules['__main__'].__spec__, 'name', ''
):
  _install(*os.environ['FAULT'].split(':'))
