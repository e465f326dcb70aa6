"""The SHA-256 of each tensor in the header of a safetensors file of r1jax.

  "__metadata__": {"r1jax": …, "r1jax_sha256": "{\\"embedding\\": \\"5f3a…\\", …}"}

The entry '' is the digest of the header itself, with zeros in its place. The
digests lie in the file, so that a copy of it can be checked anywhere.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
import re
from typing import BinaryIO

from r1jax.errors import UserError

KEY = 'r1jax_sha256'
_HEADER, _UNKNOWN = '', '0' * 64
_CHUNK_BYTES = 8 << 20


def placeholder(names: Sequence[str]) -> dict[str, str]:
  """Returns digests of the length of those that are not known yet."""
  return dict.fromkeys((*names, _HEADER), _UNKNOWN)


def encode(header: Mapping, digests: Mapping[str, str] | None) -> bytes:
  """Returns the text of a header, padded to a multiple of eight bytes."""
  filled = dict(header)
  if digests is not None:
    text = json.dumps(digests, separators=(',', ':'))
    filled['__metadata__'] = header['__metadata__'] | {KEY: text}
  encoded = json.dumps(filled, separators=(',', ':')).encode()
  return encoded + b' ' * (-len(encoded) % 8)


def sealed(header: Mapping, digests: Mapping[str, str]) -> bytes:
  """Returns the text of a header with the digests, its own one too."""
  own = hashlib.sha256(encode(header, dict(digests) | {_HEADER: _UNKNOWN}))
  return encode(header, dict(digests) | {_HEADER: own.hexdigest()})


def check(files: Sequence[Path], share: int = 0, shares: int = 1):
  """Refuses files whose bytes are not those that were written.

  Files without digests, such as those of other programs, pass unchecked.

  Args:
    files: The safetensors files of a checkpoint.
    share: The part of the tensors that this process reads, of …
    shares: … so many.

  Raises:
    UserError: naming the file and its tensors.
  """
  for file in files:
    broken = _broken(file, share, shares)
    if broken:
      more = f' and {len(broken) - 3} more' * (len(broken) > 3)
      raise UserError(
        f'weights: {file} is broken: {", ".join(broken[:3])}{more} has other '
        'bytes than were written; put back a copy of it, or remove it to make '
        'it again'
      )


def _broken(path: Path, share: int, shares: int) -> list[str]:
  """Returns the names of the tensors that have changed, or of the header."""
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    text = file.read(length)
    header = json.loads(text)
    stored = _stored(header.get('__metadata__', {}))
    if stored is None:
      return []
    try:
      digests = json.loads(stored)
      own = digests[_HEADER]
    except (ValueError, KeyError):
      return ['its header']
    unsealed = text.replace(own.encode(), _UNKNOWN.encode(), 1)
    if hashlib.sha256(unsealed).hexdigest() != own:
      return ['its header']
    names = sorted(name for name in header if name != '__metadata__')
    return [
      name
      for name in names[share::shares]
      if _digest(file, 8 + length, header[name]) != digests.get(name)
    ]


def _stored(metadata: Mapping[str, str]) -> str | None:
  """Returns the digests as they are in a header; None if it has none.

  They are known by their form too: a flipped bit in their name hides nothing.
  """
  for name, text in metadata.items():
    if name == KEY or re.search(f'"{_HEADER}":"[0-9a-f]{{64}}"', text):
      return text
  return None


def _digest(file: BinaryIO, data: int, entry: Mapping) -> str:
  """Returns the digest of a tensor's bytes, which it reads in parts."""
  start, end = entry['data_offsets']
  file.seek(data + start)
  found, left = hashlib.sha256(), end - start
  while left:
    chunk = file.read(min(left, _CHUNK_BYTES))
    if not chunk:
      break
    found.update(chunk)
    left -= len(chunk)
  return found.hexdigest()
