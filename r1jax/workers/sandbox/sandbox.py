"""Runs programs that a model wrote in a sandbox that they cannot escape.

  with Sandbox(slots=2) as sandbox:
    with sandbox.slot() as slot:
      slot.run_script('print(int(input()) + 1)', '1', secs=2)
      with slot.call_session([('program', 'def f(x): return x')], secs=2) as session:
        session.call('f(3)', secs=2)

If no tier (see `tiers.py`) is available and passes its canaries, there is no
sandbox: no program runs, and nothing is scored.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import logging
import queue

from r1jax.errors import UserError
from r1jax.workers.sandbox import canaries, tiers
from r1jax.workers.sandbox import packages as package_files
from r1jax.workers.sandbox.slot import SandboxLimits, Slot
from r1jax.workers.sandbox.tiers import SandboxUnavailable

_log = logging.getLogger(__name__)


class Sandbox:
  """A pool of slots of the strongest tier that is available here.

  Attributes:
    tier: Name of the tier, one of tiers.TIERS; a run records it.
    packages: Names of the packages that programs may import.
  """

  def __init__(
    self,
    slots: int = 2,
    tier: str | None = None,
    limits: SandboxLimits = SandboxLimits(),  # noqa: B008 (frozen)
    packages: Sequence[str] = (),
  ):
    """Starts the slots; a tier is used only if it stops every canary.

    Args:
      slots: Number of programs that run at once.
      tier: Tries only this tier.
      limits: Resource limits of each program.
      packages: Installed packages that programs may import beside the standard
        library.

    Raises:
      UserError: A package is not installed.
      SandboxUnavailable: No tier is available; says why, for each.
    """
    if tier is not None and tier not in tiers.TIERS:
      raise UserError(f'sandbox: no tier {tier!r}; there are {tiers.TIERS}')
    found = package_files.find(packages)
    self.packages = found.names
    self._launcher = futures.ThreadPoolExecutor(1)
    self._slots: list[Slot] = []
    reasons = []
    for self.tier in [tier] if tier else tiers.TIERS:
      try:
        for number in range(slots):
          self._slots.append(
            Slot(self.tier, number, limits, found, self._launcher)
          )
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
    if not self._slots[0].has_threads:
      _log.warning(
        'sandbox %s: programs cannot start threads, since nothing limits their '
        'number: run as another user, or as root with CAP_SETUID',
        self.tier,
      )
    self._free: queue.Queue[Slot] = queue.Queue()
    for slot in self._slots:
      self._free.put(slot)

  def __len__(self) -> int:
    return len(self._slots)

  @contextlib.contextmanager
  def slot(self, secs: float | None = None) -> Iterator[Slot]:
    """Lends a free slot, for which it waits.

    Raises:
      TimeoutError: No slot became free within `secs`.
    """
    try:
      slot = self._free.get(timeout=secs)
    except queue.Empty:
      raise TimeoutError('no slot was free') from None
    try:
      yield slot
    finally:
      self._free.put(slot)

  def close(self):
    """Kills all servers and the programs that they run."""
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
