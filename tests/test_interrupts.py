"""A signal that meets a finalizer is not lost."""

import subprocess
import sys
import textwrap

import pytest


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
