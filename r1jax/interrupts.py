"""Signals that end a command: what is said and saved, and the exit code.

  Ctrl-C (SIGINT)   ends it at once, with exit code 130.
  SIGTERM, SIGHUP   end it with 143 and 129; a training stage first finishes its
                    step, if that does not take long, and saves a checkpoint.

A signal becomes an Interrupted that is raised in the main thread. While that
thread is in compiled code, such as a compilation of several minutes, Python
raises nothing: a thread then ends the process. The process ends without the
clean-up of the interpreter, in which threads of XLA may crash.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

_SIGNALS = {
  signal.SIGINT: 'interrupted',
  signal.SIGTERM: 'terminated',
  signal.SIGHUP: 'terminated, for the terminal is gone',
}
# Schedulers send SIGKILL 30 seconds after SIGTERM, by default.
_STEP_SECS = 8.0  # Longest wait for the end of a step.
# Python drops what is raised in these: finalizers, and what JAX does at each
# collection of garbage. The signal is sent again a moment later.
_DROPPING, _AGAIN_SECS = ('__del__', '_xla_gc_callback'), 0.05
_RAISED_AT_ONCE = signal.SIGINT, signal.SIGALRM  # Even where others wait.
_STUCK_SECS = {signal.SIGINT: 2.0, signal.SIGTERM: 20.0, signal.SIGHUP: 20.0}


class Interrupted(KeyboardInterrupt):
  """A signal ends the command.

  Attributes:
    signum: The signal.
    kept: The work that is kept, and how to go on; '' if nobody said so.
  """

  def __init__(self, signum: int):
    super().__init__(signal.Signals(signum).name)
    self.signum, self.kept = signum, ''

  @property
  def exit_code(self) -> int:
    """128 + the signal, as shells count it."""
    return 128 + self.signum


class Deferral:
  """A stretch of work that SIGTERM does not end before it has been saved.

  Attributes:
    signum: The signal that came; 0 for none.
    patient: Whether it waits for the end of a step however long that takes.

  A signal that comes when the work is all but done ends the command after it:
  see `pending`.
  """

  def __init__(self, patient: bool):
    self.signum, self.patient = 0, patient

  def check(self) -> int:
    """Returns the signal that has come, or 0, and ends the wait for the step."""
    if self.signum:
      signal.setitimer(signal.ITIMER_REAL, 0)
      _state.answered.set()
    return self.signum

  def stop(self, signum: int = 0):
    """Raises the Interrupted of the signal, once all is saved.

    Args:
      signum: The signal that another process of the run has met, if any.
    """
    _raise(self.signum or signum)


class _State:
  """The signals of this process."""

  def __init__(self):
    self.deferral: Deferral | None = None
    self.pending = 0  # A signal that came in the last step of a deferral.
    self.raised = False
    self.resent = 0  # Signals that this module sends again.
    self.terminal: int | None = None  # What stderr was, if it is a file now.
    self.answered = threading.Event()


_state = _State()


def install():
  """Turns signals into Interrupted, in the main thread of a command.

  A signal that is ignored, as SIGHUP is under nohup, stays ignored.
  """
  for signum in _SIGNALS:
    if signal.getsignal(signum) is not signal.SIG_IGN:
      signal.signal(signum, _handle)
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(reader,), daemon=True).start()


@contextlib.contextmanager
def deferred(patient: bool = False) -> Iterator[Deferral]:
  """Lets a training loop save before SIGTERM and SIGHUP end it.

  The loop asks Deferral.check() after each step. A step that goes on for long
  is ended by an Interrupted.

  Args:
    patient: Never end a step: several processes save together after it, or not
      at all.
  """
  deferral = Deferral(patient)
  if threading.current_thread() is not threading.main_thread():
    yield deferral  # Only the main thread may handle signals.
    return
  signums = signal.SIGTERM, signal.SIGHUP, signal.SIGALRM
  before = {signum: signal.getsignal(signum) for signum in signums}
  for signum in signums:
    if before[signum] is not signal.SIG_IGN:
      signal.signal(signum, _handle)
  outer, _state.deferral = _state.deferral, deferral
  try:
    yield deferral
    _state.pending = deferral.check()
  finally:
    _state.deferral = outer
    signal.setitimer(signal.ITIMER_REAL, 0)
    for signum, handler in before.items():
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def take_pending() -> int:
  """Returns a signal that the work it came in has outlived, once; 0 for none.

  A training loop that is in its last step when it is told to end finishes its
  stage, which is little more. Whoever would begin the next one asks for it.
  """
  signum, _state.pending = _state.pending, 0
  return signum


def _handle(signum: int, frame):
  deferral = _state.deferral
  if _drops(frame) and (deferral is None or signum in _RAISED_AT_ONCE):
    threading.Timer(_AGAIN_SECS, _send_again, (signum,)).start()
    return
  if signum == signal.SIGALRM:  # The step of a deferral takes too long.
    assert deferral is not None
    _raise(deferral.signum)
  elif signum == signal.SIGINT:
    _raise(signum)
  elif deferral is None:
    if not _state.raised:  # It is already on its way.
      _raise(signum)
  elif not deferral.signum:
    deferral.signum = signum
    if not deferral.patient:
      signal.setitimer(signal.ITIMER_REAL, _STEP_SECS)


def _drops(frame) -> bool:
  """Returns whether an exception that is raised in a frame goes nowhere."""
  while frame is not None:
    if frame.f_code.co_name in _DROPPING:
      return True
    frame = frame.f_back
  return False


def _send_again(signum: int):
  _state.resent += signum in _SIGNALS  # Others do not reach _watch.
  signal.pthread_kill(threading.main_thread().ident or 0, signum)


def _raise(signum: int):
  _state.raised = True
  _state.answered.set()
  raise Interrupted(signum)


def _watch(reader: int):
  """Ends the process where the main thread cannot answer a signal."""
  seen: set[int] = set()
  while True:
    for signum in os.read(reader, 64):
      if signum not in _SIGNALS:
        continue
      if _state.resent:
        _state.resent -= 1
        continue
      if signum in seen and signum != signal.SIGINT:
        continue  # It is being answered.
      if signum in seen:
        end(signum, 'a second signal came before all was cleaned up')
      seen.add(signum)
      threading.Thread(
        target=_end_if_stuck, args=(signum,), daemon=True
      ).start()


def _end_if_stuck(signum: int):
  waits = _state.deferral is not None and _state.deferral.patient
  if waits and signum != signal.SIGINT:
    return
  if not _state.answered.wait(_STUCK_SECS[signal.Signals(signum)]):
    end(signum, 'the same command goes on from what is saved')


def keep_terminal():
  """Lets the last line reach the present stderr, which will be a file's."""
  if _state.terminal is None:
    _state.terminal = os.dup(2)


def end(signum: int, text: str):
  """Prints one line and ends the process.

  Args:
    signum: The signal that ends it.
    text: The work that is kept, and how to go on.
  """
  exit_now(128 + signum, f'{_SIGNALS[signal.Signals(signum)]}; {text}')


def exit_now(code: int, text: str):
  """Prints one line to stderr and ends the process, without any clean-up.

  Args:
    code: The exit code.
    text: The line.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):  # A full disk, or a closed pipe.
      stream.flush()
  with contextlib.suppress(OSError):
    if os.isatty(2):
      os.write(2, b'\x1b[?25h')  # A live line hides the cursor.
    for stderr in filter(None, (2, _state.terminal)):
      os.write(stderr, f'\nr1jax: {text}\n'.encode())
  os._exit(code)
