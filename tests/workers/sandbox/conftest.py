"""A sandbox of each tier that holds here, and a file that no program may read."""

import os
from pathlib import Path

import pytest

from r1jax.workers.sandbox import tiers
from r1jax.workers.sandbox.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture(scope='module')
def target(tmp_path_factory) -> Path:
  """A file for all to read, with a secret."""
  folder = tmp_path_factory.mktemp('target')
  for place in [folder, *folder.parents[:-2]]:
    if place.owner() == folder.owner() and os.access(place, os.W_OK):
      place.chmod(0o755)
  (folder / 'secret_module.py').write_text('')
  (folder / 'secret').write_text('the secret')
  os.environ['R1JAX_CANARY'] = 'the secret'
  yield folder / 'secret'
  del os.environ['R1JAX_CANARY']
  assert (folder / 'secret').read_text() == 'the secret'


@pytest.fixture(scope='module', params=tiers.TIERS)
def sandbox(request, target):
  try:
    made = Sandbox(slots=1, tier=request.param)
  except SandboxUnavailable as error:
    pytest.skip(str(error))
  with made:
    yield made
