"""Work that takes more than five seconds is told of once."""

import logging
import threading

import jax
import jax.numpy as jnp
import pytest

from r1jax import waits


class _Clock:
  now = 0.0

  def __call__(self):
    return self.now


@pytest.fixture
def told(caplog):
  """Waits under a clock of their own, and what they have told so far."""
  clock = _Clock()
  made = waits.Waits(clock)

  def after(secs):
    clock.now += secs
    caplog.clear()
    with caplog.at_level(logging.INFO, 'r1jax'):
      made.tell()
    return [record.getMessage() for record in caplog.records]

  return made, after


def test_what_takes_long_is_told_once(told):
  made, after = told
  slow, quick = made.begin('loading'), made.begin('reading')
  assert after(4) == []
  made.end(quick)
  assert after(1) == ['still loading'] and after(9) == []
  made.end(slow)


def test_a_program_is_told_of_by_its_outermost_function(told):
  made, after = told
  trace = '/jax/core/compile/jaxpr_trace_duration'
  compiles = '/jax/core/compile/backend_compile_duration'
  made.compile_begins(trace, 0.0, fun_name='step')
  made.compile_begins(trace, 0.0, fun_name='loss')
  made.compile_ends(trace, 0.1, fun_name='loss')
  assert after(6) == ['still tracing step']
  made.compile_ends(trace, 6.0, fun_name='step')
  made.compile_begins('/jax/core/other', 0.0, fun_name='step')
  made.compile_begins(compiles, 0.0, fun_name='step')
  assert after(6) == ['still compiling step']
  made.compile_ends(compiles, 6.0, fun_name='step')
  made.compile_begins(compiles, 0.0, fun_name='decode')
  made.compile_ends(compiles, 1.0, fun_name='decode')
  assert after(6) == []


def test_jax_says_when_it_begins_to_compile(monkeypatch):
  """Its listeners are called with the name of the function."""
  begun = []
  monkeypatch.setattr(
    waits.Waits, 'begin', lambda self, text: begun.append(text) or len(begun)
  )
  made = waits.Waits()
  here = threading.get_ident()

  def listen(event, value, **kwargs):
    if threading.get_ident() == here:
      made.compile_begins(event, value, **kwargs)

  jax.monitoring.register_scalar_listener(listen)
  jax.monitoring.register_event_duration_secs_listener(made.compile_ends)

  def unusual_name(x):
    return x * 3 + 1

  jax.jit(unusual_name)(jnp.ones(7))
  for verb in ('tracing', 'compiling'):
    assert any(
      text.startswith(verb) and 'unusual_name' in text for text in begun
    )
