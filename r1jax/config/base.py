"""The config of a run with every key at its default."""

import ml_collections

from r1jax.config.load import to_config_dict
from r1jax.config.schema.run import RunConfig


def get_config() -> ml_collections.ConfigDict:
  """Returns every key that a config may have; the schema declares them.

  A new key is an error, except in mappings that are open for names of
  plugins, such as the weights of rewards in `config.rl.reward`.
  """
  return to_config_dict(RunConfig())
