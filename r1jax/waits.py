"""Says what a command is doing where that takes more than five seconds.

  with waits.told('loading the weights'):
    …

Programs that JAX traces, lowers and compiles are told of without being asked,
once `watch_compiles` was called. The messages go to the logger of this module,
which the command line prints to stderr.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import logging
import threading
import time

import jax

TOLD_AFTER_SECS = 5.0
_POLL_SECS = 0.5
# Their names are in jax/_src/dispatch.py. JAX says when one begins and ends.
_EVENTS = {
  '/jax/core/compile/jaxpr_trace_duration': 'tracing',
  '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering',
  '/jax/core/compile/backend_compile_duration': 'compiling',
}
_log = logging.getLogger(__name__)


class Waits:
  """The things that are being done, and which of them were told of."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._lock = threading.Lock()
    self._began: dict[int, tuple[float, str]] = {}
    self._next = 0
    # Functions that each thread compiles: one that is jitted calls others.
    self._compiles: dict[int, list[int]] = {}

  def begin(self, text: str) -> int:
    """Begins something; returns a number for `end`."""
    with self._lock:
      self._next += 1
      self._began[self._next] = self._clock(), text
      return self._next

  def end(self, number: int):
    """Ends what `begin` has begun."""
    with self._lock:
      self._began.pop(number, None)

  def tell(self):
    """Logs what has taken long, each once."""
    with self._lock:
      now = self._clock()
      due = [
        (number, text)
        for number, (began, text) in self._began.items()
        if now - began >= TOLD_AFTER_SECS
      ]
      for number, _ in due:
        del self._began[number]
    for _, text in due:
      _log.info('still %s', text)

  def compile_begins(self, event: str, value: float, **about: str | int):
    """Takes from JAX that it begins to build a program."""
    del value  # It is the time.
    if event not in _EVENTS:
      return
    open_here = self._compiles.setdefault(threading.get_ident(), [])
    name = str(about.get('fun_name', ''))
    name = name.removeprefix('jit(').removesuffix(')')
    # A function that is traced within another one is told of as that one is.
    number = 0 if open_here else self.begin(f'{_EVENTS[event]} {name}')
    open_here.append(number)

  def compile_ends(self, event: str, duration_secs: float, **about: str | int):
    """Takes from JAX that it has built a program."""
    del duration_secs, about
    open_here = self._compiles.get(threading.get_ident())
    if event in _EVENTS and open_here:
      self.end(open_here.pop())


@functools.cache
def _of_process() -> Waits:
  """Returns the waits of this process, which a thread tells of."""
  made, never = Waits(), threading.Event()

  def watch():
    while not never.wait(_POLL_SECS):
      made.tell()

  threading.Thread(target=watch, name='waits', daemon=True).start()
  return made


@contextlib.contextmanager
def told(text: str) -> Iterator[None]:
  """Says 'still …' if what is done within takes more than five seconds.

  Args:
    text: The work that is done: 'loading the weights'.
  """
  waits = _of_process()
  number = waits.begin(text)
  try:
    yield
  finally:
    waits.end(number)


@functools.cache
def watch_compiles():
  """Tells from now on of programs that take long to build."""
  waits = _of_process()
  jax.monitoring.register_scalar_listener(waits.compile_begins)
  jax.monitoring.register_event_duration_secs_listener(waits.compile_ends)
