"""Notebooks run from the first cell to the last, at a reduced size."""

import importlib.util
import subprocess
import sys

import nbclient
import nbformat
import pytest

from tests import compiler
from tests.conftest import ROOT
from tests.test_extending import EXAMPLES

_REDUCED = """STEPS = 2
WORKDIR = {workdir!r}
OVERRIDES = {{
    'mesh.data': 1, 'rl.prompts_per_step': 4, 'rl.group_size': 4,
    'rl.num_minibatches': 1, 'eval.num_problems': 8,
    'eval.num_samples': 2, 'rl.optimizer.warmup_steps': 1}}
"""

# The lines that the cells of 02_extending.ipynb print, in their order.
_PRINTED = (
  '0.40  <think>hm</think><answer>5</answer>',
  '1.00  <think>hm</think><answer>8</answer>',
  "'new  york'  correct",
  '1.00  5, if you please',
  'held_out  max ',
  'legs: How many legs have two cats? 8 (graded by math)',
  'A) ruby\nB) jade\n→ A',
  "Parsed(reasoning='2 and 3', answer='5', errors=0",
  'batch_mean [',
  'unclipped [[0.5 1.  1.5]]',
  'gqa 8 128',
  'kv_down 0.5',
  'rewards/brevity/mean',
)


@pytest.fixture
def execute(monkeypatch):
  """Returns execute(notebook), which runs all cells; what they printed."""
  # One device, as on a laptop; the compiler's lighter passes.
  monkeypatch.setenv('XLA_FLAGS', compiler.light_flags())

  def run(notebook) -> str:
    nbclient.NotebookClient(
      notebook, timeout=900, resources={'metadata': {'path': str(ROOT)}}
    ).execute()
    return ''.join(
      output.get('text', '')
      for cell in notebook.cells
      for output in cell.get('outputs', [])
    )

  return run


def _read(name: str):
  return nbformat.read(ROOT / 'notebooks' / name, as_version=4)


@pytest.mark.parametrize('name', ['01_r1_zero.ipynb', '02_extending.ipynb'])
def test_the_first_code_cell_installs_and_no_outputs_are_stored(name):
  notebook = _read(name)
  assert notebook.cells[1].source == _read('01_r1_zero.ipynb').cells[1].source
  assert 'pip' in notebook.cells[1].source
  assert not any(cell.get('outputs') for cell in notebook.cells)


@pytest.mark.slow
def test_r1_zero(tmp_path, execute):
  notebook = _read('01_r1_zero.ipynb')
  parameters = [
    cell
    for cell in notebook.cells
    if 'parameters' in cell.metadata.get('tags', [])
  ]
  assert len(parameters) == 1
  parameters[0].source = _REDUCED.format(workdir=str(tmp_path / 'run'))
  text = execute(notebook)
  assert '= ?' in text and '<think>' in text and 'pass@1' in text
  images = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]
  assert len(images) == 1


def test_extending_shows_every_example_of_its_page():
  sources = [cell.source for cell in _read('02_extending.ipynb').cells]
  first_lines = [source.partition('\n')[0] for source in sources]
  shown = [line for line in first_lines if line.startswith('%%writefile')]
  assert shown == [f'%%writefile {name}' for name in EXAMPLES]
  for name, example in EXAMPLES.items():
    index = first_lines.index(f'%%writefile {name}')
    # The magic adds the last line break.
    assert sources[index].partition('\n')[2] + '\n' == example
    assert sources[index - 1].startswith('## ')
    assert 'load_plugins' in sources[index + 1] and name in sources[index + 1]


@pytest.mark.slow
def test_extending(tmp_path, execute, monkeypatch):
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  text = execute(_read('02_extending.ipynb'))
  assert text.count('Writing ') == len(EXAMPLES)
  for printed in _PRINTED:
    assert printed in text
  assert not list(tmp_path.glob('r1jax-extending-*'))  # Nothing is left.


@pytest.fixture
def install(monkeypatch):
  """Runs the install cell where r1jax is not there; returns its commands."""
  source = _read('01_r1_zero.ipynb').cells[1].source
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
