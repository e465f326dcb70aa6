"""Published figures of TPUs and GPUs: memory, peak FLOP/s, bandwidths.

All are peaks of one chip, without structured sparsity, in units of 1 and not of
10⁹. MFU, memory budgets and predicted step times divide by them.
"""

import dataclasses
from typing import Protocol

_GiB = 1 << 30


class Device(Protocol):
  """The part of a jax.Device by which a chip is known."""

  @property
  def device_kind(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """The published figures of one chip.

  Attributes:
    name: The short name, and its key in CHIPS: 'v5p'.
    device_kinds: The values of jax.Device.device_kind that mean it.
    devices: JAX devices a chip. A TPU7x shows its two TensorCores as two
      devices, each with half of the figures below.
    hbm_bytes: High-bandwidth memory.
    hbm_bytes_per_sec: Its bandwidth.
    bf16_flops: Peak FLOP/s of bfloat16 matrix products.
    int8_flops: Peak operations a second of int8 products; None: no such unit.
    fp8_flops: Peak FLOP/s of 8-bit floats; None: no such unit. A TPU v5p or v6e
      takes them at the pace of bfloat16.
    ici_bytes_per_sec: Bandwidth to other chips of the slice in one direction,
      all links together; NVLink for GPUs.
    ici_links: Number of those links: neighbours in a torus; 1 for NVLink,
      which reaches every GPU of its domain through a switch.
    dcn_bytes_per_sec: Bandwidth to other slices through the data-center
      network in one direction; None: it depends on the machine, or is not
      published.
  """

  name: str
  device_kinds: tuple[str, ...]
  devices: int = 1
  hbm_bytes: int
  hbm_bytes_per_sec: float
  bf16_flops: float
  int8_flops: float | None = None
  fp8_flops: float | None = None
  ici_bytes_per_sec: float
  ici_links: int
  dcn_bytes_per_sec: float | None = None


# Google: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; the v4 links
# are from arXiv:2304.01433, table 4. Google states the bandwidth of links in
# both directions together; here it is halved. The tables of tpu7x give FP8 and
# the data-center network (bits a second a chip) of v5p, v6e and 7x; the one of
# a v5e is a pod's 6.4 Tbps over 256 chips. JAX agrees, see
# jax/_src/pallas/mosaic/tpu_info.py, which also has v5p's int8.
_TPUS = (
  Chip(
    name='v4',
    device_kinds=('TPU v4',),
    hbm_bytes=32 * _GiB,
    hbm_bytes_per_sec=1200e9,
    bf16_flops=275e12,
    int8_flops=275e12,
    ici_bytes_per_sec=300e9,
    ici_links=6,
  ),
  Chip(
    name='v5e',
    device_kinds=('TPU v5 lite', 'TPU v5e'),
    hbm_bytes=16 * _GiB,
    hbm_bytes_per_sec=819e9,
    bf16_flops=197e12,
    int8_flops=393e12,
    ici_bytes_per_sec=200e9,
    ici_links=4,
    dcn_bytes_per_sec=25e9 / 8,
  ),
  Chip(
    name='v5p',
    device_kinds=('TPU v5', 'TPU v5p'),
    hbm_bytes=95 * _GiB,
    hbm_bytes_per_sec=2765e9,
    bf16_flops=459e12,
    int8_flops=918e12,
    fp8_flops=459e12,
    ici_bytes_per_sec=600e9,
    ici_links=6,
    dcn_bytes_per_sec=50e9 / 8,
  ),
  Chip(
    name='v6e',
    device_kinds=('TPU v6 lite', 'TPU v6e'),
    hbm_bytes=32 * _GiB,
    hbm_bytes_per_sec=1638e9,
    bf16_flops=918e12,
    int8_flops=1836e12,
    fp8_flops=918e12,
    ici_bytes_per_sec=400e9,
    ici_links=4,
    dcn_bytes_per_sec=100e9 / 8,
  ),
  Chip(
    name='v7x',
    device_kinds=('TPU7x',),
    devices=2,
    hbm_bytes=192 * _GiB,
    hbm_bytes_per_sec=7380e9,
    bf16_flops=2307e12,
    fp8_flops=4614e12,
    ici_bytes_per_sec=600e9,
    ici_links=6,
    dcn_bytes_per_sec=100e9 / 8,
  ),
)

# NVIDIA's data sheets, at nvidia.com/en-us/data-center/{a100,h100,h200,hgx}.
# Their rates with sparsity and their NVLink rates in both directions are
# halved here.
_GPUS = (
  Chip(
    name='A100-40GB',
    device_kinds=('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
    hbm_bytes=40 * 10**9,
    hbm_bytes_per_sec=1555e9,
    bf16_flops=312e12,
    int8_flops=624e12,
    ici_bytes_per_sec=300e9,
    ici_links=1,
  ),
  Chip(
    name='A100-80GB',
    device_kinds=('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe'),
    hbm_bytes=80 * 10**9,
    hbm_bytes_per_sec=2039e9,
    bf16_flops=312e12,
    int8_flops=624e12,
    ici_bytes_per_sec=300e9,
    ici_links=1,
  ),
  Chip(
    name='H100',
    device_kinds=('NVIDIA H100 80GB HBM3',),
    hbm_bytes=80 * 10**9,
    hbm_bytes_per_sec=3350e9,
    bf16_flops=989e12,
    int8_flops=1979e12,
    fp8_flops=1979e12,
    ici_bytes_per_sec=450e9,
    ici_links=1,
  ),
  Chip(
    name='H100-PCIe',
    device_kinds=('NVIDIA H100 PCIe',),
    hbm_bytes=80 * 10**9,
    hbm_bytes_per_sec=2000e9,
    bf16_flops=756e12,
    int8_flops=1513e12,
    fp8_flops=1513e12,
    ici_bytes_per_sec=300e9,
    ici_links=1,
  ),
  Chip(
    name='H200',
    device_kinds=('NVIDIA H200',),
    hbm_bytes=141 * 10**9,
    hbm_bytes_per_sec=4800e9,
    bf16_flops=989e12,
    int8_flops=1979e12,
    fp8_flops=1979e12,
    ici_bytes_per_sec=450e9,
    ici_links=1,
  ),
  Chip(
    name='B200',
    device_kinds=('NVIDIA B200',),
    hbm_bytes=180 * 10**9,
    hbm_bytes_per_sec=8000e9,
    bf16_flops=2250e12,
    int8_flops=4500e12,
    fp8_flops=4500e12,
    ici_bytes_per_sec=900e9,
    ici_links=1,
  ),
)

CHIPS = {chip.name: chip for chip in _TPUS + _GPUS}
TPUS = tuple(chip.name for chip in _TPUS)
_OF_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.device_kinds}


def of(device: Device) -> Chip | None:
  """Returns the chip of a JAX device, or None for a CPU or an unknown chip."""
  return _OF_KIND.get(device.device_kind)
