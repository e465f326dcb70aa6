"""Everything that a config names: one decorator, and the plugins that use it.

  from r1jax import registry

  @registry.reward('brevity')
  def brevity(sample):
    return -sample.num_tokens / 1000

  registry.response_format('note')(ResponseFormat('<note>', '</note>'))

Functions and classes are decorated; records are passed to the decorator.
`config.plugins = ('my_rewards.py',)` imports such a file before names are
looked up. A name is registered once; a second registration is an error that
names both files. What the package itself registers is built in; the rest runs
under the limits of worker processes where its kind has some.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import importlib
import importlib.util
from pathlib import Path
import sys
import traceback
from typing import Any

from r1jax import source_files
from r1jax.errors import UserError, unknown


class Registry:
  """Objects of one kind by name, in the order of their registration.

  Attributes:
    kind: The kind in an error message, such as 'reward'.
    built_in: Module that registers the package's own names. It is imported
      when a name is first looked up or a plugin registers one; '' if they are
      imported otherwise.
    names_objects: Whether an object gets its name as its attribute `name`.
  """

  def __init__(
    self, kind: str, built_in: str = '', names_objects: bool = False
  ):
    self.kind, self.built_in = kind, built_in
    self.names_objects = names_objects
    self._objects: dict[str, Any] = {}
    self._origins: dict[str, Origin] = {}

  def __call__(self, name: str, **options: Any) -> Callable[[Any], Any]:
    """Returns a decorator that registers an object under a name.

    Args:
      name: The name by which a config refers to it.
      **options: Options that are kept beside the object, such as batch=True.

    Raises:
      UserError: the name is registered already.
    """
    file = _calling_file()
    return lambda made: self.add(name, made, file, **options)

  def add(self, name: str, made: Any, file: str = '', **options: Any) -> Any:
    """Registers an object under a name and returns it.

    Args:
      name: The name by which a config refers to it.
      made: A function, a class or a record.
      file: The file that registers it; by default that of the caller.
      **options: Options that are kept beside the object.

    Raises:
      UserError: another file has registered the name already, or the plugin
        that is being imported has.
    """
    file = file or _calling_file()
    if not _is_built_in(file):
      self._import_built_in()
    before = self._origins.get(name)
    if before and (
      before.file != file or (self.kind, name) in _importing.names
    ):
      first, second = before.file, file
      if _is_built_in(second):  # The plugin was imported first; it is at fault.
        first, second = second, first
      if first == second:
        raise UserError(
          f'{first}: registers the {self.kind} {name!r} twice; choose another '
          'name for one of them'
        )
      raise UserError(
        f'{second}: the {self.kind} {name!r} is already registered by '
        f'{"r1jax" if _is_built_in(first) else first}; choose another name'
      )
    _importing.names.add((self.kind, name))
    plugin = '' if _is_built_in(file) else _importing.plugin or file
    self._objects[name] = made
    self._origins[name] = Origin(file, plugin, options)
    if self.names_objects:
      made.name = name
    return made

  def _import_built_in(self):
    if self.built_in:
      importlib.import_module(self.built_in)

  def get(self, name: str, key: str = '') -> Any:
    """Returns what is registered under a name.

    Args:
      name: The name.
      key: The key of the config that has it, for errors.

    Raises:
      UserError: nothing is; names the nearest that is.
    """
    if name not in self:
      raise unknown(key or self.kind, name, self)
    return self._objects[name]

  def origin(self, name: str) -> 'Origin':
    """Returns who registered a name, and with which options."""
    if name not in self._origins:
      self._import_built_in()
    return self._origins[name]

  def __contains__(self, name: object) -> bool:
    if name not in self._objects:  # In a worker, that of a plugin is there.
      self._import_built_in()
    return name in self._objects

  def __iter__(self) -> Iterator[str]:
    self._import_built_in()
    return iter(self._objects)

  def items(self):
    """Returns pairs of a name and what is registered under it."""
    self._import_built_in()
    return self._objects.items()

  def forget(self, file: str):
    """Removes every name that a file has registered."""
    for name in [n for n, o in self._origins.items() if o.file == file]:
      del self._objects[name], self._origins[name]


@dataclasses.dataclass(frozen=True)
class Origin:
  """Who registered a name.

  Attributes:
    file: The file that did.
    plugin: The name that `load_plugins` takes to register it again, in another process:
      an absolute path or the name of a module; '' for what is built in.
    options: Options of the registration.
  """

  file: str
  plugin: str
  options: Mapping[str, Any]


@dataclasses.dataclass
class _Import:
  """The plugin that is being imported, if any, and the names of it so far."""

  plugin: str = ''
  names: set[tuple[str, str]] = dataclasses.field(default_factory=set)


class _NoNames(set):
  """The names outside of an import: a notebook's cell may register again."""

  def add(self, _):
    pass


_NO_IMPORT = _Import(names=_NoNames())
_importing = _NO_IMPORT
_PACKAGE = Path(__file__).resolve().parent


def _is_built_in(file: str) -> bool:
  return Path(file).is_relative_to(_PACKAGE)


def _calling_file() -> str:
  """Returns the file of the nearest caller outside of this module."""
  frame = sys._getframe(1)
  while frame.f_back and frame.f_code.co_filename == __file__:
    frame = frame.f_back
  return str(Path(frame.f_code.co_filename).resolve())


reward = Registry('reward', 'r1jax.rewards.parts')
grader = Registry('grader', 'r1jax.graders.dispatch')
task = Registry('task', 'r1jax.data.tasks.all')
dataset = Registry('dataset', 'r1jax.data.suites')
response_format = Registry(
  'response format', 'r1jax.data.text.response_formats'
)
template = Registry('template', 'r1jax.data.text.template')
adv_estimator = Registry('advantage estimator', 'r1jax.algos.advantage')
policy_loss = Registry('policy loss', 'r1jax.algos.policy_loss')
model_family = Registry('model family', 'r1jax.checkpoints.families')
stage = Registry('stage', 'r1jax.stages.all', names_objects=True)
environment = Registry('environment', 'r1jax.rewards.environment')
tracker = Registry('tracker', 'r1jax.tracking.trackers')

KINDS = (
  reward,
  grader,
  task,
  dataset,
  response_format,
  template,
  adv_estimator,
  policy_loss,
  model_family,
  stage,
  environment,
)

# Plugin files to what was run: the digests of these and of files beside them.
_loaded: dict[str, dict[str, str]] = {}


def load_plugins(names: Sequence[str]) -> dict[str, str]:
  """Imports plugins, each once.

  Args:
    names: Python files ('my_rewards.py', relative to the current folder) or
      modules by name ('my_package.rewards').

  Returns:
    The SHA-256 of each plugin's file, by its path.

  Raises:
    UserError: a plugin is not there, cannot be imported, or registers a name
      twice; the message names the file.
  """
  digests = {}
  for name in names:
    path = plugin_file(name)
    if _loaded.get(str(path)) != _digests(_loaded.get(str(path), [path])):
      _forget(path)
      before = dict(sys.modules)
      try:
        _import(name, path)
      except UserError:
        _forget(path)
        raise
      others = {
        *source_files.imported_beside(path, before),
        *source_files.siblings(path),
      }
      _loaded[str(path)] = _digests([path, *sorted(others)])
    digests[str(path)] = digest(name)
  return digests


def digest(plugin: str) -> str:
  """Returns the SHA-256 of a plugin as it was imported; '' if it was not.

  The files beside it that it imports are part of it, also those that only its
  functions import.
  """
  digests = _loaded.get(str(plugin_file(plugin)), {})
  if len(digests) < 2:
    return ''.join(digests.values())
  return hashlib.sha256(''.join(digests.values()).encode()).hexdigest()


def files_of(plugin: str) -> list[Path]:
  """Returns the files of a plugin: its own, and those that it imports."""
  path = plugin_file(plugin)
  return list(map(Path, _loaded.get(str(path), [path])))


def _digests(files: Iterable[str | Path]) -> dict[str, str]:
  return {
    str(file): hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if Path(file).is_file()
    else ''
    for file in files
  }


def _forget(path: Path):
  for registry in KINDS:
    registry.forget(str(path))
  _loaded.pop(str(path), None)


def plugin_file(name: str) -> Path:
  """Returns the absolute path of a plugin's file.

  Raises:
    UserError: there is no such file or module.
  """
  if name.endswith('.py'):
    path = Path(name).expanduser().resolve()
    if not path.is_file():
      raise UserError(f'plugins: no file {name}')
    return path
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError) as error:
    raise UserError(f'plugins: no module {name} ({error})') from error
  if spec is None or not spec.origin:
    raise UserError(f"plugins: no module {name}; a file's name ends in .py")
  return Path(spec.origin).resolve()


def _import(name: str, path: Path):
  global _importing
  is_file = name.endswith('.py')
  _importing = _Import(str(path) if is_file else name)
  try:
    if not is_file:
      module = sys.modules.get(name)
      # It may be of an older source, if that was changed within a second.
      Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
      importlib.reload(module) if module else importlib.import_module(name)
      return
    label = f'r1jax_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'
    with source_files.run_file(label, path, keeps_siblings=True):
      pass
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    raise UserError(
      f'plugins: {path}{_line(error, path)}: {type(error).__name__}: '
      f'{" ".join(str(error).split())[:300]}'
    ) from error
  finally:
    _importing = _NO_IMPORT


def _line(error: BaseException, path: Path) -> str:
  """':12', the last line of the file in an error's traceback, or ''."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == str(path)
  ]
  if isinstance(error, SyntaxError) and error.filename == str(path):
    lines.append(error.lineno)
  return f':{lines[-1]}' if lines else ''
