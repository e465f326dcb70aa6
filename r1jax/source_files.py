"""Runs Python files that a user names by path: configs and plugins.

Such a file may import the files beside it, as a script may: `import shared`,
`from shared import x`, and also `from . import shared`. sys.path stays as it is.
Sources are compiled as they are: the bytecode that Python keeps may be older if
a file was changed within a second.
"""

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import importlib
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


class _SourceLoader(importlib.machinery.SourceFileLoader):
  """Compiles a source file anew, whatever bytecode there is of it."""

  def get_code(self, fullname: str):
    return self.source_to_code(self.get_data(self.path), self.path)


class _SiblingFinder:
  """Finds modules in the folder of a file, and the packages it belongs to."""

  def __init__(self, folders: Sequence[Path], package: str):
    self._folders = list(map(str, folders))
    self._package = package
    self.found: set[str] = set()

  def find_spec(self, fullname: str, path=None, target=None):
    """Returns where a top-level module is; None to let others look for it."""
    del target
    if path is not None:
      first = fullname.partition('.')[0]
      if first not in self.found and first != self._package:
        return None
      return _from_source(
        importlib.machinery.PathFinder.find_spec(fullname, path)
      )
    if fullname in sys.stdlib_module_names:
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
    return _from_source(spec)


def _from_source(spec: importlib.machinery.ModuleSpec | None):
  """Returns the spec of a module with a loader that reads its source."""
  if spec and type(spec.loader) is importlib.machinery.SourceFileLoader:
    spec.loader = _SourceLoader(spec.loader.name, spec.loader.path)
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
    keeps_siblings: Whether the files beside it stay in sys.modules: those that
      it has imported, and those that its functions import when they are called.

  Yields:
    The module.
  """
  loader = _SourceLoader(label, str(path))
  spec = importlib.util.spec_from_loader(label, loader)
  assert spec is not None  # A loader of a file always gives one.
  module = importlib.util.module_from_spec(spec)
  folder = path.resolve().parent
  packages, root = _packages(folder)
  if packages:
    module.__package__ = '.'.join(packages)
  else:
    module.__package__ = _folder_package(label, folder)
  hidden, outdated = _hidden(folder, packages)
  finder = _SiblingFinder(
    [folder, root] if packages else [folder],
    module.__package__.partition('.')[0],
  )
  sys.meta_path.insert(0, finder)
  sys.modules[label] = module  # Dataclasses look their module up.
  try:
    loader.exec_module(module)
    if keeps_siblings:
      _import_all(path, module.__package__)
    yield module
  finally:
    sys.meta_path.remove(finder)
    others = {name.partition('.')[0] for name in hidden}
    _take(finder.found & others if keeps_siblings else finder.found)
    if keeps_siblings:
      _kept.update(finder.found - others)
    sys.modules.update(hidden)
    # Another plugin of this folder may still import what this one does not.
    again = {
      name: kept
      for name, kept in outdated.items()
      if name.partition('.')[0] not in finder.found
    }
    sys.modules.update(again)
    _kept.update(name.partition('.')[0] for name in again)


def _import_all(path: Path, package: str):
  """Imports what the functions of a file, or of its siblings, will import.

  An error of such a file is left to the call that needs it.
  """
  folder = path.resolve().parent
  for file in [path, *siblings(path)]:
    for name in _imports(file):
      is_relative = name.startswith('.')
      if is_relative and file != path:  # Python finds it at the call.
        continue
      if _located(file, name, folder):
        with contextlib.suppress(Exception):
          importlib.import_module(name, package if is_relative else None)


def siblings(path: Path) -> list[Path]:
  """Returns the files beside a file that it names in imports, and theirs.

  Imports within functions count as well, whether they are run or not.
  """
  found: dict[Path, None] = {}
  left = [path.resolve()]
  while left:
    file = left.pop()
    for name in _imports(file):
      for other in _located(file, name, path.resolve().parent):
        if other not in found and other != path.resolve():
          found[other] = None
          left.append(other)
  return sorted(found)


def _imports(file: Path) -> Iterator[str]:
  """Yields the modules that a file imports, as '.shared'.

  `from a import b` names a.b as well, which may be a module.
  """
  try:
    tree = ast.parse(file.read_bytes())
  except (OSError, SyntaxError, ValueError):  # Running it says so.
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      module = '.' * node.level + (node.module or '')
      if node.module:
        yield module
      for alias in node.names:
        yield f'{module}{"." * bool(node.module)}{alias.name}'


def _located(file: Path, name: str, beside: Path | None = None) -> list[Path]:
  """Returns the files of a module that lies beside a file, or in its packages.

  Args:
    file: The file that imports it.
    name: The module: 'shared', 'sizes.small', '.shared' or '..common'.
    beside: A folder whose files it may import too, such as the plugin's.

  Returns:
    The module's file and the __init__.py of its packages; [] if it is none.
  """
  dots = len(name) - len(name.lstrip('.'))
  names = name.lstrip('.').split('.')
  if dots:
    folders = [Path(file.resolve().parent, *['..'] * (dots - 1)).resolve()]
  elif names[0] in sys.stdlib_module_names:
    return []
  else:
    folder = beside or file.resolve().parent
    folders = [folder, _packages(folder)[1]]
  for place in folders:
    found = []
    for each in names:
      package = place / each / '__init__.py'
      module = place / f'{each}.py'
      found += [x for x in (package, module) if x.is_file()][:1]
      place = place / each
    is_module = found and found[-1] in (
      place / '__init__.py',
      place.with_suffix('.py'),
    )
    if is_module and not _is_installed(found[-1]):
      return found
  return []


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


def _hidden(
  folder: Path, packages: Sequence[str]
) -> tuple[dict[str, ModuleType], dict[str, ModuleType]]:
  """Takes modules out of sys.modules that would be taken for siblings.

  Returns:
    Modules to put back; and those that plugins have kept, to put back unless
    they are imported anew.
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
  kept = _take(outdated)
  _kept.difference_update(outdated)
  return _take(names - outdated), kept


def _take(names: Collection[str]) -> dict[str, ModuleType]:
  """Removes modules of these names, and those in them, from sys.modules."""
  found = [name for name in sys.modules if name.partition('.')[0] in names]
  return {name: sys.modules.pop(name) for name in found}


def _is_installed(file: Path) -> bool:
  return file.is_relative_to(_PACKAGE) or any(
    file.is_relative_to(folder) for folder in _INSTALLED
  )
