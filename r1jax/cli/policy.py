"""The policy that a command reads: what a run left, or its base model."""

from r1jax.config.schema.run import RunConfig
from r1jax.runs import run
from r1jax.stages.build.parts import Parts


def load_params(config: RunConfig, parts: Parts, workdir: str):
  """Returns the parameters of a run, or without a workdir those of its base.

  Raises:
    UserError: The workdir holds no weights, or those of another model; or
      config.init names none.
  """
  if workdir:
    return run.trained_params(config, parts, workdir)
  return run.base_params(config, parts)
