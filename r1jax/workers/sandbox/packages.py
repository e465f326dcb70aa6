"""Finds the installed packages that programs may import in the sandbox.

Their files are readable there, beside those of the standard library. They are
imported before the server confines itself, so they work in every tier.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
from pathlib import Path

from r1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Packages:
  """Packages beside the standard library.

  Attributes:
    names: Their names, as in `import numpy`.
    paths: The folders that hold them.
    files: Their folders and files, with those of their shared libraries.
  """

  names: tuple[str, ...] = ()
  paths: tuple[str, ...] = ()
  files: tuple[str, ...] = ()


def find(names: Sequence[str]) -> Packages:
  """Finds installed packages.

  Args:
    names: Their names.

  Raises:
    UserError: a package is not installed.
  """
  paths: list[str] = []
  files: list[str] = []
  for name in names:
    place = _place(name)
    paths.append(str(place.parent))
    files.append(str(place))
    # Wheels keep the shared libraries of a package in a folder beside it.
    files += map(str, place.parent.glob(f'{name}.libs'))
  return Packages(
    tuple(names), tuple(dict.fromkeys(paths)), tuple(dict.fromkeys(files))
  )


def _place(name: str) -> Path:
  """Returns the folder of a package, or the file of a module."""
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec and spec.submodule_search_locations:
    return Path(spec.submodule_search_locations[0]).resolve()
  if spec and spec.origin and Path(spec.origin).exists():
    return Path(spec.origin).resolve()
  raise UserError(
    f'sandbox: programs cannot import {name!r}: no package of this name is '
    'installed; install it or take it out of data.code_packages'
  )
