"""Predicts how long the programs of a training step take, at the least.

A program takes as long as the slowest of its parts: matrix products at the peak
of the chip in bfloat16, traffic to HBM, and what it sends to other chips. That
is a lower bound: it takes all of them to overlap.
"""

from collections.abc import Sequence
import dataclasses
import math

from r1jax.chips import Chip
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError
from r1jax.launch.aot import Compiled, Cost
from r1jax.stages.build import sampler
from r1jax.stages.stage import ProgramKind


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of one device, by what they are spent on."""

  compute: float
  hbm: float
  ici: float
  dcn: float

  @property
  def bound(self) -> float:
    """Seconds at the least, if all parts overlap."""
    return max(self.compute, self.hbm, self.ici, self.dcn)

  @property
  def total(self) -> float:
    """Seconds if nothing overlaps."""
    return sum(dataclasses.astuple(self))

  @property
  def limit(self) -> str:
    """The name of the slowest part."""
    parts = dataclasses.asdict(self)
    return max(parts, key=lambda name: parts[name])

  def __mul__(self, times: float) -> 'Times':
    return Times(*(times * secs for secs in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Mean lengths of the samples of a step.

  Attributes:
    prompt: Tokens of a prompt.
    completion: Tokens of a completion.
  """

  prompt: float
  completion: float


def lengths_of(
  config: RunConfig, prompt: float | None, completion: float | None
) -> Lengths:
  """Returns mean lengths, by default the longest that a config allows.

  Raises:
    UserError: a length exceeds what the config allows.
  """
  longest = config.data.max_prompt_tokens, config.rl.max_new_tokens
  lengths = Lengths(prompt or longest[0], completion or longest[1])
  if lengths.prompt > longest[0] or lengths.completion > longest[1]:
    raise UserError(
      f'the mean lengths {lengths.prompt:g} + {lengths.completion:g} exceed '
      f'data.max_prompt_tokens = {longest[0]} or rl.max_new_tokens = '
      f'{longest[1]}'
    )
  return lengths


_SAMPLING = ProgramKind.PREFILL, ProgramKind.DECODE


@dataclasses.dataclass(frozen=True)
class Share:
  """The share of one program in a step.

  Attributes:
    program: The program.
    calls: Calls of it.
    units: Microbatches of a call, or the share of the longest context that it
      has in the mean.
    times: Seconds of all calls.
  """

  program: Compiled
  calls: float
  units: float
  times: Times


def of_cost(cost: Cost, chip: Chip, devices: int) -> Times:
  """Returns the seconds of a cost that so many devices of a chip share.

  A causal mask leaves half of the grid of an attention kernel, which is all
  that counts here.
  """
  flops = sum(cost.flops.values()) - cost.flops['kernel'] / 2
  return Times(
    compute=flops / devices / (chip.bf16_flops / chip.devices),
    hbm=cost.hbm_bytes / (chip.hbm_bytes_per_sec / chip.devices),
    ici=cost.ici_secs,
    dcn=cost.dcn_secs,
  )


def call_times(program: Compiled, units: float, chip: Chip) -> Times:
  """Returns the seconds of one call; see Share.units."""
  whole, fixed = (
    dataclasses.astuple(of_cost(cost, chip, program.devices))
    for cost in (program.cost, program.fixed)
  )
  return Times(*(f + units * (w - f) for w, f in zip(whole, fixed)))


def step(
  config: RunConfig,
  programs: Sequence[Compiled],
  lengths: Lengths,
  chip: Chip,
  devices: int,
) -> list[Share]:
  """Returns what each program does in an RL step.

  All samples have the mean lengths, a step's rows are full, and all sequences
  of the decode program are in use until the end: a real step takes longer, by
  the tail of its longest samples above all. Prompts are prefilled once a group.

  Args:
    config: The run.
    programs: The programs of the step.
    lengths: Mean lengths of its samples.
    chip: The chip.
    devices: Number of devices of the run. A program that fewer of them share
      runs on all at once, each host on its own prompts.
  """
  shares = []
  for program in programs:
    calls, units = _calls(config, program, lengths, devices)
    times = call_times(program, units, chip) * calls
    shares.append(Share(program, calls, units, times))
  return shares


def _calls(
  config: RunConfig, program: Compiled, lengths: Lengths, devices: int
) -> tuple[float, float]:
  """Calls of a program in an RL step, and the units of each."""
  c, kind = config.rl, program.kind
  if apart := config.rollout.sampling_devices:
    devices = apart if kind in _SAMPLING else devices - apart
  at_once = program.tokens * devices / program.devices
  groups = sampler.groups_in_flight(config)
  context = program.row_tokens
  if kind is ProgramKind.RELAYOUT:
    return 1, 1.0
  if kind is ProgramKind.PREFILL:
    tokens = groups * lengths.prompt
    return math.ceil(tokens / at_once), lengths.prompt / 2 / context
  if kind is ProgramKind.DECODE:
    tokens = groups * c.group_size * lengths.completion
    mean_context = lengths.prompt + lengths.completion / 2
    return tokens / at_once, mean_context / context
  total = (
    c.prompts_per_step * c.group_size * (lengths.prompt + lengths.completion)
  )
  calls = c.num_minibatches if kind is ProgramKind.UPDATE else 1
  return calls, float(math.ceil(total / calls / at_once))


def total(config: RunConfig, shares: Sequence[Share]) -> float:
  """Returns the seconds of a step whose programs these are.

  They follow each other, unless devices that only sample do so while the others
  train.
  """
  sampling, training = (
    sum(s.times.bound for s in shares if (s.program.kind in _SAMPLING) == which)
    for which in (True, False)
  )
  if config.rollout.sampling_devices and config.rl.one_step_off_policy:
    return max(sampling, training)
  return sampling + training
