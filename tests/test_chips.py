"""The table of chips: device kinds, and figures that bound each other."""

from types import SimpleNamespace

import jax
import pytest

from r1jax import chips


@pytest.mark.parametrize(
  'kind, name',
  [
    ('TPU v4', 'v4'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('TPU7x', 'v7x'),
    ('NVIDIA A100-SXM4-80GB', 'A100-80GB'),
    ('NVIDIA H100 80GB HBM3', 'H100'),
    ('NVIDIA H200', 'H200'),
    ('NVIDIA B200', 'B200'),
  ],
)
def test_a_device_kind_names_its_chip(kind, name):
  assert chips.of(SimpleNamespace(device_kind=kind)).name == name


def test_unknown_chips_are_none():
  assert chips.of(jax.devices('cpu')[0]) is None
  assert chips.of(SimpleNamespace(device_kind='TPU v9')) is None


@pytest.mark.parametrize('chip', chips.CHIPS.values(), ids=lambda c: c.name)
def test_bandwidths_are_ordered(chip):
  """Memory is faster than links, and links than the network of the site."""
  assert chip.hbm_bytes_per_sec > chip.ici_bytes_per_sec
  assert chip.ici_bytes_per_sec > (chip.dcn_bytes_per_sec or 0)
  for flops in (chip.int8_flops, chip.fp8_flops):
    assert flops is None or flops >= chip.bf16_flops
  assert chips.CHIPS[chip.name] is chip


@pytest.mark.parametrize('name', chips.TPUS)
def test_tpus_agree_with_jax(name):
  """JAX keeps these figures, a TensorCore, for its kernels.

  The bandwidth of a v5p's memory is 2.46e12 there and 2.765e12 at Google Cloud.
  """
  tpu_info = pytest.importorskip('jax._src.pallas.mosaic.tpu_info')
  chip = chips.CHIPS[name]
  version = tpu_info.chip_version_from_device_kind(chip.device_kinds[0])
  cores = version.num_physical_tensor_cores_per_chip
  info = tpu_info.get_tpu_info_for_chip(version, 1)
  close = lambda ours, theirs: ours == pytest.approx(theirs * cores, rel=0.13)
  assert close(chip.hbm_bytes, info.hbm_capacity_bytes)
  assert close(chip.hbm_bytes_per_sec, info.mem_bw_bytes_per_second)
  assert close(chip.bf16_flops, info.bf16_ops_per_second)
  if chip.int8_flops and info.int8_ops_per_second:
    assert close(chip.int8_flops, info.int8_ops_per_second)
