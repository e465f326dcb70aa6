"""Throughput, model FLOPs utilisation and times of the steps of a run."""

from collections.abc import Mapping, Sequence
import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from r1jax import chips
from r1jax.train import metrics
from r1jax.train.metrics import COMPILE

if TYPE_CHECKING:
  from r1jax.stages.loop import StepOutput

UPDATE = 'update'
_SHOWN_COMPILE_SECS = 1.0  # The progress line leaves out less.


class Work(NamedTuple):
  """The work of a part of a step; see model/model_flops.py.

  Attributes:
    tokens: Tokens that the part processes, without padding.
    flops: Model FLOPs, of all devices together.
    share: The share of the run's devices that do it.
  """

  tokens: float
  flops: float
  share: float = 1.0


class Hardware(NamedTuple):
  """The chips of a run.

  Attributes:
    num_chips: Their number; of devices where the chip is not known.
    peak_flops: Peak FLOP/s of all of them together; None where it is not known.
  """

  num_chips: float
  peak_flops: float | None


def hardware(devices: Sequence[Any], fp8: bool = False) -> Hardware:
  """Returns the chips of a run's devices.

  Args:
    devices: JAX devices, all of one kind.
    fp8: Whether products are in FP8, where a chip has a unit for it; else the
      peak is that of bfloat16.
  """
  chip = chips.of(devices[0])
  if chip is None:
    return Hardware(len(devices), None)
  num_chips = len(devices) / chip.devices
  flops = (fp8 and chip.fp8_flops) or chip.bf16_flops
  return Hardware(num_chips, flops * num_chips)


class Performance:
  """The work and the time of the steps since the last line."""

  def __init__(self, fp8: bool):
    self._hardware = hardware(jax.devices(), fp8)
    self.clear()

  def clear(self):
    self._counts: dict[str, float] = {}
    self._parts: dict[str, float] = {}
    self._work: dict[str, Work] = {}
    self._steps = 0
    self._secs = 0.0

  def add(self, output: 'StepOutput'):
    _add(self._counts, output.counts)
    _add(self._parts, output.secs)
    for name, work in output.work.items():
      before = self._work.get(name, Work(0, 0))
      self._work[name] = Work(
        before.tokens + work.tokens, before.flops + work.flops, work.share
      )
    self._steps += 1

  def shown(self, secs: float) -> dict[str, float]:
    """Returns metrics of the steps since the last line; {} without any.

    Args:
      secs: Time of the last steps, without what `untimed` left out.
    """
    if not self._steps:
      return {}
    secs += self._secs
    parts = dict(self._parts)
    if UPDATE not in parts:  # The device computes while the host goes on.
      parts[UPDATE] = max(secs - sum(parts.values()), 0.0)
    found = {
      f'speed/{name}_per_sec': count / secs
      for name, count in self._counts.items()
      if secs
    }
    for name, part in parts.items():
      found[f'time/{name}'] = part / self._steps
    for name, work in self._work.items():
      found |= self._of_work(name, work, parts.get(name, 0.0))
    return found | metrics.memory()

  def _of_work(self, name: str, work: Work, secs: float) -> dict[str, float]:
    if secs <= 0:
      return {}
    num_chips, peak_flops = self._hardware
    num_chips *= work.share
    per_chip = f'perf/{name}_tokens_per_sec_per_chip'
    found = {per_chip: work.tokens / secs / num_chips}
    if peak_flops:
      found[f'perf/{name}_mfu'] = work.flops / secs / peak_flops / work.share
    return found

  @contextlib.contextmanager
  def untimed(self, state: Any, progress: metrics.Progress):
    """Leaves what is done within out of the speed, which is of steps alone."""
    jax.block_until_ready(state)
    self._secs += progress.step_secs()
    yield
    progress.step_secs()


def progress_numbers(found: Mapping[str, float]) -> dict[str, str]:
  """Returns what the progress line shows: MFU, and time of compiling."""
  shown = {}
  if f'perf/{UPDATE}_mfu' in found:
    shown['MFU'] = f'{found[f"perf/{UPDATE}_mfu"]:.1%}'
  secs = found.get(f'time/{COMPILE}', 0.0)
  if secs >= _SHOWN_COMPILE_SECS:
    shown['compile'] = f'{secs:.0f} s'
  return shown


def _add(sums: dict[str, float], values: Mapping[str, float]):
  for name, value in values.items():
    sums[name] = sums.get(name, 0.0) + value
