"""How long JAX has spent building programs in this process."""

from collections import deque
import functools
import threading
import time

import jax

# Tracing, lowering and compiling; a program that is found on disk counts as
# long as it takes to load. Their names are in jax/_src/dispatch.py.
_EVENTS = frozenset(
  f'/jax/core/compile/{name}_duration'
  for name in ('jaxpr_trace', 'jaxpr_to_mlir_module', 'backend_compile')
)


class CompileClock:
  """The time during which programs were built, whichever they were.

  A jitted function that calls another one is traced while that one is, so the
  clock counts the union of all durations and not their sum. Example: [2, 3]
  within [0, 5] counts as 5.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._spans: deque[tuple[float, float]] = deque(maxlen=4096)
    self._secs = 0.0

  @property
  def secs(self) -> float:
    """Seconds since the clock was made."""
    with self._lock:
      return self._secs

  def add(self, end: float, secs: float):
    """Adds a span, which may contain earlier ones or overlap with them."""
    begin = end - secs
    with self._lock:
      while self._spans and self._spans[-1][0] >= begin:
        earlier = self._spans.pop()
        self._secs -= earlier[1] - earlier[0]
        end = max(end, earlier[1])
      if self._spans:
        begin = max(begin, self._spans[-1][1])
      if end > begin:
        self._spans.append((begin, end))
        self._secs += end - begin

  def listen(self, event: str, duration_secs: float, **_: str | int):
    """Adds a span that ends now, if the event is one of building a program."""
    if event in _EVENTS:
      self.add(time.monotonic(), duration_secs)


@functools.cache
def clock() -> CompileClock:
  """Returns the clock of this process; it runs from the first call on."""
  made = CompileClock()
  jax.monitoring.register_event_duration_secs_listener(made.listen)
  return made
