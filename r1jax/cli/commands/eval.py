"""r1jax eval: measures a policy on held-out problems."""

from absl import flags

from r1jax.cli import config_file
from r1jax.config.schema.run import RunConfig

KIND = 'stage'


def define_flags(values: flags.FlagValues):
  """Defines --workdir."""
  config_file.define_workdir_flag(values)


def run(config: RunConfig, values: flags.FlagValues):
  """Prints the metrics of the evaluation that config.eval describes."""
  import jax

  from r1jax import compilation_cache, processes
  from r1jax.cli import policy
  from r1jax.runs import agreement
  from r1jax.stages.build import evaluation, sampler
  from r1jax.stages.build import parts as build

  compilation_cache.enable(config.compilation_cache_dir)
  agreement.check(config, reads_data=False)
  with processes.agreed():
    parts = build.parts(config)
  params = policy.load_params(config, parts, values.workdir)
  with processes.agreed():
    engine = sampler.engine(config, parts)
    evaluator = evaluation.evaluator(config, parts, engine)
  processes.silence()
  result = evaluator.run(params, jax.random.key(config.seed))
  for name, value in result.metrics.items():
    print(f'{name} {value:.4f}')
