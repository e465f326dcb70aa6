"""A host that is slower than the others is named."""

import logging

import pytest

from r1jax.stages.stragglers import Stragglers


def _hosts(*secs):
  """Own seconds of hosts: a quarter of them is the host's part."""
  return [{'rollout': 0.75 * s, 'host': 0.25 * s} for s in secs]


def _warnings(caplog) -> list[str]:
  return [
    record.getMessage()
    for record in caplog.records
    if record.levelno == logging.WARNING
  ]


def test_times_of_hosts_by_part():
  stragglers = Stragglers('rl')
  stragglers.add(1, _hosts(1, 2, 3), 10)
  stragglers.add(2, _hosts(1, 2, 9), 10)
  assert stragglers.metrics() == pytest.approx(
    {
      'host/time_max': 6,
      'host/time_mean': 3,
      'host/slowest': 2,
      'host/rollout_time_max': 4.5,
      'host/rollout_time_mean': 2.25,
      'host/rollout_slowest': 2,
      'host/host_time_max': 1.5,
      'host/host_time_mean': 0.75,
      'host/host_slowest': 2,
    }
  )
  stragglers.clear()
  assert stragglers.metrics() == {}


def test_the_slowest_of_most_steps_is_named():
  stragglers = Stragglers('rl')
  for step, secs in enumerate([(1, 2), (1, 2), (100, 2)], 1):
    stragglers.add(step, _hosts(*secs), 100)
  assert stragglers.metrics()['host/slowest'] == 1


def test_one_process_has_no_slowest():
  stragglers = Stragglers('rl')
  stragglers.add(1, _hosts(5), 10)
  assert stragglers.metrics() == {}


def _run(*steps, step_secs=10):
  stragglers = Stragglers('rl')
  for step, secs in enumerate(steps, 1):
    stragglers.add(step, _hosts(*secs), step_secs)


def test_five_slow_steps_in_a_row_are_a_warning(caplog):
  _run((2, 2, 2, 4), *[(2, 4, 2, 2)] * 5)
  (warning,) = _warnings(caplog)
  assert warning == (
    'rl: process 1 was the slowest host of steps 2 to 6: its own work takes '
    '4.00 s of a step of 10.00 s, the median of the others 2.00 s (rollout '
    '3.00 s, host 1.00 s)'
  )


def test_the_warning_comes_again_after_as_many_steps(caplog):
  _run(*[(4, 2)] * 11)
  assert [w.split(':')[1] for w in _warnings(caplog)] == [
    ' process 0 was the slowest host of steps 1 to 5',
    ' process 0 was the slowest host of steps 1 to 10',
  ]


@pytest.mark.parametrize(
  'steps, step_secs',
  [
    ([(4, 2)] * 4, 10),  # Too few.
    ([(4, 2)] * 4 + [(2, 2)] + [(4, 2)] * 4, 10),
    ([(4, 2), (2, 4)] * 5, 10),  # Not the same one.
    ([(2.9, 2)] * 9, 10),  # Not so much slower.
    ([(4, 2)] * 9, 41),  # Less than a twentieth of the step.
    ([(4, 4, 4, 2)] * 9, 10),
  ],
)
def test_other_hosts_are_no_warning(caplog, steps, step_secs):
  _run(*steps, step_secs=step_secs)
  assert _warnings(caplog) == []


def test_only_the_first_process_warns(caplog, monkeypatch):
  monkeypatch.setattr('r1jax.processes.is_first', lambda: False)
  _run(*[(4, 2)] * 9)
  assert _warnings(caplog) == []
