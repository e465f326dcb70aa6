"""An evaluation beside its engine: what grading and keeping completions costs.

python experiments/benchmarks/suite_evaluation.py

The same requests are completed by the bare engine and by a suite's evaluation,
which also grades every completion, writes them as Parquet and reports. The two
take turns.
"""

import statistics
import tempfile
import time

from absl import app, flags
import jax

from r1jax import compilation_cache
from r1jax.config.load import load
from r1jax.config.schema.run import RunConfig
from r1jax.configs import r1_zero_tiny
from r1jax.evaluate import stored, suite_report, suite_run, suites
from r1jax.runs import run as runs
from r1jax.stages.build import parts as build
from r1jax.stages.build import sampler
from r1jax.stages.build import suites as build_suites

_SUITE = flags.DEFINE_string('suite', 'arithmetic', 'The suite.')
_PROBLEMS = flags.DEFINE_integer('problems', 500, 'Problems.')
_SAMPLES = flags.DEFINE_integer('samples', 16, 'Completions of each.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds.')


def main(_):
  """Prints the seconds of each round, and the median ratio."""
  config = r1_zero_tiny.get_config()
  config.init = 'shipped'
  config = load(config, RunConfig)
  compilation_cache.enable(config.compilation_cache_dir)
  parts = build.parts(config)
  params = runs.base_params(config, parts)
  [suite] = suites.named(_SUITE.value)
  found = [build_suites.problems(suite, parts, _SAMPLES.value, _PROBLEMS.value)]
  config = build_suites.sized(config, found, parts)
  engine = sampler.engine(config, parts, found[0].num_completions)
  reader = build_suites.reader(config, parts)
  ratios = []
  for turn in range(_ROUNDS.value + 1):  # The first one compiles.
    with tempfile.TemporaryDirectory() as folder:
      secs = _times(engine, found, reader, folder, params, turn)
    if turn:
      ratios.append(secs[1] / secs[0])
      print(
        f'engine {secs[0]:.2f} s, evaluation {secs[1]:.2f} s: {ratios[-1]:.2f} ×'
      )
  print(f'median {statistics.median(ratios):.2f} ×')


def _times(engine, found, reader, folder, params, turn) -> list[float]:
  """Returns the seconds of the bare engine and of the evaluation."""
  from pathlib import Path

  run = suite_run.SuiteRun(
    engine, found, reader, Path(folder), jax.random.key(turn)
  )
  requests = list(run._todo)

  def bare():
    engine.run(params, requests)

  def evaluation():
    run.run(params)
    place = Path(folder) / found[0].suite.name
    stored.join(place)
    suite_report.result(
      found[0].suite.name, stored.load(place), reader.parser, _SAMPLES.value
    )

  secs = [0.0, 0.0]
  for i in (0, 1) if turn % 2 else (1, 0):
    began = time.monotonic()
    (bare, evaluation)[i]()
    secs[i] = time.monotonic() - began
  return secs


if __name__ == '__main__':
  app.run(main)
