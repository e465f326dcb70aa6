"""Checkpoints of training state, data position and seed, stored by Orbax.

A checkpoint is checked in two ways when it is read again. Its files have the
SHA-256 that they were written with, which names the file that is broken
(manifest.py); and its arrays, once they are on the devices, have the checksums
that they had on the devices before the save (checksums.py), which covers what
a hash of files cannot see: the way from a device to a file, and back. In a
bucket, whose store keeps files whole, there are the checksums alone.
"""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from r1jax import buckets, files, processes, waits
from r1jax.errors import UserError
from r1jax.train import checksums, manifest
from r1jax.train.retention import Retention

BROKEN = 'broken_checkpoints'
_HOST_FILE = 'host/metadata'  # The file of the item `host`.
_LEAVES, _SEED, _RUN = 'leaves', 'seed', 'config_sha256'
_VALUE, _METRIC = 'best_metric', 'best_metric_name'
# Longest time of a save. Orbax measures it with the clock of the day: a clock
# that is set right in the meantime must not end the run.
_SAVE_SECS = 2 * 86400
_log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
  """Whether Orbax logs more than that the disk is full, which it raises too."""
  error = record.exc_info[1] if record.exc_info else None
  return not files.is_disk_full(error or Exception(record.getMessage()))


logging.getLogger('absl').addFilter(_is_news)


class _HashingHandler(ocp.StandardCheckpointHandler):
  """Saves arrays as Orbax does, and hashes the files before they count.

  Attributes:
    root: The folder of the checkpoint that is being saved.
  """

  root: Path | None = None

  async def async_save(self, directory, *args, **kwargs):
    """Returns futures that are done when this process's files are hashed."""
    self.root = Path(os.fspath(directory)).parent
    futures = await super().async_save(directory, *args, **kwargs) or []
    process = jax.process_index()
    own = Path(os.fspath(directory)) / f'ocdbt.process_{process}'
    return [_HashedFuture(futures, self.root, own, process)]

  def write_list(self):
    """Writes the list of all files; Orbax calls it in the first process."""
    assert self.root is not None
    manifest.write(self.root)


class _HashedFuture:
  """Waits for the writes of a process, then hashes what they have written."""

  def __init__(self, writes: Sequence, root: Path, own: Path, process: int):
    self._writes, self._args = writes, (root, own, process)

  def result(self, timeout: float | None = None):
    for write in self._writes:
      write.result(timeout)
    manifest.write_part(*self._args)

  def cancel(self):
    for write in self._writes:
      write.cancel()


class Checkpointer:
  """Saves checkpoints in the background, each of them atomically.

  A checkpoint at step k holds everything that step k + 1 needs. Random keys are
  functions of (seed, step), so only the seed is stored.
  """

  def __init__(
    self,
    directory: Path,
    retention: Retention,
    seed: int,
    runs: Sequence[str] = (),
    read_only: bool = False,
    holders: Collection[int] = (),
  ):
    """Stores the arguments; nothing is written yet.

    Args:
      directory: The folder of the checkpoints, one folder for each step.
      retention: It says which of them are kept.
      seed: The run's.
      runs: The digest of its config, which its checkpoints have too, and those
        that it had before; () where there is none.
      read_only: Whether another process may be writing to the folder.
      holders: The processes that hold the state, the first one among them; ()
        if all do. The others have its shapes alone, and write nothing.
    """
    self._directory, self._retention = directory, retention
    self._home = buckets.home(directory)
    self._in_bucket = buckets.url(directory) is not None
    self._seed, self._runs, self._read_only = seed, runs, read_only
    self._holders = frozenset(holders)
    self._holds = not holders or jax.process_index() in self._holders
    self._newest: int | None = None  # The step that was restored or saved last.
    self._values: dict[int, float] = {}
    self._opened: ocp.CheckpointManager | None = None

  def _open(self) -> ocp.CheckpointManager:
    """Returns Orbax's manager of the checkpoints that are there now."""
    if self._opened is None:
      active = ocp.options.MultiprocessingOptions(
        active_processes=set(self._holders) or None
      )
      make = (
        ocp.StandardCheckpointHandler if self._in_bucket else _HashingHandler
      )
      handler = make(multiprocessing_options=active)
      registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
      registry.add('state', ocp.args.StandardSave, handler)
      registry.add('state', ocp.args.StandardRestore, handler)
      if self._holders and not self._read_only:
        # Orbax creates a folder only where all processes take part.
        self._home.mkdir(parents=True, exist_ok=True)
      options = ocp.CheckpointManagerOptions(
        create=not self._read_only and not self._holders,
        multiprocessing_options=active,
        read_only=self._read_only,
        # A save that a kill cut off would stay for ever.
        cleanup_tmp_directories=not self._read_only,
        lightweight_initialize=True,
        preservation_policy=self._retention.policy(self._values),
        async_options=ocp.AsyncOptions(
          timeout_secs=_SAVE_SECS,
          post_finalization_callback=getattr(handler, 'write_list', None),
        ),
      )
      self._opened = ocp.CheckpointManager(
        self._home, options=options, handler_registry=registry
      )
    return self._opened

  def save(
    self,
    step: int,
    state: Any,
    host_state: dict[str, dict],
    value: float | None = None,
  ):
    """Starts to save a checkpoint, unless its step is saved already.

    Args:
      step: The step.
      state: The state after it.
      host_state: The data's position and what else the host keeps, as JSON by
        name.
      value: The metric that says which checkpoint is the best, if it is known.
    """
    if step == self._newest:
      return
    self._newest = step
    if not self._holds:
      return
    if value is not None and math.isfinite(value):
      self._values[step] = value
    host = host_state | {
      _SEED: self._seed,
      _RUN: self._runs[0] if self._runs else '',
      _VALUE: self._values.get(step),
      _METRIC: self._retention.metric,
      _LEAVES: checksums.of_tree(state),
    }
    if len(self._holders) == 1:  # Orbax takes what one process holds as NumPy.
      state = jax.device_get(state)
    saved = self._open().save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
      ),
    )
    if not saved:
      raise UserError(
        f'checkpoint: {self._directory} has a step after {step} already, which '
        'another run has saved; use another --workdir'
      )

  def best(self) -> tuple[int, float] | None:
    """Returns the step of the best checkpoint and its metric, if one has it."""
    step = self._retention.best(self._values)
    return None if step is None else (step, self._values[step])

  def restore(self, target: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole; None if there is none.

    Broken checkpoints are told of in a warning, and moved to a folder beside,
    so that their steps can be saved again; in a read-only folder they stay.

    Args:
      target: The state as ShapeDtypeStructs with shardings.

    Returns:
      The step, the state after it, and what the host kept, by name.

    Raises:
      UserError: A checkpoint does not fit this state, or has another seed or
        config; or all are broken.
    """
    broken: dict[int, str] = {}
    for step in processes.from_first(self._steps_from_last):
      problems, state, host = self._read(step, target)
      if not problems:
        self._set_aside(broken, step)
        self._newest = step
        return step, state, host
      broken[step] = manifest.shown(problems)
    if broken:
      every = '; '.join(f'step {step}: {text}' for step, text in broken.items())
      raise UserError(
        f'checkpoint: no checkpoint in {self._directory} is whole ({every}); '
        'put one back from a copy, or move that folder away to begin again'
      )
    if not self._read_only and self._holds:
      self._open()
    return None

  def _steps_from_last(self) -> list[int]:
    if self._in_bucket:  # A folder there has its name before it is whole.
      if not self._home.exists():
        return []
      return sorted(self._open().all_steps(read=True), reverse=True)
    if not self._directory.is_dir():
      return []
    names = (path.name for path in self._directory.iterdir())
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)

  def _read(self, step: int, target: Any) -> tuple[list[str], Any, dict]:
    """Returns what is broken in a checkpoint, its state and host state."""
    problems, has_list = self._file_problems(self._directory / str(step))
    if problems:
      return problems, None, {}
    host = self._host_state(step)
    leaves = host.pop(_LEAVES, None)
    if leaves and not has_list and not self._in_bucket:
      return [f'{manifest.FILE} is missing'], None, {}
    self._check_owner(step, host)
    if not leaves:
      _log.warning(
        'checkpoint: step %d in %s is of a version that kept no checksums; it '
        'is used unchecked',
        step,
        self._directory,
      )
    elif texts := manifest.misfits(leaves, checksums.described(target)):
      raise UserError(
        f'checkpoint: step {step} in {self._directory} does not fit this run: '
        f'{manifest.shown(texts)}; use the config that it was saved with'
      )
    state = target
    if self._holds:
      state = self._restored(step, state=ocp.args.StandardRestore(target))
      state = state['state']
    if leaves and self._holds:
      problems = manifest.leaf_problems(checksums.of_tree(state), leaves)
    if self._holders:
      problems = processes.exchange(problems)[0]
    return problems, state, host

  def _host_state(self, step: int) -> dict:
    """Returns what the host kept, in all processes."""
    if not self._holders:
      return self._restored(step, host=ocp.args.JsonRestore())['host']

    def read() -> dict:
      path = self._home / str(step) / _HOST_FILE
      try:
        return json.loads(path.read_text())
      except (OSError, ValueError) as error:
        raise UserError(
          f'checkpoint: step {step} in {self._directory} does not restore '
          f'({error}); remove that step to go on from the one before'
        ) from error

    return processes.from_first(read)

  def _file_problems(self, folder: Path) -> tuple[list[str], bool]:
    """Returns what is wrong with the files of a checkpoint, and if it has a list."""
    if self._in_bucket:
      return [], False
    if processes.from_first(lambda: manifest.is_in(folder)):
      with processes.agreed():
        problems = manifest.problems(
          folder, jax.process_index(), jax.process_count()
        )
      return sum(processes.exchange(problems), []), True
    if processes.from_first((folder / _HOST_FILE).exists):
      return [], False
    return [f'{_HOST_FILE} is missing'], False  # A removal was cut off.

  def _restored(self, step: int, **items: Any) -> Any:
    try:
      return self._open().restore(step, args=ocp.args.Composite(**items))
    except Exception as error:
      reason = str(error).strip().splitlines()[0][:300]
      raise UserError(
        f'checkpoint: step {step} in {self._directory} does not restore '
        f'({reason}); remove that step to go on from the one before'
      ) from error

  def _check_owner(self, step: int, host: Mapping[str, Any]):
    """Refuses the checkpoint of another run."""
    where = f'checkpoint: step {step} in {self._directory}'
    if host[_SEED] != self._seed:
      raise UserError(
        f'{where} has seed {host[_SEED]}, the config {self._seed}'
      )
    if self._runs and host.get(_RUN, self._runs[0]) not in self._runs:
      raise UserError(
        f'{where} was saved by a run with another config; put that of this run '
        'back, or use another --workdir'
      )

  def _set_aside(self, broken: Mapping[int, str], good: int):
    """Moves broken checkpoints away, and says so; reads the others' metric.

    Raises:
      UserError: they are in a bucket, where nothing is moved.
    """
    if broken and self._in_bucket and not self._read_only:
      step, text = max(broken.items())
      raise UserError(
        f'checkpoint: step {step} in {self._home} is broken: {text}; move that '
        f'folder away to go on from step {good}'
      )
    for step, text in broken.items():
      where = 'it stays there'
      if not self._read_only:
        place = processes.from_first(lambda: self._moved(step))
        where = f'it is in {place} now'
      _log.warning(
        'checkpoint: step %d in %s is broken: %s; %s, and the run goes on from '
        'step %d, the last that is whole',
        step,
        self._directory,
        text,
        where,
        good,
      )
    if broken:
      self._close()  # It is opened again without them.
    if self._retention.metric and not self._read_only:
      self._values |= dict(processes.from_first(self._stored_values))

  def _stored_values(self) -> list[tuple[int, float]]:
    """Returns the metric of every checkpoint that has one, with its step.

    A checkpoint that was saved when another metric decided has none.
    """
    found, metric = [], self._retention.metric
    for step in self._steps_from_last():
      try:
        text = (self._home / str(step) / _HOST_FILE).read_text()
        host = json.loads(text)
        named = host.get(_METRIC, metric) == metric
        value = host.get(_VALUE) if named else None
      except (OSError, ValueError, AttributeError) as error:
        _log.warning(
          'checkpoint: step %d in %s does not say its %s (%s), and is not '
          'compared with others',
          step,
          self._directory,
          metric,
          error,
        )
        continue
      if isinstance(value, (int, float)):
        found.append((step, float(value)))
    return found

  def _moved(self, step: int) -> str:
    """Moves a checkpoint out of the way; returns where it is."""
    folder = self._directory.parent / BROKEN
    names = (str(step), *(f'{step}_{i}' for i in range(2, 1000)))
    place = next(
      folder / name for name in names if not (folder / name).exists()
    )
    try:
      folder.mkdir(exist_ok=True)
      (self._directory / str(step)).rename(place)
    except OSError as error:
      raise UserError(
        f'checkpoint: cannot move the broken step {step} to {place}: {error}'
      ) from error
    return str(place)

  def _close(self):
    opened, self._opened = self._opened, None
    if opened is not None:
      opened.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    """Waits until the last save is finished.

    An error of that save does not take the place of one that is raised already.
    """
    ignored = (Exception,) if kind else ()
    with contextlib.suppress(*ignored):
      if self._opened is not None:
        with waits.told('writing the last checkpoint'):
          self._opened.wait_until_finished()
    with contextlib.suppress(*ignored):
      self._close()
