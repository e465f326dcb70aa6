"""Notebooks run from the first cell to the last, at a reduced size."""

import importlib.util
import subprocess
import sys

import nbclient
import nbformat
import pytest

from tests import compiler
from tests.conftest import ROOT

_REDUCED = """STEPS = 2
WORKDIR = {workdir!r}
OVERRIDES = {{
    'mesh.data': 1, 'rl.prompts_per_step': 4, 'rl.group_size': 4,
    'rl.num_minibatches': 1, 'eval.num_problems': 8,
    'eval.num_samples': 2}}
"""


@pytest.mark.slow
def test_r1_zero(tmp_path, monkeypatch):
  # One device, as on a laptop; the compiler's lighter passes.
  monkeypatch.setenv('XLA_FLAGS', compiler.light_flags())
  notebook = nbformat.read(ROOT / 'notebooks/01_r1_zero.ipynb', as_version=4)
  assert 'pip' in notebook.cells[1].source  # The first code cell installs.
  assert not any(cell.get('outputs') for cell in notebook.cells)
  parameters = [
    cell
    for cell in notebook.cells
    if 'parameters' in cell.metadata.get('tags', [])
  ]
  assert len(parameters) == 1
  parameters[0].source = _REDUCED.format(workdir=str(tmp_path / 'run'))
  nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}}
  ).execute()
  printed = [
    output.get('text', '')
    for cell in notebook.cells
    for output in cell.get('outputs', [])
  ]
  text = ''.join(printed)
  assert '= ?' in text and '<think>' in text and 'pass@1' in text
  images = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]
  assert len(images) == 1


@pytest.fixture
def install(monkeypatch):
  """Runs the install cell where r1jax is not there; returns its commands."""
  notebook = nbformat.read(ROOT / 'notebooks/01_r1_zero.ipynb', as_version=4)
  source = notebook.cells[1].source
  assert "REPOSITORY = ''\n" in source

  def run(folder, repository=''):
    commands = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(
      subprocess, 'run', lambda command, check: commands.append(command)
    )
    exec(source.replace("REPOSITORY = ''", f'REPOSITORY = {repository!r}'), {})
    return commands, sys.path[0]

  return run


def test_outside_a_checkout_the_address_is_asked_for(install, tmp_path):
  with pytest.raises(ValueError, match='set REPOSITORY.*git repository'):
    install(tmp_path)


def test_elsewhere_a_clone_is_installed(install, tmp_path):
  url, place = 'https://git.example/r1jax', str(tmp_path / 'r1jax-source')
  (clone, pip), first = install(tmp_path, url)
  assert clone == ['git', 'clone', url, place]
  assert pip[1:] == ['-m', 'pip', 'install', '-q', '-e', place]
  assert first == place


def test_inside_a_checkout_it_is_installed_itself(install):
  (pip,), first = install(ROOT / 'notebooks')
  assert pip[1:] == ['-m', 'pip', 'install', '-q', '-e', str(ROOT)]
  assert first == str(ROOT)
