"""Files in buckets (gs://, s3://), each with a copy on this host.

Inputs may also be in repositories of the Hugging Face hub (hf://), whose copies
the hub's own cache keeps; see hub.py.

  gs://BUCKET/runs/zero  ⇔  $R1JAX_CACHE/buckets/gs/BUCKET/runs/zero

The rest of the package works on the copy, so that it appends, maps and locks
files as on any disk. Checkpoints alone go to the bucket directly. `fetch` makes
a copy as the bucket is, `push` the bucket as the copy is. A copy is the same as
its object where size and time are: the time of the object is given to the copy
after each transfer.
"""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import functools
import os
from pathlib import Path
import re
import shutil
import time
from typing import Any

from r1jax import files, hub
from r1jax.errors import UserError

# Packages of each kind of bucket, which is also the name of an extra.
_PACKAGES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}
_URL = re.compile(r'([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)')
LOCK = '.lock'  # It says which run writes to a folder.
# Folders of a run that are not copied with it: checkpoints, and what other
# processes write, each to the bucket by itself.
_APART = ('checkpoints', 'processes', 'logs')
_PUSH_SECS = 60.0


def path(text: str | os.PathLike) -> Path:
  """Returns the place on this host of a file or folder that a user names.

  Args:
    text: A path, or a URL of a bucket. Nothing is fetched.

  Raises:
    UserError: it is the URL of something else.
  """
  text = os.fspath(text)
  match = _URL.fullmatch(text)
  if not match:
    return Path(text).expanduser()
  scheme, rest = match.groups()
  if scheme == hub.SCHEME:
    hub.place_of(text)
    return _root() / scheme / rest.strip('/')
  if scheme not in _PACKAGES:
    raise UserError(
      f'{text}: files are read in folders, gs://, s3:// and hf://, and written '
      f'in folders and gs://, not {scheme}://'
    )
  if '..' in rest.split('/') or '/' not in rest.strip('/'):
    raise UserError(f'{text}: give {scheme}://BUCKET/PATH')
  return _root() / scheme / rest.strip('/')


def local(text: str | os.PathLike) -> Path:
  """Returns the path of an output that is written to a disk alone.

  Raises:
    UserError: it is a URL.
  """
  if _URL.fullmatch(os.fspath(text)):
    raise UserError(f'{text}: this is written to a folder of this host alone')
  return Path(text).expanduser()


def url(place: Path) -> str | None:
  """Returns the URL that a copy belongs to; None for any other file."""
  try:
    scheme, *rest = place.absolute().relative_to(_root()).parts
  except ValueError:
    return None
  return f'{scheme}://{"/".join(rest)}'


def shown(place: Path) -> str:
  """Returns the name of a file for people: its URL, if it has one."""
  return url(place) or str(place)


def home(place: Path) -> Any:
  """Returns an etils path to what a copy belongs to, or an absolute path."""
  where = url(place)
  if where is None:
    return place.absolute()
  from etils import epath

  _store(where)  # Its package is installed.
  return epath.Path(where)


def given(text: str | os.PathLike) -> Path:
  """Returns the place of an input, which is fetched if it is in a bucket.

  Raises:
    UserError: the bucket cannot be read.
  """
  return fetch(path(text))


def fetch(place: Path) -> Path:
  """Makes a copy as its object, or all objects of its folder, are; returns it.

  Copies of what is not in the bucket are removed. Where a run of this host
  writes to the folder, its copies are the newest, and nothing is fetched.

  Files of the hub are in the hub's own cache, which is returned.

  Raises:
    UserError: the bucket cannot be read.
  """
  where = url(place)
  if where is None:
    return place
  if is_on_hub(where):
    return hub.fetch(where)
  with _errors('read', where), _alone(where):
    if not _is_held(place):
      store = _store(where)
      found = dict(_objects(store, where))
      for relative, info in found.items():
        _download(store, info, place / relative)
      _remove_others(place, found)
  return place


def exists(place: Path) -> bool:
  """Returns whether a file or folder is there, on this host or in its bucket."""
  where = url(place)
  if where is None:
    return place.exists()
  if is_on_hub(where):
    return hub.fetch(where).exists()
  with _errors('read', where):
    return _store(where).exists(where)


def is_on_hub(where: str) -> bool:
  """Whether a URL names a repository of the hub."""
  return where.startswith(f'{hub.SCHEME}://')


def matches(place: Path, pattern: str = '') -> list[str]:
  """Returns the URLs in a bucket that a pattern matches, in order.

  Args:
    place: A folder of the bucket, or the pattern itself.
    pattern: A pattern below it.
  """
  where = url(place / pattern)
  assert where is not None, f'{place} is in no bucket'
  if is_on_hub(where):
    return hub.matches(where)
  with _errors('read', where):
    scheme = where.partition('://')[0]
    return [f'{scheme}://{name}' for name in sorted(_store(where).glob(where))]


def claim(folder: Path, token: str):
  """Writes into a bucket which run writes to a folder from now on.

  Raises:
    UserError: the bucket is not there, or cannot be written to.
  """
  if where := url(folder):
    with _errors('write to', where):
      _store(where).pipe_file(f'{where}/{LOCK}', token.encode())


def claimed(folder: Path) -> str:
  """Returns the token of the run that writes to a folder."""
  where = url(folder)
  if where is None:
    return (folder / LOCK).read_text()
  with _errors('read', where):
    return _store(where).cat_file(f'{where}/{LOCK}').decode()


def push(folder: Path, last: str = ''):
  """Makes a folder of a bucket as its copy is; any other folder is left alone.

  Args:
    folder: The folder; or a file, which is written alone.
    last: A file in it that is written last, since it says that all is there.

  Raises:
    UserError: the bucket cannot be written to, or another run has claimed the
      folder.
  """
  where = url(folder)
  if where is None or not folder.exists():
    return
  with _errors('write to', where):
    store = _store(where)
    if folder.is_file():
      _upload(store, folder, where)
      return
    _check_claim(folder)
    found = dict(_objects(store, where))
    copies = sorted(_copies(folder), key=lambda name: (name == last, name))
    for relative in copies:
      if not _is_same(found.get(relative), folder / relative):
        _upload(store, folder / relative, f'{where}/{relative}')
    if gone := [found[name]['name'] for name in found.keys() - set(copies)]:
      store.rm(gone)


class Pushes:
  """Pushes a folder every minute, and when asked to."""

  def __init__(self, folder: Path):
    self._folder, self._last = folder, time.monotonic()

  def now(self):
    """Pushes the folder; see push."""
    push(self._folder)
    self._last = time.monotonic()

  def due(self):
    """Pushes the folder if a minute has gone by."""
    if time.monotonic() - self._last > _PUSH_SECS:
      self.now()


def _root() -> Path:
  return (files.user_cache() / 'buckets').absolute()


@functools.cache
def _filesystem(scheme: str) -> Any:
  package, extra = _PACKAGES[scheme]
  try:
    __import__(package)
    import fsspec
  except ImportError as error:
    raise UserError(
      f'{scheme}://: {package} is not installed; in the checkout: '
      f"pip install -e '.[{extra}]'"
    ) from error
  return fsspec.filesystem(scheme, use_listings_cache=False)


def _store(where: str) -> Any:
  """Returns the fsspec file system of a URL."""
  return _filesystem(where.partition('://')[0])


@contextlib.contextmanager
def _errors(verb: str, where: str) -> Iterator[None]:
  """Turns errors of a bucket into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Each package has its own kinds.
    if files.is_disk_full(error):
      raise
    text = ' '.join(str(error).split())[:200] or type(error).__name__
    raise UserError(f'cannot {verb} {where}: {text}') from error


@contextlib.contextmanager
def _alone(where: str) -> Iterator[None]:
  """Lets one process of this host fetch a URL at a time."""
  folder = _root() / '.locks'
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / files.digest_of(where), 'a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _is_held(place: Path) -> bool:
  """Returns whether a run of this host writes to a place."""
  run = _run_folder(place)
  # A pipeline's folder holds runs.
  locks = [run / LOCK] if run else list(place.glob(f'*/{LOCK}'))
  for name in locks:
    with open(name, 'a') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
      except BlockingIOError:
        return True
  return False


def _run_folder(place: Path) -> Path | None:
  """Returns the run that a place belongs to, if its lock is here."""
  for folder in (place, *place.parents):
    if folder == _root():
      return None
    if (folder / LOCK).is_file():
      return folder
  return None


def _check_claim(folder: Path):
  run = _run_folder(folder)
  if run is None:  # Of another process, which the first one speaks for.
    return
  if claimed(run) != (run / LOCK).read_text():
    raise UserError(
      f'workdir: another run has begun to write to {url(run)}; this one ends'
    )


def _objects(store: Any, where: str) -> Iterator[tuple[str, dict]]:
  """Yields the objects at a URL: their names relative to it ('' for itself)."""
  try:
    entries = store.ls(where, detail=True)
  except FileNotFoundError:
    return
  prefix = where.partition('://')[2].rstrip('/')
  for entry in entries:
    name = entry['name'].rstrip('/')
    relative = name.removeprefix(prefix).lstrip('/')
    if entry['type'] == 'directory':
      if relative and relative not in _APART:
        for inner, info in _objects(store, f'{where}/{relative}'):
          yield f'{relative}/{inner}', info
    elif relative != LOCK and not entry['name'].endswith('/'):
      yield relative, entry


def _copies(folder: Path) -> Iterator[str]:
  """Yields the names of the files in a folder, relative to it."""
  for parent, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if name not in _APART]
    for name in names:
      if name != LOCK and '.partial' not in name:
        yield str((Path(parent) / name).relative_to(folder))


def _time_ns(info: dict) -> int:
  """Returns when an object was written, in nanoseconds."""
  written = info.get('mtime') or info.get('LastModified') or info['updated']
  if isinstance(written, str):
    written = datetime.datetime.fromisoformat(written)
  return int(written.timestamp() * 1000) * 1_000_000


def _is_same(info: dict | None, copy: Path) -> bool:
  if info is None or not copy.is_file():
    return False
  status = copy.stat()
  return (info['size'], _time_ns(info)) == (status.st_size, status.st_mtime_ns)


def _download(store: Any, info: dict, copy: Path):
  if _is_same(info, copy):
    return
  if copy.is_dir():
    shutil.rmtree(copy)
  copy.parent.mkdir(parents=True, exist_ok=True)
  partial = copy.with_name(f'{copy.name}.partial{os.getpid()}')
  store.get_file(info['name'], str(partial))
  os.utime(partial, ns=(_time_ns(info), _time_ns(info)))
  partial.replace(copy)


def _upload(store: Any, copy: Path, where: str):
  before = copy.stat().st_mtime_ns
  store.put_file(str(copy), where)
  written = _time_ns(store.info(where))
  if copy.stat().st_mtime_ns == before:  # Nothing was appended meanwhile.
    os.utime(copy, ns=(written, written))


def _remove_others(place: Path, found: dict[str, dict]):
  """Removes copies of objects that are not in the bucket any more."""
  if place.is_file() and '' not in found:
    place.unlink()
  elif place.is_dir():
    for relative in list(_copies(place)):
      if relative not in found:
        (place / relative).unlink()
