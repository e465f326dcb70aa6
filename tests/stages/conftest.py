"""Whole runs through the command line, each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests import compiler
from tests.conftest import ROOT

SMALL = '--config=tests/configs/small.py'


def command(*args) -> list[str]:
  return [sys.executable, '-m', 'r1jax.cli.main', *args]


def run(environment, *args, code=0):
  done = subprocess.run(
    command(*args),
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done


def rows(workdir, stage='rl') -> list[dict]:
  text = (workdir / stage / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """One device, a fresh cache of bases, the tests' compilation cache."""
  import jax

  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=compiler.light_flags())
  env['R1JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))
  env['JAX_COMPILATION_CACHE_DIR'] = jax.config.jax_compilation_cache_dir
  env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
  return env
