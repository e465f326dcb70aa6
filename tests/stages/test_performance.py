"""Throughput and MFU by hand, on chips that are not here."""

import re
from types import SimpleNamespace

import jax
import pytest

from r1jax.stages import performance
from r1jax.stages.goodput import BADPUT, PRODUCTIVE
from r1jax.stages.performance import Hardware, Performance, Work
from r1jax.stages.stragglers import Stragglers
from r1jax.stages.trainer import StepOutput
from r1jax.train import metrics
from tests.conftest import ROOT


def _devices(kind, count):
  return [SimpleNamespace(device_kind=kind)] * count


@pytest.mark.parametrize(
  'kind, count, fp8, chips, flops',
  [
    ('TPU v5p', 8, False, 8, 8 * 459e12),
    ('TPU7x', 8, False, 4, 4 * 2307e12),  # Two devices a chip.
    ('TPU7x', 8, True, 4, 4 * 4614e12),
    ('NVIDIA H200', 1, True, 1, 1979e12),
    ('TPU v5 lite', 2, True, 2, 2 * 197e12),  # It has no FP8.
    ('cpu', 3, False, 3, None),
  ],
)
def test_the_peak_is_that_of_all_chips(kind, count, fp8, chips, flops):
  found = performance.hardware(_devices(kind, count), fp8)
  assert found == Hardware(chips, flops)


@pytest.fixture
def on_chips(monkeypatch):
  """Four devices of a kind, whose memory is not told."""

  def make(kind):
    devices = _devices(kind, 4)
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    monkeypatch.setattr(metrics, 'memory', dict)
    return Performance(fp8=False)

  return make


def _step(rollout, update, tokens):
  return StepOutput(
    None,
    {},
    {'tokens': tokens},
    {'rollout': rollout, 'update': update},
    work={
      'rollout': Work(tokens, 1e14 * rollout),
      'update': Work(2 * tokens, 1e15),
    },
  )


def test_throughput_and_mfu_are_of_the_time_of_their_part(on_chips):
  measured = on_chips('TPU v5p')
  measured.add(_step(3, 1, 60))
  measured.add(_step(5, 1, 20))
  assert measured.shown(16.0) == pytest.approx(
    {
      'speed/tokens_per_sec': 80 / 16,
      'time/rollout': 4,
      'time/update': 1,
      'perf/rollout_tokens_per_sec_per_chip': 80 / 8 / 4,
      'perf/rollout_mfu': 1e14 / (4 * 459e12),
      'perf/update_tokens_per_sec_per_chip': 160 / 2 / 4,
      'perf/update_mfu': 1e15 / (4 * 459e12),
    }
  )
  measured.clear()
  assert measured.shown(1.0) == {}


def test_devices_that_do_a_part_of_the_work_count_for_it_alone(on_chips):
  """One of four devices samples, three train."""
  measured = on_chips('TPU v5p')
  step = StepOutput(
    None,
    {},
    {'tokens': 60},
    {'rollout': 3, 'update': 1},
    work={'rollout': Work(60, 1e14, 1 / 4), 'update': Work(120, 1e15, 3 / 4)},
  )
  measured.add(step)
  measured.add(step)
  found = measured.shown(8.0)
  assert found['perf/rollout_tokens_per_sec_per_chip'] == 60 / 3
  assert found['perf/rollout_mfu'] == pytest.approx(1e14 / 3 / 459e12)
  assert found['perf/update_tokens_per_sec_per_chip'] == 120 / 3
  assert found['perf/update_mfu'] == pytest.approx(1e15 / (3 * 459e12))


def test_an_update_that_goes_on_meanwhile_has_the_rest_of_the_time(on_chips):
  measured = on_chips('TPU v5p')
  measured.add(
    StepOutput(
      None, {}, {}, {'data': 1, 'compile': 2}, work={'update': Work(9, 9e12)}
    )
  )
  found = measured.shown(6.0)
  assert found['time/update'] == 3
  assert found['perf/update_mfu'] == pytest.approx(3e12 / (4 * 459e12))


def test_a_chip_that_is_not_known_has_no_mfu(on_chips):
  measured = on_chips('cpu')
  measured.add(_step(3, 1, 60))
  found = measured.shown(4.0)
  assert found['perf/update_tokens_per_sec_per_chip'] == 30
  assert not [name for name in found if 'mfu' in name]


def test_the_progress_line_shows_mfu_and_compiling():
  found = {'perf/update_mfu': 0.4123, 'time/compile': 12.4}
  assert performance.progress_numbers(found) == {
    'MFU': '41.2%',
    'compile': '12 s',
  }
  assert performance.progress_numbers({'time/compile': 0.1}) == {}


def test_memory_is_of_the_fullest_device_that_tells(monkeypatch):
  def device(**stats):
    return SimpleNamespace(memory_stats=lambda: stats or None)

  full = device(peak_bytes_in_use=12 * 10**9, bytes_limit=16 * 10**9)
  other = device(peak_bytes_in_use=4 * 10**9, bytes_limit=16 * 10**9)
  monkeypatch.setattr(jax, 'local_devices', lambda: [other, full, device()])
  found = metrics.memory()
  assert 0 < found.pop('memory/host_peak_gb') < 1e3
  assert found == {'memory/peak_gb': 12.0, 'memory/peak_frac': 0.75}
  monkeypatch.setattr(jax, 'local_devices', lambda: [device()])
  assert list(metrics.memory()) == ['memory/host_peak_gb']


def test_every_metric_of_performance_is_documented(on_chips):
  measured = on_chips('TPU v5p')
  parts = ('rollout', 'reward', 'host', 'reference', 'data', 'update')
  measured.add(
    StepOutput(
      None,
      {},
      {'tokens': 1, 'completions': 1},
      dict.fromkeys((*parts, 'compile'), 1.0),
      work={'rollout': Work(1, 1), 'update': Work(1, 1)},
    )
  )
  stragglers = Stragglers('rl')
  stragglers.add(1, [dict.fromkeys(parts, 1.0)] * 2, 1.0)
  names = {*measured.shown(1.0), *stragglers.metrics(), 'goodput'}
  names |= {f'goodput/{part}' for part in (*PRODUCTIVE, *BADPUT)}
  names |= {'memory/peak_gb', 'memory/peak_frac', 'memory/host_peak_gb'}
  text = (ROOT / 'docs/metrics.md').read_text()
  told = set(re.findall(r'`([\w/<>]+)`', text))
  told |= {name.replace('<part>', part) for name in told for part in parts}
  assert names - told == set()
