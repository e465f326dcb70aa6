"""Whole runs on other meshes are the same run."""

import dataclasses

import numpy as np
import pytest

from r1jax.config.schema.run import MeshConfig
from tests import compiler
from tests.stages.conftest import rows, run

_TINY = (
  '--config=r1_zero_tiny',
  '--config.stages=("rl",)',
  '--config.rl.max_steps=3',
  '--config.rl.prompts_per_step=8',
  '--config.rl.group_size=8',
  '--config.rl.eval_steps=3',
  '--config.eval.num_problems=16',
)


@pytest.mark.slow
def test_devices_that_share_rows_train_as_those_that_do_not(
  environment, tmp_path
):
  """R1-Zero in miniature, on eight devices: every metric of three steps.

  The sampler has twice as many sequences at once on one of the meshes, and
  draws the same tokens.
  """
  environment = dict(
    environment,
    XLA_FLAGS='--xla_force_host_platform_device_count=8 '
    + compiler.light_flags(),
  )
  metrics = []
  for name, mesh in (
    ('whole', MeshConfig(data=4, fsdp=2)),
    ('shared', MeshConfig(data=2, fsdp=2, sequence=2)),
  ):
    sizes = dataclasses.asdict(mesh).items()
    flags = [f'--config.mesh.{axis}={size}' for axis, size in sizes]
    run(environment, 'train', *_TINY, *flags, f'--workdir={tmp_path / name}')
    metrics.append(rows(tmp_path / name))
  assert [row['step'] for row in metrics[0]] == [0, 1, 2, 3]
  for want, got in zip(*metrics, strict=True):
    assert got.keys() == want.keys()
    for key, value in want.items():
      if not key.startswith('packing/'):  # As many rows as devices ask for.
        np.testing.assert_allclose(
          got[key], value, rtol=1e-5, atol=1e-5, err_msg=key
        )
