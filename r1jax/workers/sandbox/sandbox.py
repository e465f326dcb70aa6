"""Runs programs that a model wrote, where nothing gets out.

  with Sandbox(slots=2) as sandbox:
    with sandbox.slot() as slot:
      slot.run_script('print(int(input()) + 1)', '1', secs=2)
      with slot.call_session([('program', 'def f(x): return x')], secs=2) as calls:
        calls.call('f(3)', secs=2)

Without a tier (`tiers`) that holds there is no sandbox, and then no program
runs and nothing is scored.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import queue

from r1jax.errors import UserError
from r1jax.workers.sandbox import canaries, tiers
from r1jax.workers.sandbox.slot import SandboxLimits, Slot
from r1jax.workers.sandbox.tiers import SandboxUnavailable


class Sandbox:
  """A pool of slots of the strongest tier that holds here.

  Attributes:
    tier: Which one; a run records it.
  """

  def __init__(
    self,
    slots: int = 2,
    tier: str | None = None,
    limits: SandboxLimits = SandboxLimits(),  # noqa: B008 (frozen)
  ):
    """Starts the slots; each tier must block every canary to be used.

    Args:
      slots: How many programs run at once.
      tier: Only this one.

    Raises:
      SandboxUnavailable: no tier holds; says why each does not.
    """
    if tier is not None and tier not in tiers.TIERS:
      raise UserError(f'sandbox: no tier {tier!r}; there are {tiers.TIERS}')
    self._launcher = futures.ThreadPoolExecutor(1)
    self._slots: list[Slot] = []
    reasons = []
    for self.tier in [tier] if tier else tiers.TIERS:
      try:
        for number in range(slots):
          self._slots.append(Slot(self.tier, number, limits, self._launcher))
          self._slots[-1].start()
        canaries.check(self._slots[0])
        break
      except SandboxUnavailable as error:
        reasons.append(str(error))
        self._stop()
    else:
      self._launcher.shutdown()
      raise SandboxUnavailable(
        'no sandbox for the programs of a model: ' + '; '.join(reasons)
      )
    self._free: queue.Queue[Slot] = queue.Queue()
    for slot in self._slots:
      self._free.put(slot)

  def __len__(self) -> int:
    return len(self._slots)

  @contextlib.contextmanager
  def slot(self, secs: float | None = None) -> Iterator[Slot]:
    """One of the slots, once one is free; TimeoutError if none is by then."""
    try:
      slot = self._free.get(timeout=secs)
    except queue.Empty:
      raise TimeoutError('no slot was free') from None
    try:
      yield slot
    finally:
      self._free.put(slot)

  def close(self):
    """Ends all servers, and whatever runs in them."""
    self._stop()
    self._launcher.shutdown()

  def _stop(self):
    for slot in self._slots:
      slot.stop()
    self._slots = []

  def __enter__(self) -> 'Sandbox':
    return self

  def __exit__(self, *_):
    self.close()
