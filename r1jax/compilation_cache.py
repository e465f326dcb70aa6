"""Compiled programs on disk: a run finds what an earlier one has compiled.

JAX keeps them under a key that holds the program, the versions of JAX and XLA,
the compiler's options and the processor with its features and cores, so a
program from another machine is not found rather than wrong. A program that is
found computes the same numbers as one that is compiled again, bit for bit.
"""

import errno
import logging
import os
from pathlib import Path
import shutil

import jax

from r1jax import buckets, files

AUTO = 'auto'  # The folder in the user's cache.
MAX_BYTES = 4 << 30  # Kept at the start of a run.
# On a full disk JAX leaves parts of programs, and never writes them again.
_MIN_FREE_BYTES = 1 << 30
# Each of many small programs costs little, and together they cost seconds.
_MIN_COMPILE_SECS = 0.1
_log = logging.getLogger(__name__)


def enable(folder: str):
  """Keeps the compiled programs of this process in a folder.

  A folder that JAX already has comes first: JAX_COMPILATION_CACHE_DIR, or that
  of an earlier run in this process. A folder that cannot be written to, or
  whose disk is almost full, is reported, and the programs are compiled as
  without it.

  Args:
    folder: The folder; AUTO for the one in the user's cache, '' for none.
  """
  config = jax.config
  if not folder or config.values['jax_compilation_cache_dir']:
    return
  try:
    place = _prepared(folder)
  except (OSError, RuntimeError) as error:  # RuntimeError: ~ has no meaning.
    _log.warning(
      'compilation_cache_dir: %s cannot be used (%s); this run compiles '
      'everything itself',
      folder,
      error,
    )
    return
  config.update('jax_compilation_cache_dir', str(place))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    config.update(
      'jax_persistent_cache_min_compile_time_secs', _MIN_COMPILE_SECS
    )


def _prepared(folder: str) -> Path:
  """Makes a folder, removes what is too much in it and returns its path."""
  place = default_folder() if folder == AUTO else buckets.local(folder)
  place.mkdir(parents=True, exist_ok=True)
  files.write_bytes(place / 'writable', b'')
  remove_oldest(place, MAX_BYTES)
  if shutil.disk_usage(place).free < _MIN_FREE_BYTES:
    raise OSError(errno.ENOSPC, 'less than 1 GiB is free', str(place))
  return place


def default_folder() -> Path:
  """Returns the folder that AUTO stands for."""
  return files.user_cache() / 'jax'


def remove_oldest(folder: Path, max_bytes: int):
  """Removes the programs that were not used for longest, down to a size.

  Empty files, which a full disk has left, go too.

  JAX could do so itself, but looks at every file whenever it adds one, under a
  lock that all processes share.

  Args:
    folder: Folder of compiled programs; its other files stay.
    max_bytes: Largest total size of what stays.
  """
  entries = []
  for path in folder.glob('*-cache'):
    try:
      status = path.stat()
    except FileNotFoundError:  # Another process has removed it.
      continue
    if not status.st_size:
      path.unlink(missing_ok=True)
      continue
    used = max(status.st_atime_ns, status.st_mtime_ns)
    entries.append((used, status.st_size, path))
  excess = sum(size for _, size, _ in entries) - max_bytes
  for _, size, path in sorted(entries):
    if excess <= 0:
      break
    path.unlink(missing_ok=True)
    excess -= size
