"""Compiles updates ahead of time for an absent TPU slice: `r1jax aot`.

XLA's TPU compiler (package libtpu) needs a description of the slice, not the
slice itself. Its memory report covers one program alone: a GRPO update does not
include the reference policy or the sampler, nor PPO's policy update the critic.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
from pathlib import Path
import re
import resource
import sys
import tempfile
import threading
import time

import jax

from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.launch import flops, info
from r1jax.runs import stage_list
from r1jax.sharding import Layout, make_mesh
from r1jax.stages import memory
from r1jax.stages.stage import Update

# High-bandwidth memory of one device, bytes; Google Cloud's documentation.
HBM_BYTES = {'v4': 32 << 30, 'v5e': 16 << 30, 'v5p': 95 << 30, 'v6e': 32 << 30}
DOES_NOT_FIT = 3  # Exit code.
_REASON_CHARS = 240  # Longer compiler messages are cut.
# Lines of libtpu's logger, and what it writes before and behind them.
_LOG_LINE = re.compile(
  rb'[IWE]\d{4} \d\d:\d\d:|WARNING: Logging before InitGoogle|'
  rb'=== Source Location Trace|\S+\.(cc|h):\d+$|Failed to find host bounds'
)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's report about one update.

  Attributes:
    tokens: Tokens over all devices: of one update, or of one microbatch where
      their number depends on the data, as the FLOPs below.
    arguments_bytes: Bytes of state and batch on one device.
    temporaries_bytes: Bytes beside the arguments on one device.
    peak_bytes: Maximum bytes in use at once on one device.
    matmul_flops: FLOPs of all devices, by kind; see flops.count.
    model_flops: 6 · active parameters · tokens, which leaves out the attention
      core and MTP modules.
    attention_flops: Minimum FLOPs of the attention core: scores and weighted
      sums over the tokens that a causal mask leaves, times three for the
      gradient.
    compile_secs: Wall time of tracing and compiling.
    host_bytes: Peak memory of this process.
  """

  tokens: int
  arguments_bytes: int
  temporaries_bytes: int
  peak_bytes: int
  matmul_flops: dict[str, float]
  model_flops: float
  attention_flops: float
  compile_secs: float
  host_bytes: int


class DoesNotFit(Exception):
  """A program needs more memory than a chip has.

  Attributes:
    buffers: The largest buffers, one line each.
  """

  def __init__(self, reason: str, buffers: list[str]):
    super().__init__(reason)
    self.buffers = buffers


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
  """Keeps log lines of libtpu from stderr, unless what is within fails.

  It logs complaints about a TPU that is not there, which is what one asked for.
  Everything else that is written to stderr is passed on at once.
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
  except (DoesNotFit, UserError):  # They say what is wrong themselves.
    failed = False
    raise
  finally:
    sys.stderr.flush()
    os.dup2(stderr, 2)  # Closes the pipe, which ends the thread.
    thread.join()
    if failed:
      os.write(stderr, b''.join(kept))
    os.close(stderr)


def topology(name: str):
  """Returns the devices of an absent slice, such as 'v5p:8x8x16'.

  Raises:
    UserError: There is no such slice, or libtpu is not installed.
  """
  # The compiler must not query a metadata server or lock a local TPU.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # It asks for the hosts of a slice, and complains where there is none.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  chip = name.split(':')[0]
  if chip not in HBM_BYTES or not re.fullmatch(r'\w+:\d+x\d+(x\d+)?', name):
    raise UserError(
      f'aot: {name!r} is no topology; give one of '
      f'{", ".join(HBM_BYTES)} and its shape, for example v5p:8x8x16'
    )
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise UserError(
      'aot: the compiler is not installed; in the checkout: '
      "pip install -e '.[tpu]'"
    ) from error
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(name, 'tpu').devices
  except Exception as error:
    reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
    raise UserError(f'aot: the compiler has no {name} ({reason})') from error


def compile_update(update: Update) -> Compiled:
  """Compiles one program without allocating any array.

  Raises:
    DoesNotFit: The program needs more memory than a chip has.
  """
  began = time.monotonic()
  traced = update.step.trace(*update.arguments)
  counted = flops.count(traced.jaxpr.jaxpr)
  lowered = traced.lower()
  with tempfile.TemporaryDirectory() as folder:
    try:
      compiled = lowered.compile(compiler_options={'xla_dump_to': folder})
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      # The second line may name the memory that ran out.
      raise DoesNotFit(
        ' '.join(str(error).split())[:_REASON_CHARS], _largest_buffers(folder)
      ) from error
  memory, sizes = compiled.memory_analysis(), info.count(update.model.config)
  T = update.tokens
  tokens = update.rows * T
  return Compiled(
    tokens=tokens,
    arguments_bytes=memory.argument_size_in_bytes,
    temporaries_bytes=memory.temp_size_in_bytes,
    peak_bytes=memory.peak_memory_in_bytes,
    matmul_flops=counted,
    model_flops=6.0 * sizes.active * tokens,
    attention_flops=3.0 * sizes.attention_flops * tokens * (T + 1) / 2,
    compile_secs=time.monotonic() - began,
    host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  )


def _largest_buffers(folder: str) -> list[str]:
  """Lines of the compiler's report: '49.00GiB  bf16[1,3670016,7168]'."""
  reports = sorted(Path(folder).glob('*jit_step*memory-usage-report.txt'))
  if not reports:
    return []
  rows = re.findall(
    r'\);\s+([\d.]+\wiB);[^;]*;[^;]*;(.*)', reports[-1].read_text()
  )
  return [f'{size:>10}  {shapes.strip()[:100]}' for size, shapes in rows[:12]]


def show(config: RunConfig, name: str) -> int:
  """Compiles all updates of a config and prints a table for each.

  Args:
    config: The config of one run.
    name: The slice, such as 'v5p:8x8x16'.

  Returns:
    The exit code: 0, or DOES_NOT_FIT.
  """
  with quiet_compiler():
    devices = topology(name)
  layout = Layout(make_mesh(dataclasses.asdict(config.mesh), devices))
  limit, GB = HBM_BYTES[name.split(':')[0]], 1e9
  stage = stage_list.stage_class(config.stages[-1])
  config = memory.chosen(config, layout, [stage], int(memory.SHARE * limit))
  for update in stage_list.updates(config, layout):
    try:
      with quiet_compiler():
        report = compile_update(update)
    except DoesNotFit as error:
      print(f'{name}: {error}\nthe largest buffers are')
      print('\n'.join(error.buffers))
      return DOES_NOT_FIT
    print(
      f'{name}: {len(devices)} devices; one {update.label} '
      + (
        f'microbatch of {report.tokens:,} tokens, of which an update has at '
        f'most {update.microbatches}'
        if update.microbatches > 1
        else f'update of {report.tokens:,} tokens'
      )
    )
    print(f'  arguments     {report.arguments_bytes / GB:8.2f} GB a device')
    print(f'  temporaries   {report.temporaries_bytes / GB:8.2f} GB')
    print(
      f'  peak          {report.peak_bytes / GB:8.2f} GB of {limit / GB:.1f} GB'
    )
    print('\n'.join(_flop_rows(report)))
    print(
      f'  compiled in   {report.compile_secs:.0f} s, with '
      f'{report.host_bytes / GB:.1f} GB of host memory'
    )
  return 0


def _flop_rows(report: Compiled) -> list[str]:
  """Table rows of matrix products and attention, relative to their minimum."""
  core = report.matmul_flops['kernel']
  matmul = sum(report.matmul_flops.values()) - core
  rows = [
    f'  matmul FLOPs  {matmul:.3e} = {matmul / report.model_flops:.2f} × '
    f'6·N_active·tokens ({report.model_flops:.3e})'
  ]
  must = f'3 × causal scores and mixing ({report.attention_flops:.3e})'
  if not core:
    return rows + [
      f'    attention   at least {must},',
      '                among them: it runs in no kernels',
    ]
  return rows + [
    f'    attention   {core:.3e} = {core / report.attention_flops:.2f} × '
    f'{must},',
    '                not among them: in kernels, masked blocks counted too',
  ]
