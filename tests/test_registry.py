"""Plugins register names; what is wrong with one is one line with its file."""

import os
import sys

import pytest

from r1jax import registry
from r1jax.errors import UserError
from r1jax.registry import Registry


@pytest.fixture
def plugin(tmp_path, monkeypatch):
  """Returns write(text), which writes my_plugin.py into the current folder."""
  monkeypatch.chdir(tmp_path)

  def write(text: str) -> str:
    (tmp_path / 'my_plugin.py').write_text(text)
    return 'my_plugin.py'

  yield write
  for kind in registry.KINDS:
    kind.forget(str((tmp_path / 'my_plugin.py').resolve()))


def test_a_name_is_found_and_an_unknown_one_suggests_the_nearest():
  made = Registry('reward')

  @made('brevity')
  def brevity():
    return 1

  assert made.get('brevity') is brevity
  assert list(made) == ['brevity']
  with pytest.raises(UserError, match="unknown 'brevty'; did you mean 'brev"):
    made.get('brevty')


def test_a_plugin_registers_and_its_hash_is_returned(plugin):
  name = plugin(
    'from r1jax import registry\n'
    "@registry.reward('mine')\n"
    'def mine(sample):\n  return 1.0\n'
  )
  digests = registry.load_plugins([name])
  assert len(digests) == 1 and len(next(iter(digests.values()))) == 64
  assert registry.reward.get('mine')(None) == 1.0
  assert registry.load_plugins([name]) == digests  # Imported once.


@pytest.fixture
def same_times(monkeypatch, tmp_path):
  """Lets Python write bytecode, and gives all sources one time of change."""
  monkeypatch.setattr(sys, 'dont_write_bytecode', False)
  monkeypatch.setattr(sys, 'pycache_prefix', str(tmp_path / 'bytecode'))

  def write(path, text):
    path.write_text(text)
    os.utime(path, (1e9, 1e9))

  return write


@pytest.mark.parametrize(
  'name, file',
  [
    ('my_plugin.py', 'my_plugin.py'),
    ('my_plugin.py', 'my_sibling.py'),
    ('my_plugin', 'my_plugin.py'),
  ],
)
def test_a_plugin_that_changed_within_a_second_is_imported_again(
  same_times, tmp_path, monkeypatch, name, file
):
  """The new source has the size and the time of the old one."""
  monkeypatch.chdir(tmp_path)
  if not name.endswith('.py'):
    monkeypatch.syspath_prepend(str(tmp_path))
  same_times(
    tmp_path / 'my_plugin.py',
    'from r1jax import registry\n'
    'from my_sibling import VALUE\n'
    "@registry.reward('mine')\n"
    'def mine(sample):\n  return 1.0, VALUE\n',
  )
  same_times(tmp_path / 'my_sibling.py', 'VALUE = 1.0\n')
  try:
    before = registry.load_plugins([name])
    text = (tmp_path / file).read_text()
    same_times(tmp_path / file, text.replace('1.0', '2.0'))
    assert registry.load_plugins([name]) != before
    assert 2.0 in registry.reward.get('mine')(None)
  finally:
    for kind in registry.KINDS:
      kind.forget(str(tmp_path / 'my_plugin.py'))
    for module in ('my_plugin', 'my_sibling'):
      sys.modules.pop(module, None)


def test_a_plugin_that_changed_is_imported_again(plugin):
  text = (
    'from r1jax import registry\n'
    "@registry.reward('mine')\n"
    'def mine(sample):\n  return {}\n'
  )
  before = registry.load_plugins([plugin(text.format(1.0))])
  after = registry.load_plugins([plugin(text.format(2.0))])
  assert before != after
  assert registry.reward.get('mine')(None) == 2.0


@pytest.mark.parametrize(
  'text, message',
  [
    ('import nothing_of_this_name\n', r'my_plugin.py:1: ModuleNotFoundError'),
    ('x = 1\ny = x / 0\n', r'my_plugin.py:2: ZeroDivisionError'),
    ('def f(:\n', r'my_plugin.py:1: SyntaxError'),
    ('raise SystemExit(3)\n', r'my_plugin.py:1: SystemExit'),
  ],
)
def test_a_plugin_that_fails_is_one_line_with_file_and_line(
  plugin, text, message
):
  with pytest.raises(UserError, match=message) as raised:
    registry.load_plugins([plugin(text)])
  assert '\n' not in str(raised.value)


def test_a_name_that_comes_twice_names_both_files(plugin):
  registry.load_plugins(
    [
      plugin(
        'from r1jax import registry\n'
        "@registry.grader('mine')\n"
        'def mine(answer, gold):\n  return True\n'
      )
    ]
  )

  with pytest.raises(UserError, match=r"the grader 'mine' is already reg.*my_"):

    @registry.grader('mine')
    def other(answer, gold):
      return False


@pytest.mark.parametrize('name', ['missing.py', 'missing_module'])
def test_a_plugin_that_is_not_there_is_named(plugin, name):
  with pytest.raises(UserError, match=f'plugins: no .*{name}'):
    registry.load_plugins([name])


def test_options_are_kept_beside_the_object(plugin):
  name = plugin(
    'from r1jax import registry\n'
    "@registry.reward('mine', batch=True)\n"
    'def mine(samples):\n  return [1.0] * len(samples)\n'
  )
  [path] = registry.load_plugins([name])
  origin = registry.reward.origin('mine')
  assert (origin.file, origin.plugin) == (path, path)
  assert origin.options == {'batch': True}


def test_a_plugin_that_registers_a_name_twice_leaves_none(plugin):
  once = "@registry.reward('mine')\ndef mine(sample):\n  return 1.0\n"
  name = plugin(f'from r1jax import registry\n{once}{once}')
  with pytest.raises(
    UserError, match="my_plugin.py: registers the reward 'mine' twice"
  ):
    registry.load_plugins([name])
  assert 'mine' not in registry.reward


def test_a_plugin_may_not_take_a_name_of_the_package(plugin):
  text = (
    "from r1jax import registry\n@registry.stage('rl')\nclass Mine:\n  pass\n"
  )
  with pytest.raises(UserError, match="my_plugin.py: the stage 'rl' is alread"):
    registry.load_plugins([plugin(text)])


def test_a_record_is_registered_by_the_file_that_passes_it(plugin):
  name = plugin(
    'from r1jax import registry\n'
    "registry.response_format('pair')(('<a>', '</a>'))\n"
  )
  [path] = registry.load_plugins([name])
  assert registry.response_format.get('pair') == ('<a>', '</a>')
  assert registry.response_format.origin('pair').file == path
