"""Worker processes for functions of plugins, shared by the whole process.

Each plugin has workers of its own, which import it when they start. They see
the user's environment and current folder, and no accelerator. A call that takes
longer than its time on the wall clock is killed, and so is one that uses up the
memory; both cost that call alone.
"""

from collections.abc import Sequence
import threading
from typing import Any

from r1jax import registry
from r1jax.workers.job_queue import JobFailure, WorkerLimits
from r1jax.workers.pool import WorkerPool

_MEMORY_BYTES = 16 << 30  # Plugins may import large libraries.
# Plugins are limited on the wall clock alone, with one attempt for each call:
# an empty budget pays for no second one.
_NO_CPU_LIMIT = WorkerLimits(
  first_attempt=1e9,
  deadline=1e9,
  budget_capacity=0.0,
  budget_refill=0.0,
  typical_job_secs=1.0,
)

_lock = threading.Lock()
_pools: dict[tuple[str, str, str], WorkerPool] = {}


def call(
  module: str,
  plugin: str,
  jobs: Sequence[Any],
  wall_secs: float,
  total_secs: float = float('inf'),
) -> list:
  """Runs jobs in the workers of a plugin.

  Args:
    module: The worker module, whose prepare(plugin, digest) imports the plugin.
    plugin: See registry.Origin.
    jobs: JSON-serialisable jobs.
    wall_secs: Wall-clock limit of one job.
    total_secs: Wall-clock limit of the whole call.

  Returns:
    One result per job, a JobFailure for a job that has none.

  Raises:
    WorkerStartError: the plugin cannot be imported in a worker.
  """
  key = module, plugin, registry.digest(plugin)
  with _lock:
    if key not in _pools:
      _pools[key] = WorkerPool(
        module,
        _NO_CPU_LIMIT,
        memory_bytes=_MEMORY_BYTES,
        arguments=key[1:],
        trusted=True,
      )
    pool = _pools[key]
  return pool.map(jobs, total_secs, wall_secs)


def failure_text(failure: JobFailure, wall_secs: float) -> str:
  """Describes why a job has no result, for a person to read."""
  if failure.kind == 'timeout':
    return f'took more than {wall_secs:g} s'
  return failure.message


def shutdown():
  """Stops the workers; the next call starts others."""
  with _lock:
    while _pools:
      _pools.popitem()[1].close()
