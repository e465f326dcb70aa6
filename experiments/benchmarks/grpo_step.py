"""A whole GRPO step of r1jax beside those of TRL and Tunix.

  sh experiments/benchmarks/make_peers.sh peers
  python experiments/benchmarks/grpo_step.py \\
    --trl-python=peers/trl/bin/python --tunix-python=peers/tunix/bin/python

A step samples groups, rewards them, computes the reference's log-probabilities
and makes one update: float32, temperature 1, β = 0.001. All systems have the
weights, tokenizer and prompts of grpo_model.py, each is driven as its users
drive it, in a process of its own, pinned to one core, and they take turns:

  full          64 samples of 64-token prompts, 128 tokens each
  stops         the same, at most 512 tokens, about 60 in the mean
  long_prompts  64 samples of four 512-token prompts, at most 256 tokens, about
                100 in the mean

Tunix runs `full` on qwen2 alone: it has no deepseek_v3, and with stop tokens its
completions had one token.

The table has medians over the steps of all rounds without the first two of each
process, which compile; TRL compiles nothing and is spared one. The ratio is the
median of the ratios of the rounds, in which a system runs right after the other.
CPU-seconds are of the process and its workers. The time to the end of the first
step counts from the start of the process; that of r1jax and Tunix is with an
empty compilation cache, which later rounds find filled.
"""

import argparse
import json
from operator import truediv
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile

import grpo_model
import grpo_systems

# Steps that a process makes before those that count.
WARM_STEPS = {'r1jax': 2, 'trl': 1, 'tunix': 2}


def flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ('trl', 'tunix'):
    parser.add_argument(
      f'--{name}-python', default='', help=f'of the environment with {name}'
    )
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=3, help='measured, a round')
  parser.add_argument('--shapes', nargs='*', default=list(grpo_model.SHAPES))
  parser.add_argument(
    '--workloads', nargs='*', default=list(grpo_model.WORKLOADS)
  )
  parser.add_argument('--run', nargs=3, help=argparse.SUPPRESS)
  return parser.parse_args()


def run(system: str, workload: str, folder: str, steps: int):
  """Prints the measurements of one process as JSON."""
  clock = grpo_systems.Clock()
  train = grpo_systems.SYSTEMS[system]
  train(Path(folder), grpo_model.WORKLOADS[workload], steps, clock)
  print(
    json.dumps(dict(steps=clock.steps, memory_mb=grpo_systems.peak_memory_mb()))
  )


def measured(
  system: str, python: str, workload: str, folder: Path, steps: int
) -> dict:
  """Returns what `run` prints in a process of a system's own."""
  core = str(min(os.sched_getaffinity(0)))
  env = os.environ | dict(
    JAX_PLATFORMS='cpu',
    JAX_COMPILATION_CACHE_DIR=str(folder / f'compiled_{system}'),
    HF_HUB_OFFLINE='1',
    CUDA_VISIBLE_DEVICES='',
  )
  done = subprocess.run(
    ['taskset', '-c', core, python, __file__]
    + ['--run', system, workload, str(folder), f'--steps={steps}'],
    capture_output=True,
    text=True,
    env=env,
  )
  if done.returncode:
    sys.exit(f'{system}, {workload}:\n{done.stderr[-4000:]}')
  print(system, workload, done.stdout.splitlines()[-1], file=sys.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def compare(
  shape: str, workload: str, pythons: dict[str, str], args
) -> dict[str, dict[str, float]]:
  """Returns the numbers of every system; the systems take turns."""
  rounds: dict[str, list[dict]] = {system: [] for system in pythons}
  work = grpo_model.WORKLOADS[workload]
  steps = {system: WARM_STEPS[system] + args.steps for system in pythons}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    grpo_model.write(
      folder, shape, workload, work.prompts * max(steps.values())
    )
    for _ in range(args.rounds):
      for system, python in pythons.items():
        rounds[system].append(
          measured(system, python, workload, folder, steps[system])
        )
  found = {}
  ours = _cpu_of_rounds('r1jax', rounds['r1jax'])
  for system, runs in rounds.items():
    of_steps = [step for each in runs for step in _counted(system, each)]
    theirs = _cpu_of_rounds(system, runs)
    median = lambda key: statistics.median(step[key] for step in of_steps)
    first, *later = [each['steps'][0] for each in runs]
    found[system] = dict(
      cpu=median('cpu'),
      ratio=statistics.median(map(truediv, ours, theirs)),
      wall=median('wall'),
      tokens=statistics.mean(step['tokens'] for step in of_steps),
      memory_mb=statistics.median(each['memory_mb'] for each in runs),
      first_cpu=first['cpu'],
      first_wall=first['wall'],
      again_cpu=statistics.median([each['cpu'] for each in later or [first]]),
    )
  return found


def _counted(system: str, process: dict) -> list[dict]:
  """Returns the steps of a process that count."""
  return process['steps'][WARM_STEPS[system] :]


def _cpu_of_rounds(system: str, runs: list[dict]) -> list[float]:
  """Returns the median CPU-seconds of a step in each round."""
  return [
    statistics.median(step['cpu'] for step in _counted(system, each))
    for each in runs
  ]


def main():
  args = flags()
  if args.run:
    run(*args.run, args.steps)
    return
  pythons = {'r1jax': sys.executable} | {
    name: python
    for name in ('trl', 'tunix')
    if (python := getattr(args, f'{name}_python'))
  }
  print(
    '| model, workload | system | CPU-s a step | r1jax relative to it | wall s '
    '| mean tokens | peak MB | CPU-s to the end of the first step | again |\n'
    '|---|---|---|---|---|---|---|---|---|'
  )
  for shape in args.shapes:
    for workload in args.workloads:
      able = {
        system: python
        for system, python in pythons.items()
        if grpo_systems.can_run(system, shape, workload)
      }
      found = compare(shape, workload, able, args)
      for system, row in found.items():
        print(
          f'| {shape}, {workload} | {system} | {row["cpu"]:.2f} '
          f'| {row["ratio"]:.2f} '
          f'| {row["wall"]:.2f} | {row["tokens"]:.1f} '
          f'| {row["memory_mb"]:,.0f} | {row["first_cpu"]:.1f} '
          f'| {row["again_cpu"]:.1f} |',
          flush=True,
        )


if __name__ == '__main__':
  main()
