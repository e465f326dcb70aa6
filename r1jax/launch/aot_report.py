"""Prints what `r1jax aot` found, and writes it as JSON."""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from r1jax import files
from r1jax.chips import Chip
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.launch import aot, roofline, topology
from r1jax.launch.aot import Compiled
from r1jax.launch.roofline import Lengths, Share
from r1jax.rollout import replicas
from r1jax.runs import stage_list
from r1jax.stages import memory
from r1jax.stages.stage import Program, ProgramKind

DOES_NOT_FIT = 3  # Exit code.
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Request:
  """The question of a command.

  Attributes:
    topology: One slice, such as 'v5p:8x8x16'.
    slices: Number of slices.
    kinds: The kinds of programs; none for all.
    prompt_tokens, completion_tokens: Mean lengths of a step's samples; None for
      the longest that the config allows.
    json: A file to write to; None for none.
    cache: Whether reports of earlier calls are used and this one is kept.
  """

  topology: str
  slices: int = 1
  kinds: tuple[str, ...] = ()
  prompt_tokens: float | None = None
  completion_tokens: float | None = None
  json: Path | None = None
  cache: bool = True

  @property
  def place(self) -> str:
    """The slices, for people: '2 × v5p:8x8x8'."""
    if self.slices == 1:
      return self.topology
    return f'{self.slices} × {self.topology}'


def show(config: RunConfig, request: Request) -> int:
  """Compiles the programs of a config's step and prints what they cost.

  Args:
    config: The config of one run.
    request: The slice, and what to compile.

  Returns:
    The exit code: 0, or DOES_NOT_FIT where a program with all that is in
    memory beside it exceeds a device.

  Raises:
    UserError: there is no such slice or kind, the mesh does not fit, or the
      JSON file cannot be written.
  """
  chip = topology.chip_of(request.topology)
  if request.slices > 1 and chip.dcn_bytes_per_sec is None:
    raise UserError(
      f'--slices: the bandwidth between slices of {chip.name} is not published'
    )
  _check_writable(request.json)
  lengths = roofline.lengths_of(
    config, request.prompt_tokens, request.completion_tokens
  )
  with topology.quiet_compiler():
    devices = topology.devices(request.topology, request.slices)
  layout = replicas.training_layout(
    dataclasses.asdict(config.mesh), config.rollout.sampling_devices, devices
  )
  limit = chip.hbm_bytes // chip.devices
  stage = stage_list.stage_class(config.stages[-1])
  config = memory.chosen(config, layout, [stage], int(memory.SHARE * limit))
  reports, fits = [], True
  for program in _selected(stage_list.programs(config, layout), request.kinds):
    try:
      with topology.quiet_compiler(aot.DoesNotFit):
        report = aot.compile_program(
          program, chip, request.place, request.cache
        )
    except aot.DoesNotFit as error:
      print(f'{request.place}: {program.label}: {error}')
      print('the largest buffers are')
      print('\n'.join(error.buffers))
      return DOES_NOT_FIT
    reports.append(report)
    print('\n'.join(_program_rows(report, request.place, limit)))
    print('\n'.join(_cost_rows(report, chip)), flush=True)
    fits &= report.together_bytes <= limit
  shares = _step(config, reports, lengths, chip, len(devices))
  if request.json:
    _write_json(request, reports, shares, len(devices))
  if not fits:
    print(
      f'more is in memory at once than the {limit / _GB:.1f} GB of a device'
    )
  return 0 if fits else DOES_NOT_FIT


def _check_writable(path: Path | None):
  """Raises UserError where a file cannot be written."""
  if path is not None and not os.access(path.expanduser().parent, os.W_OK):
    raise UserError(f'--json: no folder {path.parent} that may be written to')


def _selected(programs: list[Program], kinds: Sequence[str]) -> list[Program]:
  there = list(dict.fromkeys(str(program.kind) for program in programs))
  for kind in kinds:
    if kind not in there:
      raise UserError(
        f'--programs: {kind!r} is none of this step; it has {", ".join(there)}'
      )
  return [x for x in programs if not kinds or str(x.kind) in kinds]


def _program_rows(report: Compiled, place: str, limit: int) -> list[str]:
  """Rows of the size of a program and of its memory."""
  size = f'{report.tokens:,} tokens'
  if report.microbatches > 1:
    size = (
      f'{size} in a microbatch, of which an update has at most '
      f'{report.microbatches}'
    )
  gb = lambda name, size: f'  {name:<14}{size / _GB:8.2f} GB'
  rows = [
    f'{place}: {report.devices} devices; {report.label}: {size}',
    gb('arguments', report.arguments_bytes) + ' a device',
    gb('temporaries', report.temporaries_bytes),
    gb('peak', report.peak_bytes) + f' of {limit / _GB:.1f} GB',
  ]
  if report.beside:
    listed = ', '.join(
      f'{name} {size / _GB:.2f}' for name, size in report.beside.items()
    )
    rows += [gb('together', report.together_bytes) + f' with {listed}']
  return rows


def _cost_rows(report: Compiled, chip: Chip) -> list[str]:
  """Rows of FLOPs beside their minimum, of traffic and of time."""
  rows = _flop_rows(report) if report.tokens else []
  rows.append(f'  HBM traffic   {report.cost.hbm_bytes / _GB:8.2f} GB a device')
  for kind, size, link, sent in report.collectives[:4]:
    rows.append(
      f'  {link.upper():<14}{sent / _GB:8.2f} GB, {kind} among {size}'
    )
  if rest := sum(row[-1] for row in report.collectives[4:]):
    rows.append(f'  the rest      {rest / _GB:8.2f} GB')
  times = roofline.of_cost(report.cost, chip, report.devices)
  parts = ', '.join(
    f'{name} {secs * 1e3:.4g}'
    for name, secs in dataclasses.asdict(times).items()
    if secs
  )
  rows.append(f'  at least      {times.bound * 1e3:8.4g} ms of {parts}')
  rows.append(
    f'  compiled in   {report.compile_secs:8.0f} s, with '
    f'{report.host_bytes / _GB:.1f} GB of host memory'
  )
  return rows


def _flop_rows(report: Compiled) -> list[str]:
  """Matrix products and attention, relative to their minimum."""
  flops = report.cost.flops
  core = flops['kernel']
  matmul = sum(flops.values()) - core
  rows = [
    f'  matmul FLOPs  {matmul:.3e} = {matmul / report.model_flops:.2f} × '
    f'{2 * report.passes}·N_active·tokens ({report.model_flops:.3e})'
  ]
  what = (
    f'{report.passes} × causal scores and mixing ({report.attention_flops:.3e})'
  )
  if report.kind in (ProgramKind.PREFILL, ProgramKind.DECODE):
    return rows + [
      f'    attention   {report.attention_flops:.3e} of the tokens before, at '
      'the longest'
    ]
  if not core:
    return rows + [
      f'    attention   at least {what},',
      '                among them: it runs in no kernels',
    ]
  return rows + [
    f'    attention   {core:.3e} = {core / report.attention_flops:.2f} × {what},',
    '                not among them: in kernels, masked blocks counted too',
  ]


def _step(
  config: RunConfig,
  reports: list[Compiled],
  lengths: Lengths,
  chip: Chip,
  devices: int,
) -> list[Share]:
  """Prints the time of a whole RL step at the least."""
  if not any(report.kind is ProgramKind.DECODE for report in reports):
    return []
  c = config.rl
  shares = roofline.step(config, reports, lengths, chip, devices)
  samples = c.prompts_per_step * c.group_size
  print(
    f'a step of {samples:,} samples, in the mean {lengths.prompt:g} + '
    f'{lengths.completion:g} tokens, at the least:'
  )
  table = Table(box=None, pad_edge=False)
  for name in ('program', 'calls', 'compute', 'HBM', 'ICI', 'DCN', 'seconds'):
    table.add_column(name, justify='left' if name == 'program' else 'right')
  for share in shares:
    times = dataclasses.astuple(share.times)
    table.add_row(
      f'  {share.program.label}',
      f'{share.calls:,.0f}',
      *(f'{secs:.3g}' for secs in times),
      f'{share.times.bound:.3g}',
    )
  total = roofline.total(config, shares)
  table.add_row('  in all', *[''] * 5, f'{total:.3g}')
  Console(width=100).print(table)
  tokens = samples * (lengths.prompt + lengths.completion)
  print(
    f'  {tokens / total / devices * chip.devices:,.0f} tokens a second and '
    'chip, if everything overlaps and no sample is longer than the mean'
  )
  return shares


def _write_json(
  request: Request, reports: list[Compiled], shares: list[Share], devices: int
):
  content = {
    'topology': request.topology,
    'slices': request.slices,
    'devices': devices,
    'jax': jax.__version__,
    'programs': [
      dataclasses.asdict(report) | {'together_bytes': report.together_bytes}
      for report in reports
    ],
    'step': [
      {
        'program': share.program.label,
        'calls': share.calls,
        'units': share.units,
        'seconds': share.times.bound,
        'limit': share.times.limit,
      }
      | {
        f'{name}_seconds': secs
        for name, secs in dataclasses.asdict(share.times).items()
      }
      for share in shares
    ],
  }
  assert request.json is not None
  text = json.dumps(content, indent=1, allow_nan=False)
  try:
    files.write_text(request.json.expanduser(), text + '\n')
  except OSError as error:
    raise UserError(f'--json: cannot write {request.json}: {error}') from error
