"""Everything that a config names: one decorator, and the plugins that use it.

  from r1jax import registry

  @registry.reward('brevity')
  def brevity(sample):
    return -sample.num_tokens / 1000

`config.plugins = ('my_rewards.py',)` imports such a file before names are
looked up. A name is registered once; a second registration is an error that
names both files.
"""

from collections.abc import Callable, Iterator, Sequence
import hashlib
import importlib
import importlib.util
import inspect
from pathlib import Path
import sys
import traceback
from typing import Any

from r1jax.errors import UserError, unknown


class Registry:
  """Objects of one kind by name, in the order of their registration.

  Attributes:
    kind: The kind in an error message, such as 'reward'.
    names_objects: Whether an object gets its name as its attribute `name`.
  """

  def __init__(self, kind: str, names_objects: bool = False):
    self.kind, self.names_objects = kind, names_objects
    self._objects: dict[str, Any] = {}
    self._files: dict[str, str] = {}

  def __call__(self, name: str) -> Callable[[Any], Any]:
    """Returns a decorator that registers a function or class under a name.

    Raises:
      UserError: another file has registered the name already.
    """

    def register(made):
      return self.add(name, made, _file_of(made))

    return register

  def add(self, name: str, made: Any, file: str = '') -> Any:
    """Registers an object under a name and returns it.

    Args:
      name: What a config calls it.
      made: A function, a class or a record.
      file: The file that registers it, for errors.

    Raises:
      UserError: another file has registered the name already.
    """
    if name in self._objects and self._files[name] != file:
      raise UserError(
        f'{file or "plugin"}: the {self.kind} {name!r} is already registered '
        f'by {self._files[name] or "r1jax"}; choose another name'
      )
    self._objects[name], self._files[name] = made, file
    if self.names_objects:
      made.name = name
    return made

  def get(self, name: str, key: str = '') -> Any:
    """Returns what is registered under a name.

    Args:
      name: The name.
      key: The key of the config that has it, for errors.

    Raises:
      UserError: nothing is; names the nearest that is.
    """
    if name not in self._objects:
      raise unknown(f'{key}: {self.kind}' if key else self.kind, name, self)
    return self._objects[name]

  def file(self, name: str) -> str:
    """The file that registered a name."""
    return self._files[name]

  def __contains__(self, name: object) -> bool:
    return name in self._objects

  def __iter__(self) -> Iterator[str]:
    return iter(self._objects)

  def items(self):
    """Pairs of a name and what is registered under it."""
    return self._objects.items()

  def forget(self, file: str):
    """Removes every name that a file has registered."""
    for name in [n for n, origin in self._files.items() if origin == file]:
      del self._objects[name], self._files[name]


reward = Registry('reward')
grader = Registry('grader')
task = Registry('task')
dataset = Registry('dataset')
response_format = Registry('response format')
template = Registry('template')
adv_estimator = Registry('advantage estimator')
policy_loss = Registry('policy loss')
model_family = Registry('model family')
stage = Registry('stage', names_objects=True)
environment = Registry('environment')

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

_loaded: dict[str, str] = {}  # Plugin files to the SHA-256 of what was run.


def load_plugins(names: Sequence[str]) -> dict[str, str]:
  """Imports plugins, each once.

  Args:
    names: Python files ('my_rewards.py', relative to the current folder) or
      modules by name ('my_package.rewards').

  Returns:
    The SHA-256 of each plugin's file, by its path.

  Raises:
    UserError: a plugin is not there, cannot be imported, or registers a name
      twice; names the file and line.
  """
  digests = {}
  for name in names:
    path = plugin_file(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _loaded.get(str(path)) != digest:
      for registry in KINDS:
        registry.forget(str(path))
      _import(name, path)
      _loaded[str(path)] = digest
    digests[str(path)] = digest
  return digests


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
  try:
    if not name.endswith('.py'):
      module = sys.modules.get(name)
      importlib.reload(module) if module else importlib.import_module(name)
      return
    label = f'r1jax_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'
    spec = importlib.util.spec_from_file_location(label, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # A dataclass looks its module up.
    spec.loader.exec_module(module)
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    raise UserError(
      f'plugins: {path}{_line(error, path)}: {type(error).__name__}: '
      f'{" ".join(str(error).split())[:300]}'
    ) from error


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


def _file_of(made: Any) -> str:
  """The file that defines a function or class."""
  try:
    return str(Path(inspect.getfile(inspect.unwrap(made))).resolve())
  except TypeError:  # A record, or a built-in.
    return ''
