"""Signals that meet a finalizer, or a step that others wait for."""

import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from r1jax import interrupts


@pytest.mark.parametrize(
  'signum, stretch',
  [
    ('SIGTERM', ''),
    ('SIGINT', ''),
    # Such a stretch of work asks for SIGTERM itself.
    ('SIGINT', 'with interrupts.deferred():'),
  ],
)
def test_a_signal_within_a_finalizer_is_raised_after_it(signum, stretch):
  """Python drops what a finalizer raises; the signal comes a moment later."""
  program = f"""
    import signal, time
    from r1jax import interrupts

    class Finalized:
      def __del__(self):
        signal.raise_signal(signal.{signum})
        time.sleep(0.2)
        print('finalized', flush=True)

    def work():
      Finalized()
      for _ in range(100):
        time.sleep(0.05)
      print('not interrupted')

    # A shell's background job ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()
    try:
      {stretch or 'if True:'}
        work()
    except interrupts.Interrupted as error:
      interrupts.end(error.signum, 'nothing is kept')
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.stdout == 'finalized\n', done.stderr
  assert done.returncode == {'SIGTERM': 143, 'SIGINT': 130}[signum]
  assert done.stderr.strip().endswith('nothing is kept')


def test_a_patient_deferral_waits_for_the_end_of_a_step(monkeypatch):
  monkeypatch.setitem(interrupts._STUCK_SECS, signal.SIGTERM, 0.1)
  monkeypatch.setattr(interrupts._state, 'answered', threading.Event())
  ended = []
  monkeypatch.setattr(interrupts, 'end', lambda *args: ended.append(args))
  with interrupts.deferred(patient=True) as deferral:
    signal.raise_signal(signal.SIGTERM)
    interrupts._end_if_stuck(signal.SIGTERM)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert deferral.check() == signal.SIGTERM
  assert not ended
