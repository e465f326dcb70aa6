"""The file that config.init names."""

from pathlib import Path

from r1jax import buckets, registry
from r1jax.config.schema.run import RunConfig
from r1jax.errors import UserError

SHIPPED_BASE = Path(__file__).parents[1] / 'assets' / 'base_tiny.safetensors'


def names_stage(init: str) -> bool:
  """Returns whether a stage that begins with random parameters makes it."""
  return init in registry.stage and registry.stage.get(init).starts_fresh


def init_file(config: RunConfig) -> Path:
  """Returns the file or folder that config.init names; it need not exist.

  Raises:
    UserError: it names a stage whose output is kept nowhere.
  """
  if config.init == 'shipped':
    return SHIPPED_BASE
  if not names_stage(config.init):
    return buckets.given(config.init)
  kept = registry.stage.get(config.init).cache_file(config)
  if kept is None:
    raise UserError(
      f'init: the output of the stage {config.init!r} is kept for no other '
      'run; name its file, or put the stage first in config.stages'
    )
  return kept
