"""Runs Python files that a user names by path: configs and plugins.

Such a file may import the files beside it, as a script may: `import shared`,
`from shared import x`, and also `from . import shared`. sys.path stays as it is.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import importlib.machinery
import importlib.util
from pathlib import Path
import sys
import sysconfig
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = tuple(
  Path(sysconfig.get_path(kind)) for kind in ('stdlib', 'purelib', 'platlib')
)
_kept: set[str] = set()  # Siblings of plugins that are in sys.modules.


class _SiblingFinder:
  """Finds modules in the folder of a file, and the packages it belongs to."""

  def __init__(self, folders: Sequence[Path]):
    self._folders = list(map(str, folders))
    self.found: set[str] = set()

  def find_spec(self, fullname: str, path=None, target=None):
    """Returns where a top-level module is; None to let others look for it."""
    del target
    if path is not None or fullname in sys.stdlib_module_names:
      return None
    spec = importlib.machinery.PathFinder.find_spec(fullname, self._folders)
    if spec is None or not spec.origin:  # A folder without __init__.py.
      return None
    usual = importlib.machinery.PathFinder.find_spec(fullname)
    if usual is not None and usual.origin == spec.origin:
      return None
    if _is_installed(Path(spec.origin)):
      return None
    self.found.add(fullname)
    return spec


@contextlib.contextmanager
def run_file(
  label: str, path: Path, keeps_siblings: bool = False
) -> Iterator[ModuleType]:
  """Runs a file as a module; in the context it may import what lies beside it.

  Files beside it are run afresh, so that another file of the same name, or an
  older version, is never taken for them.

  Args:
    label: The module's name in sys.modules.
    path: The file.
    keeps_siblings: Whether the files beside it that it has imported stay in
      sys.modules, so that its functions may import them when they are called.

  Yields:
    The module.
  """
  loader = importlib.machinery.SourceFileLoader(label, str(path))
  spec = importlib.util.spec_from_loader(label, loader)
  assert spec is not None  # A loader of a file always gives one.
  module = importlib.util.module_from_spec(spec)
  folder = path.resolve().parent
  packages, root = _packages(folder)
  if packages:
    module.__package__ = '.'.join(packages)
  else:
    module.__package__ = _folder_package(label, folder)
  hidden = _hidden(folder, packages)
  finder = _SiblingFinder([folder, root] if packages else [folder])
  sys.meta_path.insert(0, finder)
  sys.modules[label] = module  # Dataclasses look their module up.
  try:
    loader.exec_module(module)
    yield module
  finally:
    sys.meta_path.remove(finder)
    others = {name.partition('.')[0] for name in hidden}
    _take(finder.found & others if keeps_siblings else finder.found)
    if keeps_siblings:
      _kept.update(finder.found - others)
    sys.modules.update(hidden)


def imported_beside(path: Path, before: Mapping[str, ModuleType]) -> list[Path]:
  """Returns the files below the folder of a file that were imported since.

  Args:
    path: The file.
    before: A copy of sys.modules from before.
  """
  folder = path.resolve().parent
  origins = {
    Path(origin).resolve()
    for name, module in list(sys.modules.items())
    if module is not before.get(name)
    and (origin := getattr(module, '__file__', None))
  }
  return sorted(
    origin
    for origin in origins
    if origin.is_relative_to(folder)
    and origin != path.resolve()
    and not _is_installed(origin)
  )


def _packages(folder: Path) -> tuple[list[str], Path]:
  """Returns the packages that a folder is, from the outermost, and their root."""
  names: list[str] = []
  while (folder / '__init__.py').exists():
    names.insert(0, folder.name)
    folder = folder.parent
  return names, folder


def _folder_package(label: str, folder: Path) -> str:
  """Makes a package of a folder without __init__.py; returns its name."""
  name = f'{label}_folder'
  for each in [n for n in sys.modules if n.partition('.')[0] == name]:
    del sys.modules[each]
  package = ModuleType(name)
  package.__path__ = [str(folder)]
  sys.modules[name] = package
  return name


def _hidden(folder: Path, packages: Sequence[str]) -> dict[str, ModuleType]:
  """Takes modules out of sys.modules that would be taken for siblings.

  Returns:
    Modules to put back: all but what plugins have kept, which is outdated.
  """
  beside = {file.stem for file in folder.glob('*.py')}
  beside |= {file.parent.name for file in folder.glob('*/__init__.py')}
  names = set()
  for name in beside - sys.stdlib_module_names:
    origin = getattr(sys.modules.get(name), '__file__', None)
    if origin and not _is_installed(Path(origin)):
      is_sibling = Path(origin).resolve().is_relative_to(folder)
      if name in _kept or not is_sibling:
        names.add(name)
  outdated = (names | set(packages[:1])) & _kept
  _take(outdated)
  _kept.difference_update(outdated)
  return _take(names - outdated)


def _take(names: Collection[str]) -> dict[str, ModuleType]:
  """Removes modules of these names, and those in them, from sys.modules."""
  found = [name for name in sys.modules if name.partition('.')[0] in names]
  return {name: sys.modules.pop(name) for name in found}


def _is_installed(file: Path) -> bool:
  return file.is_relative_to(_PACKAGE) or any(
    file.is_relative_to(folder) for folder in _INSTALLED
  )
