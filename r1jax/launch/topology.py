"""Describes TPU slices that are not there, and keeps their compiler quiet.

XLA's TPU compiler (package libtpu) needs a description of the slice, not the
slice itself.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import sys
import threading

from r1jax import chips
from r1jax.chips import Chip
from r1jax.errors import UserError

# The compiler's name of a chip, where it is another one.
_COMPILER_NAMES = {'v7x': 'tpu7x'}
# Lines of libtpu's logger, and what it writes before and behind them.
_LOG_LINE = re.compile(
  rb'[IWE]\d{4} \d\d:\d\d:|WARNING: Logging before InitGoogle|'
  rb'=== Source Location Trace|\S+\.(cc|h):\d+$|Failed to find host bounds'
)


@contextlib.contextmanager
def quiet_compiler(*errors: type[Exception]) -> Iterator[None]:
  """Keeps log lines of libtpu from stderr, unless what is within fails.

  It logs complaints about a TPU that is not there, which is what one asked for.
  Everything else that is written to stderr is passed on at once.

  Args:
    *errors: Exceptions that say themselves what is wrong, beside UserError.
  """
  sys.stderr.flush()
  kept: list[bytes] = []
  reader, writer = os.pipe()
  stderr = os.dup(2)

  def forward():
    with open(reader, 'rb') as lines:
      for line in lines:
        if _LOG_LINE.match(line):
          kept.append(line)
        else:
          os.write(stderr, line)

  thread = threading.Thread(target=forward, daemon=True)
  thread.start()
  os.dup2(writer, 2)
  os.close(writer)
  failed = True
  try:
    yield
    failed = False
  except Exception as error:
    # These say what is wrong themselves.
    failed = not isinstance(error, (UserError, *errors))
    raise
  finally:
    sys.stderr.flush()
    os.dup2(stderr, 2)  # Closes the pipe, which ends the thread.
    thread.join()
    if failed:
      os.write(stderr, b''.join(kept))
    os.close(stderr)


def chip_of(name: str) -> Chip:
  """Returns the chip of a slice, such as 'v5p:8x8x16'.

  Raises:
    UserError: the name is no topology; the message lists what there is.
  """
  chip = name.split(':')[0]
  if chip not in chips.TPUS or not re.fullmatch(r'\w+:\d+x\d+(x\d+)?', name):
    raise UserError(
      f'aot: {name!r} is no topology; give one of {", ".join(chips.TPUS)} and '
      'its shape, for example v5p:8x8x16'
    )
  return chips.CHIPS[chip]


def devices(name: str, slices: int = 1) -> list:
  """Returns the devices of absent slices.

  Args:
    name: One slice, such as 'v5p:8x8x16'.
    slices: Number of slices, joined by the data-center network.

  Raises:
    UserError: there is no such slice, or libtpu is not installed.
  """
  # The compiler must not query a metadata server or lock a local TPU.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # It asks for the hosts of a slice, and complains where there is none.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  chip = chip_of(name)
  if slices < 1:
    raise UserError(f'aot: --slices is at least 1; got {slices}')
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise UserError(
      'aot: the compiler is not installed; in the checkout: '
      "pip install -e '.[tpu]'"
    ) from error
  from jax.experimental import topologies

  shape = name.partition(':')[2]
  wanted = f'{_COMPILER_NAMES.get(chip.name, chip.name)}:{shape}'
  options = {'num_slices': slices} if slices > 1 else {}
  try:
    return list(topologies.get_topology_desc(wanted, 'tpu', **options).devices)
  except Exception as error:
    reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
    raise UserError(f'aot: the compiler has no {name} ({reason})') from error
