"""Sweeps whose runs go on with more steps."""

import dataclasses
import json

import pytest

from r1jax.cli import sweep_configs
from r1jax.config.keys import record
from r1jax.config.load import replace
from r1jax.errors import UserError
from r1jax.sweeps import plan
from tests.configs import small
from tests.conftest import run_config
from tests.sweeps.conftest import Folder


def test_more_steps_are_no_other_sweep(tmp_path):
  """Each run checks its own config; a key that may not change ends the sweep."""
  sweep = Folder(tmp_path).sweep
  (tmp_path / plan.RECORD).write_text(json.dumps(dataclasses.asdict(sweep)))
  more = ('--config.rl.max_steps=4', '--config.rl.save_steps=1')
  plan.check(tmp_path, dataclasses.replace(sweep, overrides=more))
  other = ('--config.rl.max_steps=2', '--config.rl.kl_coef=0.5')
  with pytest.raises(UserError, match='overrides are none there and .*kl_coef'):
    plan.check(tmp_path, dataclasses.replace(sweep, overrides=other))


def test_finished_runs_with_more_steps_to_make_are_run_again(tmp_path):
  folder = Folder(tmp_path, seeds=(0, 1))
  config = run_config(small.get_config())
  for seed in (0, 1):
    place = folder.add(0, seed, [{'step': 2}])
    own = dataclasses.replace(config, seed=seed)
    (place / 'config.json').write_text(json.dumps(record(own)))

  def reopened(**dotted):
    point = sweep_configs.PointConfig(
      folder.sweep.points[0], replace(config, dotted)
    )
    return sweep_configs.reopened([point], folder.sweep, tmp_path)

  assert reopened(**{'rl.save_steps': 1}) == set()
  assert reopened(**{'rl.max_steps': 9}) == {
    folder.place(0, seed) for seed in (0, 1)
  }
