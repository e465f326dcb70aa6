"""Joins the processes of a run: the same command on every host.

The coordinator's address, the number of processes and this one's number come
from flags, from the environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID), or from what JAX knows to ask: Slurm, Open MPI, the metadata of
a Cloud TPU slice, GKE. Without any of these there is one process.
"""

from collections.abc import Mapping
import dataclasses
import importlib.util
import logging
import os
import socket
import threading
import time
import traceback

from r1jax import interrupts
from r1jax.errors import UserError
from r1jax.launch.watch import Watch

_log = logging.getLogger(__name__)

PLACE_FLAGS = ('coordinator', 'num_processes', 'process_id')
_TIMEOUT_FLAG = 'initialization_timeout'
FLAGS = (*PLACE_FLAGS, _TIMEOUT_FLAG)
_ENVIRONMENT = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
)
_JOIN_SECS = 300  # Without the coordinator, or without all processes.
_GRACE_SECS = 60  # Beyond _JOIN_SECS, before JAX itself would abort.
# The watch ends a run after this silence of a process; JAX would abort after its
# own, longer one.
_SILENCE_SECS, _HEARTBEAT_SECS = 15.0, 60
_NOTICE_SECS = 3.0  # For the watch to say why a collective operation failed.
_watch: Watch | None = None
_joined = False


@dataclasses.dataclass(frozen=True)
class Place:
  """This process's place among those of a run.

  Attributes:
    source: The things that told it, for people.
    coordinator: Address of the first process, 'host:port'; None if JAX finds
      all three.
    num_processes, process_id: How many there are, and which one this is.
    method: JAX's name of how to find them; None for flags.
  """

  source: str
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  method: str | None = None


def taken_flags(args: list[str]) -> tuple[list[str], dict[str, str]]:
  """Takes the flags of a cluster out of arguments.

  Returns:
    The other arguments, and the values of the flags by name.

  Raises:
    UserError: a flag has no value.
  """
  others: list[str] = []
  found: dict[str, str] = {}
  left = iter(args)
  for arg in left:
    name, equals, value = arg.lstrip('-').partition('=')
    if not arg.startswith('-') or name not in FLAGS:
      others.append(arg)
      continue
    value = value if equals else next(left, '')
    if not value:
      raise UserError(f'--{name} needs a value')
    found[name] = value
  return others, found


def place(
  given: Mapping[str, str], env: Mapping[str, str], on_tpu: bool
) -> Place | None:
  """Returns this process's place, or None where it is alone.

  Args:
    given: The values of FLAGS on the command line.
    env: The environment.
    on_tpu: Whether this is a machine with TPUs.

  Raises:
    UserError: a flag is missing or is no number.
  """
  from_env = {
    flag: env[name]
    for flag, name in zip(PLACE_FLAGS, _ENVIRONMENT)
    if env.get(name)
  }
  if given.get('num_processes') == '1':
    return None  # On this host alone, whatever else is there.
  flags = {name: value for name, value in given.items() if name in PLACE_FLAGS}
  for source, found in (('flags', flags), ('environment', from_env)):
    if found:
      return _given_place(source, found)
  # The tasks of the step that srun starts count: a batch script, or an
  # interactive shell, is one process, however many tasks its job has.
  if int(env.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    return Place('Slurm', method='slurm')
  if int(env.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    return Place('Open MPI', method='ompi')
  slices = int(env.get('MEGASCALE_NUM_SLICES', 1))
  hosts = env.get('TPU_WORKER_HOSTNAMES', '')
  if ',' in hosts or (hosts and slices > 1):
    return Place('GKE', method='gketpu')
  if on_tpu and env.get('TPU_SKIP_MDS_QUERY') is None:
    return Place('the metadata of the TPU slice', method='gcetpu')
  return None


def _given_place(source: str, found: Mapping[str, str]) -> Place | None:
  missing = [name for name in PLACE_FLAGS if name not in found]
  if missing:
    raise UserError(
      f'processes: {source} give {", ".join(f"{k} = {v}" for k, v in found.items())}'
      f', but no {" and no ".join(missing)}'
    )
  try:
    number, process = int(found['num_processes']), int(found['process_id'])
  except ValueError as error:
    raise UserError(f'processes: {source}: {error}') from error
  address = found['coordinator']
  if not 0 <= process < number:
    raise UserError(
      f'processes: process_id = {process} must lie within 0 and '
      f'num_processes − 1 = {number - 1}'
    )
  if not address.rpartition(':')[0] or not address.rpartition(':')[2].isdigit():
    raise UserError(
      f'processes: coordinator = {address!r} must be HOST:PORT of process 0'
    )
  return Place(source, address, number, process) if number > 1 else None


def join(given: Mapping[str, str]):
  """Joins this process with the others of the run, if there are any.

  Args:
    given: The values of FLAGS on the command line.

  Raises:
    UserError: the coordinator, or another process, is not there.
  """
  on_tpu = any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0')))
  on_tpu = on_tpu and importlib.util.find_spec('libtpu') is not None
  found = place(given, os.environ, on_tpu)
  timeout = given.get(_TIMEOUT_FLAG, str(_JOIN_SECS))
  if not timeout.isdigit():
    raise UserError(f'--{_TIMEOUT_FLAG} = {timeout!r} must be seconds')
  if found is None:
    return
  import jax

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if found.coordinator:
    _await_coordinator(found, int(timeout))
  # JAX would abort, with a stack trace, where processes are missing.
  alarm = threading.Timer(int(timeout), _end_waiting, (found, int(timeout)))
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      found.coordinator,
      found.num_processes,
      found.process_id,
      cluster_detection_method=found.method or 'deactivate',
      initialization_timeout=int(timeout) + _GRACE_SECS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECS,
    )
  except Exception as error:  # JAX raises many kinds, and requests its own.
    reason = ' '.join(str(error).split())[:200]
    raise UserError(
      f'processes: joining the others (found by {found.source}) failed: '
      f'{reason}; --num_processes=1 runs on this host alone'
    ) from error
  finally:
    alarm.cancel()
  if jax.process_count() > 1:
    _start_watch()
  _log.info(
    'process %d of %d, found by %s: %s with %d of %d %s devices',
    jax.process_index(),
    jax.process_count(),
    found.source,
    socket.gethostname(),
    jax.local_device_count(),
    jax.device_count(),
    jax.default_backend(),
  )


def _end_waiting(found: Place, timeout_secs: int):
  """Ends the process where others have not come."""
  number = f'the {found.num_processes}' if found.num_processes else 'the'
  interrupts.exit_now(
    UserError.exit_code,
    f'processes: not all of {number} processes have come within {timeout_secs} '
    f's (found by {found.source}); start the same command on every host, give '
    f'--{_TIMEOUT_FLAG} more seconds, or run on this host alone with '
    '--num_processes=1',
  )


def _await_coordinator(found: Place, timeout_secs: int):
  """Waits until process 0 listens, whose absence JAX would abort on."""
  assert found.coordinator
  if found.process_id == 0:
    return
  host, _, port = found.coordinator.rpartition(':')
  deadline = time.monotonic() + timeout_secs
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5).close()
      return
    except OSError as error:
      if time.monotonic() > deadline:
        raise UserError(
          f'processes: there is no coordinator at {found.coordinator} '
          f'({error.strerror or error}); start process 0 there, or correct '
          '--coordinator'
        ) from error
      time.sleep(0.5)


def _start_watch():
  """Connects the watches of all processes."""
  global _watch, _joined
  import jax
  from jax._src import distributed  # Where JAX keeps what it has detected.

  from r1jax import processes

  _joined = True
  address = distributed.global_state.coordinator_address
  assert address, 'jax.distributed is initialised'
  host, _, port = address.rpartition(':')
  watch = Watch(jax.process_index(), _SILENCE_SECS)
  first = processes.is_first()
  port = processes.exchange(watch.listen(int(port) + 1) if first else None)[0]
  try:
    if first:
      watch.accept(jax.process_count())
    else:
      watch.connect(host.strip('[]'), port)
  except OSError as error:
    raise UserError(
      f'processes: no connection between this host and {host}:{port} ({error}); '
      'hosts must reach this port of process 0'
    ) from error
  _watch = watch


def leave(failure: str | None = None):
  """Tells the other processes that this one is done, or that it fails."""
  if _watch is not None:
    _watch.close(failure)


def fail(error: Exception):
  """Ends this process for an error, or for another process that ended first.

  Collective operations fail where another process has ended; what is said then
  is that, and not how it was noticed.
  """
  time.sleep(_NOTICE_SECS)  # Meanwhile the watch may end this process.
  traceback.print_exception(error)
  text = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
  leave(text)
  interrupts.exit_now(1, text)


def joined() -> bool:
  """Whether this process is one of several."""
  return _joined
