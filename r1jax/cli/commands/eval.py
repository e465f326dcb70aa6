"""r1jax eval: measures a policy on held-out problems."""

from absl import flags
from ml_collections import ConfigDict

from r1jax.cli import config_file

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines --workdir."""
  config_file.define_workdir_flag(values)


def run(config: ConfigDict, values: flags.FlagValues):
  """Prints the metrics of the evaluation that config.eval describes."""
  import jax

  from r1jax.cli import policy
  from r1jax.stages.build import evaluation
  from r1jax.stages.build import parts as build

  parts = build.parts(config)
  params = policy.load_params(config, parts, values.workdir)
  evaluator = evaluation.evaluator(config, parts, build.engine(config, parts))
  result = evaluator.run(params, jax.random.key(config.seed))
  for name, value in result.metrics.items():
    print(f'{name} {value:.4f}')
