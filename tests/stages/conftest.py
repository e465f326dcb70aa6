"""Whole runs through the command line, each in a process of its own."""

import json
import subprocess
import sys

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
