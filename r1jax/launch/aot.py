"""Compiles the programs of a training step for an absent slice: `r1jax aot`.

Each program is compiled without allocating an array. The compiler tells its
memory, and the compiled text what it moves; see traffic.py. A report is kept in
the user's cache, under the program, the slice and the compiler: the same
question is answered from there.
"""

import contextlib
import dataclasses
import hashlib
from importlib import metadata
import json
from pathlib import Path
import re
import resource
import tempfile
import time
from typing import Any

import jax
import numpy as np

from r1jax import files
from r1jax.chips import Chip
from r1jax.launch import flops, hlo, info, traffic
from r1jax.stages.stage import Program, ProgramKind

_REASON_CHARS = 240  # Longer compiler messages are cut.
_FORMAT = 2  # A number that changes with the fields of kept reports.


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of one call.

  Attributes:
    flops: FLOPs of matrix products of all devices, by kind; see flops.count.
    hbm_bytes: Bytes that one device moves to and from its HBM; see traffic.py.
    ici_bytes, dcn_bytes: Bytes that one device sends within its slice, and to
      other slices.
    ici_secs, dcn_secs: Seconds that these take at the bandwidth of the links
      which a group of devices can use at once.
  """

  flops: dict[str, float]
  hbm_bytes: float
  ici_bytes: float
  dcn_bytes: float
  ici_secs: float
  dcn_secs: float


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's report about one program.

  Attributes:
    label, kind, tokens, row_tokens, microbatches, beside: See Program.
    devices: Number of devices that run it together.
    passes: Forward passes that its minimum of FLOPs counts; a gradient is two.
    arguments_bytes: Bytes of its arguments on one device.
    temporaries_bytes: Bytes beside the arguments on one device.
    peak_bytes: Maximum bytes in use at once on one device, by this program.
    cost: The cost of a call with one microbatch, or at the longest context.
    fixed: The part of the cost that does not depend on the number of
      microbatches or the length of the context.
    collectives: Bytes that one device sends in such a call, by kind, number of
      devices in a group or of slices, and link.
    model_flops: passes · 2 · active parameters · tokens, which leaves out the
      attention core and MTP modules.
    attention_flops: Minimum FLOPs of the attention core of such tokens: passes ·
      scores and weighted sums over what a causal mask leaves of a row.
    compile_secs: Wall time of tracing and compiling.
    host_bytes: Peak memory of the process that compiled it.
  """

  label: str
  kind: ProgramKind
  tokens: int
  row_tokens: int
  microbatches: int
  beside: dict[str, int]
  devices: int
  passes: int
  arguments_bytes: int
  temporaries_bytes: int
  peak_bytes: int
  cost: Cost
  fixed: Cost
  collectives: list[tuple[str, int, str, float]]
  model_flops: float
  attention_flops: float
  compile_secs: float
  host_bytes: int

  @property
  def together_bytes(self) -> int:
    """Peak bytes of one device with all that else is in memory."""
    return self.peak_bytes + sum(self.beside.values())


class DoesNotFit(Exception):
  """A program needs more memory than a chip has.

  Attributes:
    buffers: The largest buffers, one line each.
  """

  def __init__(self, reason: str, buffers: list[str]):
    super().__init__(reason)
    self.buffers = buffers


def compile_program(
  program: Program, chip: Chip, place: str, cache: bool = True
) -> Compiled:
  """Compiles one program without allocating any array.

  Args:
    program: The program.
    chip: The chip of its devices.
    place: The name of the slices, of which the report is kept.
    cache: Whether a kept report is taken, and this one is kept.

  Raises:
    DoesNotFit: the program needs more memory than a chip has.
  """
  began = time.monotonic()
  traced = program.function.trace(*program.arguments, **program.keywords)
  jaxpr = traced.jaxpr.jaxpr
  counted = [flops.count(jaxpr, share) for share in (0.0, 1.0)]
  lowered = traced.lower()
  kept = _kept_path(f'{counted}\n{lowered.as_text()}', place)
  if cache and (report := _read(kept, program)):
    return report
  compiled, text = _compile(lowered)
  # Compiled programs number the devices in this order.
  module, devices = hlo.Module(text), list(_mesh(program).devices.flat)
  costs = []
  for share, each in zip((0.0, 1.0), counted):
    moved = traffic.count(module, unknown_trips=share, fill=share)
    costs.append(_cost(each, moved, devices, chip))
  if program.kind in (ProgramKind.SCORE, ProgramKind.UPDATE):
    # Their only loop of unknown length is over microbatches, which multiply.
    costs[0] = dataclasses.replace(
      costs[0], flops=dict.fromkeys(costs[1].flops, 0.0)
    )
  report = _report(program, compiled.memory_analysis(), costs, moved, devices)
  report = dataclasses.replace(
    report,
    compile_secs=time.monotonic() - began,
    host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  )
  if cache:
    _keep(kept, report)
  return report


def _compile(lowered) -> tuple[Any, str]:
  """Returns the compiled program and its text.

  The compiler's dump is read, since it cannot print all programs later.
  """
  with tempfile.TemporaryDirectory() as folder:
    try:
      compiled = lowered.compile(
        compiler_options={'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
      )
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      # The second line may name the memory that ran out.
      raise DoesNotFit(
        ' '.join(str(error).split())[:_REASON_CHARS], _largest_buffers(folder)
      ) from error
    texts = list(Path(folder).glob('*after_optimizations.txt'))
    if not texts:  # An entry of JAX's own cache: nothing was compiled.
      return compiled, compiled.as_text()
    return compiled, texts[0].read_text()


def _mesh(program: Program) -> Any:
  return program.model.layout.mesh


def _cost(
  counted: dict[str, float], moved: traffic.Traffic, devices: list, chip: Chip
) -> Cost:
  size, secs = {'ici': 0.0, 'dcn': 0.0}, {'ici': 0.0, 'dcn': 0.0}
  for collective, sent in moved.sent_bytes.items():
    link, bandwidth = _link(collective, devices, chip)
    size[link] += sent
    secs[link] += sent / bandwidth
  return Cost(
    flops=counted,
    hbm_bytes=moved.hbm_bytes,
    ici_bytes=size['ici'],
    dcn_bytes=size['dcn'],
    ici_secs=secs['ici'],
    dcn_secs=secs['dcn'],
  )


def _link(
  collective: traffic.Collective, devices: list, chip: Chip
) -> tuple[str, float]:
  """The network of a collective, and bytes a second of one device.

  Each axis of the torus along which a group extends has two links a chip.
  """
  group = [devices[i] for i in collective.group]
  if collective.slices > 1:
    assert chip.dcn_bytes_per_sec, f'the network of {chip.name} is not known'
    return 'dcn', chip.dcn_bytes_per_sec / chip.devices
  coords = np.array([getattr(device, 'coords', (0,)) for device in group])
  axes = int((coords.max(0) > coords.min(0)).sum())
  links = min(2 * max(axes, 1), chip.ici_links)
  bandwidth = chip.ici_bytes_per_sec * links / chip.ici_links
  return 'ici', bandwidth / chip.devices


def _report(
  program: Program, memory, costs: list[Cost], moved, devices: list
) -> Compiled:
  sizes = info.count(program.model.config)
  tokens = program.tokens
  # A gradient costs two more.
  passes = program.passes * (3 if program.kind is ProgramKind.UPDATE else 1)
  collectives: dict[tuple[str, int, str], float] = {}
  for collective, sent in moved.sent_bytes.items():
    across = collective.slices > 1
    size = collective.slices if across else len(collective.group)
    key = collective.kind, size, 'dcn' if across else 'ici'
    collectives[key] = collectives.get(key, 0.0) + sent
  decodes = program.kind in (ProgramKind.PREFILL, ProgramKind.DECODE)
  context = program.row_tokens if decodes else (program.row_tokens + 1) / 2
  return Compiled(
    label=program.label,
    kind=program.kind,
    tokens=tokens,
    row_tokens=program.row_tokens,
    microbatches=program.microbatches,
    beside=dict(program.beside),
    devices=len(devices),
    passes=passes,
    arguments_bytes=memory.argument_size_in_bytes,
    temporaries_bytes=memory.temp_size_in_bytes,
    peak_bytes=memory.peak_memory_in_bytes,
    cost=costs[1],
    fixed=costs[0],
    collectives=sorted(
      [(*key, sent) for key, sent in collectives.items()],
      key=lambda row: -row[-1],
    ),
    model_flops=2.0 * passes * sizes.active * tokens,
    attention_flops=float(passes * sizes.attention_flops * tokens * context),
    compile_secs=0.0,
    host_bytes=0,
  )


def _largest_buffers(folder: str) -> list[str]:
  """Lines of the compiler's report: '49.00GiB  bf16[1,3670016,7168]'."""
  reports = sorted(Path(folder).glob('*memory-usage-report.txt'))
  if not reports:
    return []
  rows = re.findall(
    r'\);\s+([\d.]+\wiB);[^;]*;[^;]*;(.*)', reports[-1].read_text()
  )
  return [f'{size:>10}  {shapes.strip()[:100]}' for size, shapes in rows[:12]]


def _kept_path(program: str, place: str) -> Path:
  """The path of the report about a program."""
  versions = [
    f'{name} {_version(name)}' for name in ('jax', 'jaxlib', 'libtpu')
  ]
  counting = [
    hashlib.sha256(Path(module.__file__ or '').read_bytes()).hexdigest()
    for module in (hlo, traffic)
  ]
  key = '\n'.join([program, place, str(_FORMAT), *versions, *counting])
  name = hashlib.sha256(key.encode()).hexdigest()[:32]
  return files.user_cache() / 'aot' / f'{name}.json'


def _version(package: str) -> str:
  with contextlib.suppress(metadata.PackageNotFoundError):
    return metadata.version(package)
  return 'none'


def _read(path: Path, program: Program) -> Compiled | None:
  """The report that is kept; None without one, or with a broken one."""
  try:
    kept = json.loads(path.read_text())
    kept |= {
      'kind': program.kind,
      'label': program.label,
      'beside': dict(program.beside),
      'cost': Cost(**kept['cost']),
      'fixed': Cost(**kept['fixed']),
      'collectives': [tuple(row) for row in kept['collectives']],
    }
    return Compiled(**kept)
  except (OSError, ValueError, TypeError, KeyError):
    return None


def _keep(path: Path, report: Compiled):
  with contextlib.suppress(OSError):  # It is compiled again next time.
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, json.dumps(dataclasses.asdict(report)).encode())
