"""A run of the stage that toy_stage.py, beside this file, registers."""

from pathlib import Path

from tests.configs import small


def get_config():
  config = small.get_config()
  config.stages, config.init = ('toy',), 'random'
  config.plugins = (str(Path(__file__).with_name('toy_stage.py')),)
  return config
