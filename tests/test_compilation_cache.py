"""Compiled programs are kept on disk, where the config says or JAX is told."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import pytest

from r1jax import compilation_cache, files
from r1jax.config import base
from r1jax.errors import UserError
from r1jax.runs import workdir
from tests.conftest import run_config

# Prints the folder that JAX uses, and how often it found and missed a program.
_PROGRAM = """
import json, os, sys
import jax, jax.monitoring
from r1jax import compilation_cache
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
compilation_cache.enable(sys.argv[1])
x = jax.jit(lambda x: jax.numpy.linalg.qr(x)[0].sum())(jax.numpy.eye(9) + 1)
count = lambda name: events.count('/jax/compilation_cache/cache_' + name)
print(json.dumps([
  jax.config.jax_compilation_cache_dir, count("hits"), count("misses"),
  float(x).hex()]))
"""


def _run(folder: str, **env: str):
  """Returns what _PROGRAM prints in a process of its own, and its errors."""
  clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT', 'R1JAX_CACHE'))
  }
  clean |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **env}
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, folder],
    env=clean,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_second_process_finds_what_the_first_compiled(tmp_path):
  (folder, hits, misses, value), _ = _run('auto', R1JAX_CACHE=str(tmp_path))
  assert folder == str(tmp_path / 'jax')
  assert hits == 0 and misses > 0
  (_, found, compiled, again), _ = _run('auto', R1JAX_CACHE=str(tmp_path))
  assert (found, compiled) == (misses, 0)
  assert again == value


@pytest.mark.slow
def test_unwritable_folder_is_reported_and_the_run_goes_on(tmp_path):
  (tmp_path / 'file').write_text('')
  folder = str(tmp_path / 'file' / 'cache')
  (used, hits, misses, _), errors = _run(folder)
  assert used is None and hits == misses == 0
  assert f'{folder} cannot be used' in errors


def test_no_home_and_a_full_disk_are_reported(monkeypatch, caplog, tmp_path):
  monkeypatch.setattr(compilation_cache.jax, 'config', _Unset())
  compilation_cache.enable('~no_such_user/cache')
  assert '~no_such_user/cache cannot be used' in caplog.text
  usage = shutil.disk_usage(tmp_path)._replace(free=(1 << 30) - 1)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  compilation_cache.enable(str(tmp_path))
  assert f'{tmp_path} cannot be used ([Errno 28] less than 1' in caplog.text


class _Unset:
  """JAX's options without a folder, none of which may be set."""

  values = {'jax_compilation_cache_dir': None}


def test_user_cache_is_in_the_usual_places(monkeypatch, tmp_path):
  monkeypatch.delenv('R1JAX_CACHE', raising=False)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert files.user_cache() == tmp_path / '.cache' / 'r1jax'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert files.user_cache() == tmp_path / 'xdg' / 'r1jax'
  monkeypatch.setenv('R1JAX_CACHE', '~/mine')
  assert files.user_cache() == tmp_path / 'mine'
  assert compilation_cache.default_folder() == tmp_path / 'mine' / 'jax'


@pytest.mark.parametrize('folder', ['', 'here'])
def test_a_folder_that_jax_has_and_no_folder_change_nothing(tmp_path, folder):
  before = jax.config.jax_compilation_cache_dir
  assert before  # That of the tests.
  compilation_cache.enable(folder and str(tmp_path / folder))
  assert jax.config.jax_compilation_cache_dir == before
  assert not list(tmp_path.iterdir())


def test_longest_unused_programs_go_first(tmp_path):
  for i, name in enumerate(('old', 'used', 'new')):
    path = tmp_path / f'{name}-cache'
    path.write_bytes(bytes(100))
    os.utime(path, (1000 + i, 1000 + i))
  os.utime(tmp_path / 'used-cache', (2000, 1001))  # Read since it was written.
  (tmp_path / 'notes.txt').write_bytes(bytes(1000))
  (tmp_path / 'half-cache').write_bytes(b'')
  compilation_cache.remove_oldest(tmp_path, 300)
  assert not (tmp_path / 'half-cache').exists()
  assert len(list(tmp_path.iterdir())) == 4
  compilation_cache.remove_oldest(tmp_path, 200)
  left = {path.name for path in tmp_path.iterdir()}
  assert left == {'used-cache', 'new-cache', 'notes.txt'}
  compilation_cache.remove_oldest(tmp_path, 100)
  assert not (tmp_path / 'new-cache').exists()
  compilation_cache.remove_oldest(tmp_path, 99)
  assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_where_programs_are_kept_is_not_part_of_a_run(tmp_path):
  config = base.get_config()
  config.compilation_cache_dir = ''
  workdir.Workdir(str(tmp_path), run_config(config))
  assert 'compilation_cache_dir' not in json.loads(
    (tmp_path / 'config.json').read_text()
  )
  config.compilation_cache_dir = str(Path('elsewhere'))
  workdir.check(tmp_path, run_config(config))
  config.seed = 1
  with pytest.raises(UserError, match='seed is 0 there and 1 here'):
    workdir.check(tmp_path, run_config(config))
