"""Whole files: written at once, and digested; the user's cache."""

from collections.abc import Iterator
import errno
import hashlib
import json
import os
from pathlib import Path


def write_text(path: Path, text: str):
  """Writes a text file atomically: a reader never meets half of it."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes):
  """Writes a file atomically: a reader never meets half of it."""
  partial = path.with_suffix(f'.partial{os.getpid()}')
  partial.write_bytes(content)
  partial.replace(path)


def user_cache() -> Path:
  """Returns the folder of what runs keep for later ones; it need not exist.

  It is $R1JAX_CACHE, else r1jax/ in $XDG_CACHE_HOME or ~/.cache.
  """
  if place := os.environ.get('R1JAX_CACHE'):
    return Path(place).expanduser()
  place = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return Path(place).expanduser() / 'r1jax'


def digest(path: Path) -> str:
  """Returns the SHA-256 of a file, or of a folder's files with their names."""
  if path.is_file():
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  return digest_of(
    ''.join(
      f'{part.relative_to(path)} {digest(part)}\n'
      for part in sorted(path.rglob('*'))
      if part.is_file()
    )
  )


def json_digest(path: Path) -> str:
  """Returns the SHA-256 of what a JSON file says, however it is laid out."""
  return digest_of(json.dumps(json.loads(path.read_text()), sort_keys=True))


def digest_of(text: str) -> str:
  """Returns the SHA-256 of a text."""
  return hashlib.sha256(text.encode()).hexdigest()


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = tuple(map(os.strerror, _FULL))
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_disk_full(error: BaseException | None) -> bool:
  """Returns whether an error, or one that led to it, is of a full disk."""
  return any(
    (isinstance(each, OSError) and each.errno in _FULL)
    or any(text in str(each) for text in _FULL_TEXTS)
    for each in _led_to(error)
  )


def refusal(error: BaseException, folder: Path) -> str:
  """Returns why a path in a folder may not be written to; '' for no such error.

  Args:
    error: It, or one that it led to.
    folder: The folder.
  """
  for each in _led_to(error):
    text = str(each)
    for code in _REFUSED:  # Libraries in C++ tell the path in the text alone.
      reason = os.strerror(code)
      if reason in text and str(folder.absolute()) in text:
        return reason
  return ''


def _led_to(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and all that led to it."""
  seen: set[int] = set()
  queue = [error]
  while queue:
    each = queue.pop()
    if each is None or id(each) in seen:
      continue
    seen.add(id(each))
    yield each
    queue += [each.__cause__, each.__context__]
    queue += getattr(each, 'exceptions', ())  # An ExceptionGroup.
