"""Notebooks run from the first cell to the last, at a reduced size."""

import nbclient
import nbformat

from tests.conftest import ROOT

_REDUCED = """STEPS = 2
WORKDIR = {workdir!r}
OVERRIDES = {{
    'mesh.data': 1, 'rl.prompts_per_step': 4, 'rl.group_size': 4,
    'rl.minibatches': 1, 'eval.num_problems': 8,
    'eval.samples': 2}}
"""


def test_r1_zero(tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')  # One device, as on a laptop.
  notebook = nbformat.read(ROOT / 'notebooks/01_r1_zero.ipynb', as_version=4)
  assert 'pip' in notebook.cells[1].source  # The first code cell installs.
  assert not any(cell.get('outputs') for cell in notebook.cells)
  parameters = [cell for cell in notebook.cells
                if 'parameters' in cell.metadata.get('tags', [])]
  assert len(parameters) == 1
  parameters[0].source = _REDUCED.format(workdir=str(tmp_path / 'run'))
  nbclient.NotebookClient(
      notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}}
  ).execute()
  printed = [output.get('text', '') for cell in notebook.cells
             for output in cell.get('outputs', [])]
  text = ''.join(printed)
  assert '= ?' in text and '<think>' in text and 'pass@1' in text
  images = [output for cell in notebook.cells
            for output in cell.get('outputs', [])
            if 'image/png' in output.get('data', {})]
  assert len(images) == 1
