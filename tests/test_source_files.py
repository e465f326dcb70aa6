"""Files that a user names by path import the files beside them."""

import sys
import types

import pytest

from r1jax import registry
from r1jax.cli import config_file
from r1jax.errors import UserError

_CONFIG = """
from r1jax.config import base
{imports}


def get_config():
  config = base.get_config()
  config.rl.max_steps = {steps}
  return config
"""


@pytest.fixture(autouse=True)
def unchanged_path():
  """Nothing of this changes sys.path or how modules are found."""
  path, finders = list(sys.path), list(sys.meta_path)
  yield
  assert sys.path == path and sys.meta_path == finders


def _write(folder, files: dict[str, str]):
  for name, text in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _steps(path) -> int:
  return config_file.config_of_file(str(path)).rl.max_steps


@pytest.mark.parametrize(
  'imports, steps, files',
  [
    ('import shared', 'shared.STEPS', {'shared.py': 'STEPS = 7'}),
    ('from shared import STEPS', 'STEPS', {'shared.py': 'STEPS = 7'}),
    ('from . import shared', 'shared.STEPS', {'shared.py': 'STEPS = 7'}),
    ('from .shared import STEPS', 'STEPS', {'shared.py': 'STEPS = 7'}),
    # A sibling that imports another one, and one that is a package.
    (
      'from shared import STEPS',
      'STEPS',
      {'shared.py': 'from deeper import STEPS', 'deeper.py': 'STEPS = 7'},
    ),
    (
      'from sizes.small import STEPS',
      'STEPS',
      {'sizes/__init__.py': '', 'sizes/small.py': 'STEPS = 7'},
    ),
    # Within packages.
    (
      'from . import shared',
      'shared.STEPS',
      {'__init__.py': '', 'shared.py': 'STEPS = 7'},
    ),
    (
      'from ..common import STEPS',
      'STEPS',
      {'__init__.py': '', '../__init__.py': '', '../common.py': 'STEPS = 7'},
    ),
    (
      'from mine.common import STEPS',
      'STEPS',
      {'__init__.py': '', '../__init__.py': '', '../common.py': 'STEPS = 7'},
    ),
    # The standard library is not hidden by a file of its name.
    ('import random', '7 * callable(random.random)', {'random.py': ''}),
    # Imported when get_config() is called.
    ('', '__import__("shared").STEPS', {'shared.py': 'STEPS = 7'}),
  ],
)
def test_a_config_imports_what_lies_beside_it(tmp_path, imports, steps, files):
  folder = tmp_path / 'mine' / 'configs'
  _write(
    folder, files | {'run.py': _CONFIG.format(imports=imports, steps=steps)}
  )
  assert _steps(folder / 'run.py') == 7


def test_each_config_has_the_siblings_of_its_own_folder(tmp_path):
  text = _CONFIG.format(imports='import shared', steps='shared.STEPS')
  for name, steps in (('a', 3), ('b', 5)):
    _write(tmp_path / name, {'run.py': text, 'shared.py': f'STEPS = {steps}'})
  assert [_steps(tmp_path / f'{n}/run.py') for n in 'abab'] == [3, 5, 3, 5]
  (tmp_path / 'a/shared.py').write_text('STEPS = 11  # Edited since.')
  assert _steps(tmp_path / 'a/run.py') == 11


def test_a_module_of_the_same_name_from_elsewhere_stays(tmp_path, monkeypatch):
  _write(tmp_path / 'cwd', {'shared.py': 'STEPS = 1'})
  text = _CONFIG.format(imports='import shared', steps='shared.STEPS')
  _write(tmp_path / 'configs', {'run.py': text, 'shared.py': 'STEPS = 7'})
  with monkeypatch.context() as patched:
    patched.syspath_prepend(str(tmp_path / 'cwd'))
    import shared  # type: ignore[import-not-found]

    assert _steps(tmp_path / 'configs/run.py') == 7
    assert sys.modules['shared'] is shared and shared.STEPS == 1
    del sys.modules['shared']


def test_an_error_in_a_sibling_names_the_line_of_the_config(tmp_path):
  text = _CONFIG.format(imports='import shared', steps='1')
  _write(tmp_path, {'run.py': text, 'shared.py': '1 / 0'})
  with pytest.raises(UserError, match=r'run.py:3: ZeroDivisionError'):
    _steps(tmp_path / 'run.py')
  _write(tmp_path, {'run.py': text.replace('shared', 'shraed')})
  with pytest.raises(UserError, match="No module named 'shraed'"):
    _steps(tmp_path / 'run.py')


_PLUGIN = """
from r1jax import registry
from {module} import factor


@registry.reward('brevity')
def brevity(sample):
  from {module} import factor as again
  assert again == factor
  return -factor * sample.num_tokens
"""


@pytest.mark.parametrize('module', ['lengths', '.lengths'])
def test_a_plugin_imports_what_lies_beside_it(tmp_path, module):
  _write(
    tmp_path,
    {'rewards.py': _PLUGIN.format(module=module), 'lengths.py': 'factor = 2'},
  )
  plugin = str(tmp_path / 'rewards.py')
  try:
    registry.load_plugins([plugin])
    first, digest = registry.reward.get('brevity'), registry.digest(plugin)
    assert first(types.SimpleNamespace(num_tokens=5)) == -10
    assert [path.name for path in registry.files_of(plugin)] == [
      'rewards.py',
      'lengths.py',
    ]
    registry.load_plugins([plugin])
    assert registry.reward.get('brevity') is first
    # A sibling is part of the plugin: it runs again if that changes.
    (tmp_path / 'lengths.py').write_text('factor = 3')
    registry.load_plugins([plugin])
    assert registry.reward.get('brevity') is not first
    assert registry.digest(plugin) != digest
  finally:
    registry.reward.forget(plugin)


_LAZY = """
from r1jax import registry


@registry.reward('{name}')
def reward(sample):
  {imports}
  return {value}
"""


@pytest.mark.parametrize(
  'imports, value, files',
  [
    ('import lengths', 'lengths.factor', {'lengths.py': 'factor = 2'}),
    ('from . import lengths', 'lengths.factor', {'lengths.py': 'factor = 2'}),
    ('from .lengths import factor', 'factor', {'lengths.py': 'factor = 2'}),
    (
      'from sizes.lengths import factor',
      'factor',
      {'sizes/__init__.py': '', 'sizes/lengths.py': 'factor = 2'},
    ),
    (
      'import outer',
      'outer.factor()',
      {
        'outer.py': 'def factor():\n  from lengths import factor\n  return factor',
        'lengths.py': 'factor = 2',
      },
    ),
  ],
)
def test_what_a_function_of_a_plugin_imports_is_part_of_it(
  tmp_path, imports, value, files
):
  """It is hashed before the call, and found at the call, in its new version."""
  text = _LAZY.format(name='lazy', imports=imports, value=value)
  other = _LAZY.format(name='other', imports='pass', value='0')
  _write(tmp_path, files | {'rewards.py': text, 'other.py': other})
  plugins = [str(tmp_path / 'rewards.py'), str(tmp_path / 'other.py')]
  try:
    registry.load_plugins(plugins)
    digest = registry.digest(plugins[0])
    assert {path.name for path in registry.files_of(plugins[0])} == {
      'rewards.py',
      *(name.rpartition('/')[2] for name in files),
    }
    assert [path.name for path in registry.files_of(plugins[1])] == ['other.py']
    assert registry.reward.get('lazy')(None) == 2
    (lengths,) = tmp_path.glob('**/lengths.py')
    lengths.write_text('factor = 3')
    registry.load_plugins(plugins)
    assert registry.digest(plugins[0]) != digest
    assert registry.reward.get('lazy')(None) == 3
  finally:
    for plugin in plugins:
      registry.reward.forget(plugin)


def test_a_broken_file_fails_the_call_that_imports_it(tmp_path):
  text = _LAZY.format(name='lazy', imports='import broken', value='0')
  _write(tmp_path, {'rewards.py': text, 'broken.py': 'def f(:'})
  plugin = str(tmp_path / 'rewards.py')
  try:
    registry.load_plugins([plugin])
    assert len(registry.files_of(plugin)) == 2
    with pytest.raises(ImportError):
      registry.reward.get('lazy')(None)
  finally:
    registry.reward.forget(plugin)
