"""--config finds shipped experiments by name and the user's files by path."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from r1jax.cli import config_file, main
from tests.conftest import ROOT

_USER_CONFIG = """
from r1jax.config import algorithms
from r1jax.configs import r1_zero_tiny


def get_config():
  config = r1_zero_tiny.get_config()
  config.rl.update(algorithms.ppo())
  config.rl.max_steps = 17
  return config
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
  """Returns the folder that a wheel of this source tree installs into."""
  pytest.importorskip('setuptools')
  folder = tmp_path_factory.mktemp('installed')
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', f'--build-lib={folder}'],
    cwd=ROOT,
    check=True,
  )
  return folder


@pytest.fixture
def elsewhere(tmp_path) -> Path:
  """A folder of the user, with a folder named configs of his own."""
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/__init__.py').write_text('')
  (tmp_path / 'configs/mine.py').write_text(_USER_CONFIG)
  return tmp_path


def _printed_config(config: str, package: Path, folder: Path) -> str:
  """Returns the output of `r1jax config` in `folder`, importing `package`."""
  done = subprocess.run(
    [sys.executable, '-m', 'r1jax.cli.main', 'config', f'--config={config}'],
    cwd=folder,
    env=dict(os.environ, PYTHONPATH=str(package)),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('source', ['installed', 'checkout'])
def test_names_and_files_beside_a_folder_named_configs(
  installed, elsewhere, source
):
  package = installed if source == 'installed' else ROOT
  shipped = _printed_config('r1_zero_tiny', package, elsewhere)
  assert '\n  max_steps: 80\n' in shipped
  mine = _printed_config('configs/mine.py', package, elsewhere)
  assert '\n  max_steps: 17\n' in mine
  pipeline = _printed_config('pipeline_algorithms_tiny', package, elsewhere)
  assert '\ndpo_robust:\n' in pipeline


def test_the_wheel_ships_no_package_named_configs(installed):
  assert [path.name for path in installed.iterdir()] == ['r1jax']
  files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
  assert files == {path.stem for path in installed.glob('r1jax/configs/*.py')}


def test_help_and_config_import_nothing_heavy():
  script = (
    'import sys; from r1jax.cli import main; main.run({!r}); '
    'sys.exit(str([m for m in {!r} if m in sys.modules]))'
  )
  for argv, forbidden in (
    (['--help'], ['absl', 'ml_collections', 'numpy', 'jax']),
    (['train', '--help'], ['jax', 'flax', 'orbax']),
    (['config', '--config=r1_zero_tiny'], ['jax', 'flax', 'grain']),
    (['config', '--help', 'rl.group_size'], ['jax', 'flax', 'grain']),
  ):
    done = subprocess.run(
      [sys.executable, '-c', script.format(argv, forbidden)],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert done.stderr.strip() == '[]', argv


def test_every_shipped_experiment_has_a_config():
  for name, file in config_file.shipped_experiments().items():
    if name != 'imported':  # It needs the folder of a checkpoint.
      assert config_file.config_of_file(str(file)).to_dict(), name


def test_a_name_takes_an_argument(capsys, tmp_path):
  (tmp_path / 'argument.py').write_text(
    'from r1jax.config import base\n\n\n'
    'def get_config(steps):\n'
    '  config = base.get_config()\n'
    '  config.rl.max_steps = int(steps)\n'
    '  return config\n'
  )
  main.run(['config', f'--config={tmp_path}/argument.py:29'])
  assert '\n  max_steps: 29\n' in capsys.readouterr().out
