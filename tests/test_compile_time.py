"""The time of building programs: the union of spans that JAX reports."""

import threading

import jax
import jax.numpy as jnp
import pytest

from r1jax import compile_time
from r1jax.train import metrics
from tests.stages.toy import Clock


@pytest.mark.parametrize(
  'spans, secs',
  [
    ([(1, 1), (3, 2)], 3),  # One after the other.
    ([(3, 1), (5, 5)], 5),  # [2, 3] within [0, 5].
    ([(2, 1), (4, 1), (5, 5), (6, 1)], 6),
    ([(2, 2), (3, 2)], 3),  # Two threads: [0, 2] and [1, 3].
    ([(4, 1), (3, 2)], 3),  # The one that began later has ended first.
  ],
)
def test_spans_count_once(spans, secs):
  clock = compile_time.CompileClock()
  for span in spans:
    clock.add(*span)
  assert clock.secs == secs


def test_other_events_do_not_count():
  clock = compile_time.CompileClock()
  clock.listen('/jax/checkpoint/write/durations', duration_secs=3)
  assert clock.secs == 0


def test_jax_reports_a_program_that_is_built_and_no_other():
  clock = compile_time.clock()
  assert compile_time.clock() is clock
  double = jax.jit(lambda x: 2 * x)
  x = jnp.ones(3)
  before = clock.secs
  double(x)
  built = clock.secs
  assert built > before
  double(x)
  assert clock.secs == built


@pytest.fixture
def clocks(monkeypatch):
  """A clock that is moved by hand, and one of building programs."""
  clock, built = Clock(), compile_time.CompileClock()
  monkeypatch.setattr(metrics, 'time', clock)
  monkeypatch.setattr(compile_time, 'clock', lambda: built)
  return clock, built


def test_a_stopwatch_tells_building_apart(clocks):
  clock, built = clocks
  watch = metrics.Stopwatch()
  clock.now = 3.0
  assert watch.lap('rollout') == 3.0
  clock.now = 10.0
  built.add(9.0, 5.0)
  assert watch.lap('update') == 2.0
  clock.now = 11.0
  assert watch.lap('rollout') == 1.0
  assert watch.secs == {'rollout': 4.0, 'update': 2.0, 'compile': 5.0}


def test_what_other_threads_build_is_at_most_the_lap(clocks):
  clock, built = clocks
  watch = metrics.Stopwatch()
  thread = threading.Thread(target=built.add, args=(9.0, 8.0))
  thread.start()
  thread.join()
  clock.now = 2.0
  assert watch.lap('update') == 0.0
  assert sum(watch.secs.values()) == 2.0
