"""A run's directory: whose it is, and that only one process writes to it."""

from collections.abc import Mapping, Sequence
import contextlib
import fcntl
import json
import os
from pathlib import Path
import time
from typing import IO
import uuid

from r1jax import buckets, files, processes
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.runs import changes

# Files that a kill may leave before there is a config.json, and those that a
# sweep writes before the run begins.
_OURS = ('.lock', 'config.partial', 'sweep.jsonl', 'sweep.log')
_SHOWN = 12  # Keys that a message lists: another experiment differs in most.
# One of them is in every folder of a run or of a pipeline.
_RECORDS = ('config.json', buckets.LOCK, '*/config.json')
_ELSEWHERE = 'use another --workdir'
_VISIBLE_SECS = 15.0  # Network file systems show a new file after a while.


def compare(
  path: Path,
  config: RunConfig,
  sections: tuple[str, ...],
  remedy: str = _ELSEWHERE,
):
  """Checks that the run in `path` agrees with a config in some keys.

  Args:
    path: A workdir.
    config: The config that it should have been made with.
    sections: Prefixes of these keys.
    remedy: Advice for the error of a workdir of another config.

  Raises:
    UserError: naming the keys that differ, or the file if it is broken.
  """
  found = changes.found(path, config, remedy)
  differ = {key: found[key] for key in found if key.startswith(sections)}
  _refuse(path, [changes.clause(key, *differ[key]) for key in differ], remedy)


def _refuse(path: Path, clauses: Sequence[str], remedy: str):
  """Raises an error if there are clauses that say what is another config's."""
  if clauses:
    more = f'; and {len(clauses) - _SHOWN} more keys' * (len(clauses) > _SHOWN)
    raise UserError(
      f'workdir: {buckets.shown(path)} belongs to another config: '
      f'{"; ".join(clauses[:_SHOWN])}{more}; {remedy}'
    )


def check(path: Path, config: RunConfig | Mapping, remedy: str = _ELSEWHERE):
  """Refuses a directory that a run with this config may not write to.

  A run may go on there with other values of some keys; see runs/changes.py.

  Args:
    path: It need not exist.
    config: The run's config, or a record of another kind.
    remedy: Advice for the error of a workdir of another config.

  Raises:
    UserError: it is a file, holds something else, or is of another config.
  """
  if path.exists() and not path.is_dir():
    raise UserError(
      f'workdir: {buckets.shown(path)} is a file; use another --workdir'
    )
  if (path / 'config.json').exists():
    differ = changes.found(path, config, remedy)
    _refuse(path, changes.refusals(path, config, differ), remedy)
  elif path.exists() and any(
    entry.name not in _OURS for entry in path.iterdir()
  ):
    raise UserError(
      f'workdir: {buckets.shown(path)} is not empty and holds no run of '
      'r1jax; use another --workdir'
    )


def _place(path: str) -> Path:
  """Returns a run's folder on this host.

  Raises:
    UserError: checkpoints cannot be written there.
  """
  place = buckets.path(path)
  if buckets.is_on_hub(path):
    raise UserError(
      f'workdir: {path}: runs are written to folders and gs://, not to the hub'
    )
  if (buckets.url(place) or '').startswith('s3://'):
    raise UserError(
      f'workdir: {path}: Orbax writes no checkpoints to s3://; use gs:// or a '
      'folder'
    )
  return place


def fetch(place: Path):
  """Brings the files of a run here from its bucket, if it is in one.

  Raises:
    UserError: there is something else, which is not brought.
  """
  where = buckets.url(place)
  if where is None or not buckets.exists(place):
    return
  if not any(buckets.matches(place, name) for name in _RECORDS):
    raise UserError(
      f'workdir: {where} holds other things than a run of r1jax; use another '
      '--workdir'
    )
  buckets.fetch(place)


class Workdir:
  """Claims a directory for a config, or says why it cannot.

  In a run of several processes the first one claims it for all.

  Raises:
    UserError: as `check`; or another run is in it, or it cannot be written to,
      and nothing in it was changed; or not all hosts see it.
  """

  def __init__(self, path: str, config: RunConfig | Mapping):
    self.path = _place(path)
    self._lock: IO | None = None
    token = processes.from_first(lambda: self._claim(config))
    with processes.agreed():
      self._check_shared(token)
    processes.log_to(self.path / 'logs')

  def close(self):
    """Gives the directory free for another run."""
    if self._lock is not None:
      self._lock.close()

  def _claim(self, config: RunConfig | Mapping) -> str:
    """Locks the directory; returns a text that its lock file holds now."""
    stands = self.path / 'config.json'
    fetch(self.path)
    check(self.path, config)
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = open(self.path / buckets.LOCK, 'a')
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      token = uuid.uuid4().hex
      self._lock.truncate(0)
      self._lock.write(token)
      self._lock.flush()
      os.fsync(self._lock.fileno())  # NFS shows it to other hosts now.
    except BlockingIOError as error:
      raise UserError(
        f'workdir: another run is writing to {buckets.shown(self.path)}; wait '
        'for it or use another --workdir'
      ) from error
    except OSError as error:
      raise UserError(
        f'workdir: cannot write to {self.path}: {error}'
      ) from error
    if not stands.exists():
      partial = stands.with_suffix('.partial')
      partial.write_text(json.dumps(changes.record_of(config), indent=2) + '\n')
      partial.replace(stands)
    buckets.claim(self.path, token)
    return token

  def _check_shared(self, token: str):
    """Refuses a folder of this host's own, where several share a run."""
    deadline = time.monotonic() + _VISIBLE_SECS
    while processes.several():
      with contextlib.suppress(OSError):  # It is not there yet.
        if buckets.claimed(self.path) == token:
          return
      if time.monotonic() > deadline:
        raise UserError(
          f'workdir: {buckets.shown(self.path)} of this host is not the folder '
          'that process 0 writes to; use one that all hosts share'
        )
      time.sleep(0.2)

  def claim_plugins(self, digests: dict[str, str]):
    """Records the plugins of the run, or refuses those that changed since.

    Args:
      digests: The SHA-256 of each plugin's file, by its name in the config.

    Raises:
      UserError: The run in this directory began with another version of one.
    """
    plugins = self.path / 'plugins.json'
    if not plugins.exists():
      if digests:
        files.write_text(plugins, json.dumps(digests, indent=1) + '\n')
      return
    theirs = json.loads(plugins.read_text())
    changed = [name for name in digests if digests[name] != theirs.get(name)]
    if changed:
      raise UserError(
        f'workdir: {buckets.shown(self.path)} began with another version of '
        f'{", ".join(changed)}; restore it, or {_ELSEWHERE}'
      )

  def stage(self, name: str) -> Path:
    return self.path / name
