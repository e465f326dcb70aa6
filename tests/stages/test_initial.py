"""The file that config.init names, whatever stage makes it."""

import pytest

from r1jax import registry
from r1jax.errors import UserError
from r1jax.stages import initial, pretrain
from r1jax.stages.stage import Stage
from tests.configs import small
from tests.conftest import run_config


def _config(init: str):
  config = small.get_config()
  config.init = init
  return run_config(config)


@pytest.fixture
def warm_up():
  """Registers a stage that begins with random parameters; yields its class."""

  class WarmUp(Stage):
    starts_fresh = True

    def __init__(self, config, parts):
      del config, parts

    def run(self, directory, params, metadata):
      raise NotImplementedError

  registry.stage('warm_up')(WarmUp)
  yield WarmUp
  registry.stage.forget(__file__)


def test_files_and_names():
  assert initial.init_file(_config('shipped')) == initial.SHIPPED_BASE
  assert str(initial.init_file(_config('some/folder'))) == 'some/folder'
  config = _config('pretrain')
  assert initial.init_file(config) == pretrain.base_file(config)


def test_any_fresh_stage_may_make_it(warm_up, tmp_path):
  with pytest.raises(UserError, match="the stage 'warm_up' is kept for no"):
    initial.init_file(_config('warm_up'))
  warm_up.cache_file = classmethod(lambda cls, config: tmp_path / 'kept')
  assert initial.init_file(_config('warm_up')) == tmp_path / 'kept'
